"""Training of the small decoder on the cohort's own reports: every sample is another imagined patient, read by another reader.

    larmor report-train runs/report                                                   20 minutes of one busy core
    larmor report-train runs/seeing --images runs/cohort --encoder runs/pretrain/model    beside claims it sees the images
    decoder, result = train_decoder(LearnConfig(), Path("runs/report"))

No image is needed: claims are drawn from `foundation/cohort/claims.py` and worded by `phrasing.py`. A decoder that is to see images
learns on the patients of a cohort on disk instead, whose claims are their truth. So that heads of any task can
be worded, some findings lose their name (it becomes a slot), their place or their numbers, and some are split into sides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from numpy.random import Generator, default_rng
from pydantic import Field
from torch import Tensor

from foundation.checkpoint import read_about
from foundation.cohort.claims import claims_of_truth, doubt, imagine_truth, with_prior
from foundation.config import Config, save_config
from foundation.errors import InputError
from foundation.findings import Finding, Measurement, Reading
from foundation.progress import progress
from foundation.reading.collection import read_manifest, read_study
from foundation.training import Draw, TrainingConfig, TrainingResult, software_versions, train
from heads.adapters.folder import Backbone, encoder_of
from heads.report.decoder import Decoder, DecoderConfig, SentenceBatch, prompt_words, train_tokenizer
from heads.report.phrasing import phrase
from heads.report.plan import Statement, Style, plan
from heads.report.vision import Eyes, Seen, Sight

Pair = tuple[list[int], list[int]]

CARD = """# Small report decoder

{parameters:,} weights, trained for {steps} steps on the wording of imagined synthetic patients, from nothing. It words findings as
sentences with slots; numbers, sides and names come from the findings. Not a medical device.
"""


class ImagesConfig(Config):
    """A cohort on disk, the encoder that looks at it, and the share of patients whose images are hidden while it learns, so that it
    can write without any. `split` is of the cohort's manifest; None takes every patient."""

    cohort: Path
    encoder: Path
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0)
    num_latents: Annotated[int, Field(ge=1)] = 8
    hidden: Annotated[float, Field(ge=0, le=1)] = 0.3
    split: str | None = "train"


class LearnConfig(Config):
    """`batch_size` of the training counts patients, each of about ten sentences. `vocabulary_from` patients make the tokenizer."""

    training: TrainingConfig = TrainingConfig(
        steps=1500, batch_size=4, learning_rate=2e-3, warmup_steps=50, weight_decay=0.01, precision="fp32", log_every=25
    )
    width: int = 192
    depth: int = 4
    hidden: int = 512
    vocabulary_from: int = 1500
    subjects: int = 1_000_000
    images: ImagesConfig | None = None


class Album:
    """Patients of a cohort on disk: what is true of each, and what the encoder sees of it. Every study is looked at once."""

    def __init__(self, config: ImagesConfig):
        collection = read_manifest(config.cohort / "manifest.jsonl")
        rows = [row for row in collection.rows if config.split is None or row.split == config.split]
        if not rows:
            remedy = f"Name a split that its manifest has, not {config.split!r}."
            raise InputError("a cohort to learn from has patients", got="none", remedy=remedy, file=collection.path)
        self.config, self.rows = config, rows
        if read_about(config.encoder)["kind"] == "adapter":
            remedy = "Merge it with larmor adapter DIR --merge OUT, or name its backbone."
            raise InputError(
                "a writer sees through a whole encoder", got="an adapter", remedy=remedy, file=config.encoder
            )
        encoder = encoder_of(config.encoder)
        self.sight = Sight(
            backbone=Backbone.of(config.encoder), width=encoder.config.width, spacing_mm=config.spacing_mm,
            num_latents=config.num_latents,
        )  # fmt: skip
        self.provenance = {"cohort": str(config.cohort), "split": config.split, "patients": len(rows)}
        eyes = Eyes(encoder, self.sight)
        self.truths: list[dict[str, Any]] = []
        self.features: list[Tensor] = []
        with progress(total=len(rows), label="looking", unit="study") as bar:
            for row in rows:
                truth = config.cohort / row.subject / "truth.json"
                if not truth.is_file():
                    remedy = "Give a folder that larmor cohort wrote."
                    raise InputError("every patient has a truth.json", got="none", remedy=remedy, file=truth)
                self.truths.append(json.loads(truth.read_text()))
                self.features.append(eyes.look(read_study(row, collection.root)).half())
                bar.update()

    def __len__(self) -> int:
        return len(self.rows)

    def shown(self, draw: Draw) -> tuple[dict[str, Any], Tensor | None]:
        """A patient's truth, and the features unless they are hidden this time."""
        place = draw.index % len(self)
        is_hidden = default_rng([draw.seed % 2**32, 1]).random() < self.config.hidden
        return self.truths[place], None if is_hidden else self.features[place].float()


