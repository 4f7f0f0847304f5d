"""Does a writer word better for seeing the images? The same decoder with a patient's image tokens, without any, and with another's.

    python -m examples.report_with_images COHORT ENCODER OUT --steps 300 --patients 60

COHORT is a folder of `larmor cohort`, ENCODER a pretrained encoder's. The decoder is trained on the cohort's `train` patients, a
part of the time with the images hidden, and measured on its `test` patients: how well it foresees a synthetic reader's words (nats
per word, share of words right), and how many of its sentences the image changes. Differences are paired; intervals resample
patients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from finetune.trust.intervals import resampled
from foundation.cohort.claims import claims_of_truth
from foundation.training import TrainingConfig
from heads.report.decoder import Decoder
from heads.report.learning import Album, ImagesConfig, LearnConfig, sentences_of, train_decoder
from heads.report.plan import Style, plan
from heads.report.vision import Seen

WAYS = ("own images", "no images", "another's images")
SEED = 20_000_000  # the readers of the test


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--written", type=int, default=15)
    asked = parser.parse_args()
    images = ImagesConfig(cohort=asked.cohort.resolve(), encoder=asked.encoder.resolve())
    training = TrainingConfig(
        steps=asked.steps, batch_size=4, learning_rate=2e-3, warmup_steps=20, weight_decay=0.01, precision="fp32"
    )
    config = LearnConfig(width=96, depth=2, hidden=192, vocabulary_from=200, training=training, images=images)
    decoder, _ = train_decoder(config, asked.out)
    album = Album(images.model_copy(update={"split": "test", "hidden": 0.0}))
    number = min(asked.patients, len(album))
    losses, right, words = measured(decoder, album, number)
    table = {
        "patients": number,
        "nats per word": {way: ratio(losses[:, k], words) for k, way in enumerate(WAYS)},
        "words right": {way: ratio(right[:, k], words) for k, way in enumerate(WAYS)},
        "nats per word, own images less": {
            way: ratio(losses[:, 0] - losses[:, k], words) for k, way in enumerate(WAYS) if k
        },
        "sentences changed": changed(decoder, album, min(asked.written, number)),
    }
    print(json.dumps(table, indent=1))
    (asked.out / "with_images.json").write_text(json.dumps(table, indent=1) + "\n")


@torch.inference_mode()
def measured(decoder: Decoder, album: Album, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Over a patient's words: nats and words right, (patients, ways), and how many words."""
    losses, right, words = [], [], []
    for place in range(number):
        pairs = [decoder.sample(*one) for one in sentences_of(SEED + place, album.truths[place])]
        rows = []
        for features in seen_in_each_way(album, place, number):
            said = decoder(decoder.collate(pairs, Seen.of([features], [len(pairs)])))
            rows.append((float(said["loss"]), float(said["right words"])))
        words.append(sum(len(text) for _, text in pairs))
        losses.append([loss * words[-1] for loss, _ in rows])
        right.append([share * words[-1] for _, share in rows])
    return np.array(losses), np.array(right), np.array(words)


def seen_in_each_way(album: Album, place: int, number: int) -> list[torch.Tensor | None]:
    other = (place + number // 2) % number
    return [album.features[place].float(), None, album.features[other].float()]


def changed(decoder: Decoder, album: Album, number: int) -> dict[str, str]:
    """Greedy sentences that differ from those written with the patient's own images."""
    counts = dict.fromkeys(WAYS[1:], 0)
    total = 0
    for place in range(number):
        statements = plan(claims_of_truth(album.truths[place], subject=""))
        texts = [
            dict(decoder.write(statements, Style(), images=features))
            for features in seen_in_each_way(album, place, number)
        ]
        total += len(statements)
        for way, other in zip(WAYS[1:], texts[1:], strict=True):
            counts[way] += sum(other[at] != texts[0][at] for at in other)
    return {way: f"{count} of {total}" for way, count in counts.items()}


def ratio(values: np.ndarray, words: np.ndarray) -> str:
    pairs = list(zip(values.tolist(), words.tolist(), strict=True))
    return str(resampled(pairs, lambda drawn: sum(v for v, _ in drawn) / sum(n for _, n in drawn), seed=0))


if __name__ == "__main__":
    main()
