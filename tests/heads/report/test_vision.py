"""What a writer sees: padding and other patients change nothing, images choose words, and the same module serves both writers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from numpy.random import default_rng

from foundation.cohort.claims import imagine_truth
from foundation.encoder import Encoder, EncoderConfig
from foundation.errors import InputError
from foundation.reading.collection import read_manifest, read_study
from foundation.training import TrainingConfig
from heads.adapters.folder import Backbone
from heads.report.decoder import Decoder
from heads.report.folder import FolderConfig, FolderWriter, train_folder
from heads.report.learning import ImagesConfig, LearnConfig, train_decoder
from heads.report.plan import Style, plan
from heads.report.verifier import verify
from heads.report.vision import Resampler, Seen, Sight
from heads.report.writing import load_writers, write_report
from tests.heads.report.making import imagined
from tests.heads.report.test_folder import save_model

SIGHT = Sight(
    backbone=Backbone(path=Path("x"), weights_sha256="0"), width=24, spacing_mm=(4.0, 4.0, 4.0), num_latents=3
)
QUICK = TrainingConfig(steps=3, batch_size=2, learning_rate=1e-2, warmup_steps=1, precision="fp32", log_every=1)


def test_each_row_has_its_own_patient_and_padding_is_not_seen():
    torch.manual_seed(0)
    resampler = Resampler(24, 48, 3)
    one, other = torch.randn(1, 5, 24), torch.randn(1, 9, 24)
    seen = Seen.of([one, None, other], [2, 1, 3])
    assert seen is not None and seen.owner.tolist() == [0, 0, -1, 1, 1, 1]
    prefix = resampler.prefix(seen, 6)
    assert torch.allclose(prefix[:2], resampler(one).expand(2, -1, -1), atol=1e-6), "padded to nine tokens"
    assert torch.allclose(prefix[3:], resampler(other).expand(3, -1, -1), atol=1e-6)
    assert torch.equal(prefix[2], resampler.blind)
    assert torch.equal(resampler.prefix(Seen.of([None], [2]), 2), resampler.blind.expand(2, -1, -1))


def test_an_image_chooses_between_words_that_the_claims_leave_open(tiny_decoder: Decoder):
    """Two patients of whom the same is claimed and whose readers differ: only the images tell which is which."""
    torch.manual_seed(0)
    decoder = Decoder(tiny_decoder.config.model_copy(update={"sight": SIGHT}))
    statement = next(one for one in plan(imagined(1)) if one.kind == "absent" and len(one.findings) == 1)
    texts = ("no evidence of mass .", "the images are negative for mass .")
    pairs = [decoder.sample(statement, Style(), text) for text in texts]
    features = [torch.randn(1, 6, 24), torch.randn(1, 8, 24)]
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    right, swapped = Seen.of(features, [1, 1]), Seen.of(features[::-1], [1, 1])
    decoder(decoder.collate(pairs))["loss"].backward()  # what stands for no image learns too
    for step in range(30):
        decoder(decoder.collate(pairs, right))["loss"].backward()
        if step == 0:
            assert decoder.resampler is not None
            assert all(one.grad is not None and one.grad.any() for one in decoder.resampler.parameters())
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        losses = [float(decoder(decoder.collate(pairs, one))["loss"]) for one in (right, swapped)]
    assert losses[0] < 0.1 and losses[1] > 0.5, losses


@pytest.fixture
def cohort(make_collection, tmp_path: Path) -> Path:
    """Images of balls, each with the truth of an imagined patient."""
    manifest = make_collection(3)
    for row in read_manifest(manifest).rows:
        (tmp_path / row.subject).mkdir()
        (tmp_path / row.subject / "truth.json").write_text(json.dumps(imagine_truth(default_rng(1))))
    return tmp_path


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    Encoder(EncoderConfig(width=64, depth=1)).save(tmp_path / "encoder", card="# test\n", provenance={})
    return tmp_path / "encoder"


def test_both_writers_learn_with_images_and_are_loaded_with_their_eyes(cohort: Path, encoder: Path, tmp_path: Path):
    images = ImagesConfig(cohort=cohort, encoder=encoder, num_latents=4, hidden=0.0)
    learn = LearnConfig(width=48, depth=1, hidden=64, vocabulary_from=40, training=QUICK, images=images)
    train_decoder(learn, tmp_path / "small", on_start=lambda _: None)
    base = save_model(tmp_path / "base", "llama")
    folder = FolderConfig(training=QUICK.model_copy(update={"batch_size": 1}), rank=2, images=images)
    train_folder(base, folder, tmp_path / "lora", on_start=lambda _: None)
    writers, reasons = load_writers([tmp_path / "small" / "model", tmp_path / "lora" / "model"])
    assert reasons == [] and isinstance(writers[0], Decoder) and isinstance(writers[1], FolderWriter)
    writers[1].longest = 8
    collection = read_manifest(cohort / "manifest.jsonl")
    study, other = (read_study(row, collection.root) for row in collection.rows[:2])
    whole = imagined(12)
    reading = whole.model_copy(update={"findings": whole.findings[:2]})
    assert verify(write_report(reading, writers, study=study).text(), reading) == []
    assert verify(write_report(reading, writers).text(), reading) == [], "without images"
    for writer in writers:
        assert writer.resampler is not None
        assert not torch.equal(writer.resampler.norm.weight, torch.ones(64)), "it learnt nothing"
        seen, again, others = (writer.look(one) for one in (study, study, other))
        assert seen is not None and again is not None and others is not None
        assert torch.equal(seen, again) and seen.shape[2] == 64
        with torch.inference_mode():
            prefixes = [writer.resampler.prefix(Seen.of([one], [1]), 1) for one in (seen, others, None)]
        assert not torch.equal(prefixes[0], prefixes[1]) and not torch.equal(prefixes[0], prefixes[2])

    encoder.rename(tmp_path / "elsewhere")
    writers, reasons = load_writers([tmp_path / "small" / "model"])
    assert writers == [] and "backbone it was fitted on" in reasons[0]
    assert len(load_writers([tmp_path / "small" / "model"], [tmp_path / "elsewhere"])[0]) == 1
    with pytest.raises(InputError, match="has patients"):
        train_decoder(
            learn.model_copy(update={"images": images.model_copy(update={"split": "pretrain"})}), tmp_path / "none"
        )