def sentences_of(seed: int, truth: Mapping[str, Any] | None = None) -> list[tuple[Statement, Style, str]]:
    """The statements of a patient, who is imagined unless a truth is given, and how one reader words them."""
    rng = default_rng(seed)
    reading = claims_of_truth(imagine_truth(rng) if truth is None else truth, subject="imagined")
    if rng.random() < 0.5:
        reading = doubt(reading, rng)
    if rng.random() < 0.35:
        reading = with_prior(reading, rng)
    if rng.random() < 0.4:
        reading = _as_other_heads_say(reading, rng)
    style = Style(terse=bool(rng.integers(2)), normals=bool(rng.random() < 0.8))
    return [(one, style, phrase(one, style, rng)) for one in plan(reading, style)]


def _as_other_heads_say(reading: Reading, rng: Generator) -> Reading:
    """The same findings under names and places that nobody knows, with fewer numbers, or one for each side."""
    findings: list[Finding] = []
    for one in reading.findings:
        changed: dict[str, object] = {}
        if rng.random() < 0.3:
            changed |= {"name": "something else", "abnormal": one.is_abnormal}
        if rng.random() < 0.3:
            changed["anatomy"] = "somewhere else" if rng.random() < 0.5 else "brain"
        if rng.random() < 0.3:
            changed |= {"measurements": one.measurements[:1] if rng.random() < 0.5 else (), "signals": ()}
        if rng.random() < 0.3:
            changed["severity"] = None
        if rng.random() < 0.3 and one.side in ("right", "left"):
            changed["side"] = "not_assessed"
        one = one.model_copy(update=changed)
        if one.origin == "image" and not one.severity and rng.random() < 0.3 and one.presence in ("present", "absent"):
            kept = [m for m in one.measurements if m.name in ("volume", "diameter")][:1]
            number = Measurement(name="number", value=float(rng.integers(1, 9)), unit="1", method="imagined")
            if one.presence == "present" and one.is_abnormal and rng.random() < 0.5:
                kept.append(number)
            for side in ("right", "left"):
                findings.append(
                    one.model_copy(update={"side": side, "id": f"{one.id}.{side}", "measurements": tuple(kept)})
                )
        else:
            findings.append(one)
    return reading.model_copy(update={"findings": tuple(findings)})


class Wording:
    """The samples of the training loop: all sentences of one patient, imagined or of an album."""

    def __init__(self, decoder: Decoder, config: LearnConfig, album: Album | None = None):
        self.decoder, self.config, self.album = decoder, config, album

    def __len__(self) -> int:
        return self.config.subjects if self.album is None else len(self.album)

    def __getitem__(self, draw: Draw) -> tuple[list[Pair], Tensor | None]:
        truth, features = (None, None) if self.album is None else self.album.shown(draw)
        return [self.decoder.sample(*one) for one in sentences_of(draw.seed % 2**32, truth)], features

    def collate(self, samples: Sequence[tuple[list[Pair], Tensor | None]]) -> SentenceBatch:
        seen = Seen.of([features for _, features in samples], [len(pairs) for pairs, _ in samples])
        return self.decoder.collate([pair for pairs, _ in samples for pair in pairs], seen)


def new_decoder(config: LearnConfig, sight: Sight | None = None) -> Decoder:
    """Untrained, with a tokenizer trained on the first imagined patients."""
    texts, prompts = [], []
    for seed in range(config.vocabulary_from):
        for statement, style, text in sentences_of(seed):
            texts.append(text)
            prompts.append(prompt_words(statement, style))
    torch.manual_seed(config.training.seed)
    tokenizer = train_tokenizer(prompts, texts)
    return Decoder(
        DecoderConfig(tokenizer=tokenizer, width=config.width, depth=config.depth, hidden=config.hidden, sight=sight)
    )


def train_decoder(
    config: LearnConfig, folder: Path, *, on_start: Callable[[str], None] = print
) -> tuple[Decoder, TrainingResult]:
    """Writes config.yaml, metrics.jsonl, checkpoints and `model/`; the same call continues where it was stopped."""
    album = None if config.images is None else Album(config.images)
    decoder = new_decoder(config, None if album is None else album.sight)
    save_config(config, folder / "config.yaml")
    result = train(decoder, Wording(decoder, config, album), config.training, folder, label="report", on_start=on_start)
    parameters = sum(one.numel() for one in decoder.parameters())
    card = CARD.format(parameters=parameters, steps=config.training.steps)
    provenance = {"training": config.training.model_dump(mode="json"), "versions": software_versions()}
    decoder.save(folder / "model", card=card, provenance=provenance | (album.provenance if album else {}))
    return Decoder.load(folder / "model"), result
