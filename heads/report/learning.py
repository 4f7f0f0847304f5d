"""Training of the small decoder on the cohort's own reports: every sample is another imagined patient, read by another reader.

    larmor report-train runs/report              20 minutes of one busy core
    decoder, result = train_decoder(LearnConfig(), Path("runs/report"))

No image is needed: claims are drawn from `foundation/cohort/claims.py` and worded by `phrasing.py`. So that heads of any task can
be worded, some findings lose their name (it becomes a slot), their place or their numbers, and some are split into sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from numpy.random import Generator, default_rng

from foundation.cohort.claims import claims_of_truth, doubt, imagine_truth, with_prior
from foundation.config import Config, save_config
from foundation.findings import Finding, Measurement, Reading
from foundation.training import Draw, TrainingConfig, TrainingResult, software_versions, train
from heads.report.decoder import Decoder, DecoderConfig, SentenceBatch, prompt_words, train_tokenizer
from heads.report.phrasing import phrase
from heads.report.plan import Statement, Style, plan

Pair = tuple[list[int], list[int]]

CARD = """# Small report decoder

{parameters:,} weights, trained for {steps} steps on the wording of imagined synthetic patients, from nothing. It words findings as
sentences with slots; numbers, sides and names come from the findings. Not a medical device.
"""


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


def sentences_of(seed: int) -> list[tuple[Statement, Style, str]]:
    """The statements of one imagined patient and how one reader words them."""
    rng = default_rng(seed)
    reading = claims_of_truth(imagine_truth(rng), subject="imagined")
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
    """The samples of the training loop: all sentences of one imagined patient."""

    def __init__(self, decoder: Decoder, config: LearnConfig):
        self.decoder, self.config = decoder, config

    def __len__(self) -> int:
        return self.config.subjects

    def __getitem__(self, draw: Draw) -> list[Pair]:
        return [self.decoder.sample(*one) for one in sentences_of(draw.seed % 2**32)]

    def collate(self, samples: Sequence[list[Pair]]) -> SentenceBatch:
        return self.decoder.collate([pair for sample in samples for pair in sample])


def new_decoder(config: LearnConfig) -> Decoder:
    """Untrained, with a tokenizer trained on the first imagined patients."""
    texts, prompts = [], []
    for seed in range(config.vocabulary_from):
        for statement, style, text in sentences_of(seed):
            texts.append(text)
            prompts.append(prompt_words(statement, style))
    torch.manual_seed(config.training.seed)
    tokenizer = train_tokenizer(prompts, texts)
    return Decoder(DecoderConfig(tokenizer=tokenizer, width=config.width, depth=config.depth, hidden=config.hidden))


def train_decoder(
    config: LearnConfig, folder: Path, *, on_start: Callable[[str], None] = print
) -> tuple[Decoder, TrainingResult]:
    """Writes config.yaml, metrics.jsonl, checkpoints and `model/`; the same call continues where it was stopped."""
    decoder = new_decoder(config)
    save_config(config, folder / "config.yaml")
    result = train(decoder, Wording(decoder, config), config.training, folder, label="report", on_start=on_start)
    parameters = sum(one.numel() for one in decoder.parameters())
    card = CARD.format(parameters=parameters, steps=config.training.steps)
    provenance = {"training": config.training.model_dump(mode="json"), "versions": software_versions()}
    decoder.save(folder / "model", card=card, provenance=provenance)
    return decoder.eval(), result
