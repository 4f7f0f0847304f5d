"""The decoder's own loop against transformers', and what no set of weights can make it write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foundation.errors import InputError
from foundation.training import TrainingConfig
from heads.report.decoder import (
    BEGIN,
    COMPARES,
    SIDED,
    Decoder,
    DecoderConfig,
    check_vocabulary,
    is_prompt_word,
    prompt_words,
)
from heads.report.decoding import Product, StaticDecoder
from heads.report.learning import LearnConfig, sentences_of, train_decoder
from heads.report.plan import Style, plan
from heads.report.slots import SLOT, UnfilledSlot, fill, slots_of
from tests.heads.report.making import imagined


def statements(seed: int = 1, **options):
    return plan(imagined(seed, **options))


def written(decoder: Decoder, some, **options) -> list[str]:
    """In the order of the statements."""
    return [text for _, text in sorted(decoder.write(some, Style(), **options))]


def test_the_static_loop_writes_what_transformers_writes(tiny_decoder: Decoder):
    prompts = [tiny_decoder.encode([*prompt_words(one, Style()), BEGIN]) for one in statements()]
    loop = StaticDecoder(tiny_decoder.language)
    ours = loop.generate(prompts, None, end=-1, longest=12)
    for prompt, out in zip(prompts, ours, strict=True):
        theirs = tiny_decoder.language.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, min_new_tokens=12,
            do_sample=False, eos_token_id=None,
        )  # fmt: skip
        assert out == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(1, 1, 24), (3, 5, 24)])
def test_a_product_is_a_linear_map(dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in (shape, (40, 24), (40,)))
    with torch.inference_mode():
        for own in (None, bias):
            expected = torch.nn.functional.linear(x.float(), weight.float(), None if own is None else own.float())
            found = Product(weight, own)(x)
            assert found.dtype == dtype and found.shape == expected.shape
            assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_a_batch_is_its_sentences_one_by_one(tiny_decoder: Decoder):
    some = statements()
    together = written(tiny_decoder, some)
    assert together == [written(tiny_decoder, [one])[0] for one in some]


@pytest.mark.parametrize("prior", [False, True])
def test_no_weights_can_write_a_number_a_side_or_an_unasked_comparison(tiny_decoder: Decoder, prior: bool):
    some = statements(3, prior=prior)
    for seed in range(3):
        for one, text in zip(some, written(tiny_decoder, some, seed=seed, temperature=3.0), strict=True):
            words = [word for word in text.split() if not SLOT.fullmatch(word)]
            assert not any(char.isdigit() for word in words for char in word)
            assert not any(SIDED.search(word) and word != "midline" for word in words)
            assert prior or not any(COMPARES.fullmatch(word) for word in words)
            assert {word for word in text.split() if SLOT.fullmatch(word)} <= slots_of(one.findings, one.prior)
            used = [word for word in text.split() if SLOT.fullmatch(word)]
            assert len(used) == len(set(used))


def test_the_vocabulary_itself_has_no_side_and_no_digit(tiny_decoder: Decoder):
    check_vocabulary(tiny_decoder.words)
    assert sum(not is_prompt_word(word) and not SLOT.fullmatch(word) for word in tiny_decoder.words) > 50
    with pytest.raises(AssertionError):
        check_vocabulary(["mass", "left"])
    with pytest.raises(AssertionError):
        check_vocabulary(["3"])


def test_the_prompt_hides_side_and_number():
    for one in statements():
        told = " ".join(prompt_words(one, Style()))
        assert "right" not in told and "left" not in told
        mirrored = tuple(
            f.model_copy(update={"side": {"right": "left", "left": "right"}.get(f.side, f.side)}) for f in one.findings
        )
        assert prompt_words(type(one)(one.section, one.kind, mirrored, one.prior), Style()) == prompt_words(
            one, Style()
        )


def test_sentences_come_as_they_end_and_are_those_of_the_whole(tiny_decoder: Decoder):
    prompts = [tiny_decoder.encode([*prompt_words(one, Style()), BEGIN]) for one in statements()]
    loop = StaticDecoder(tiny_decoder.language)
    whole = loop.generate(prompts, None, end=-1, longest=12)
    end = whole[1][2]
    cut = [row[: row.index(end)] if end in row else row for row in whole]
    streamed = list(loop.stream(prompts, None, end=end, longest=12))
    assert dict(streamed) == dict(enumerate(cut)) and len({len(row) for row in cut}) > 1
    lengths = [len(row) for _, row in streamed]
    assert lengths == sorted(lengths), "the shortest sentence ends first"


def test_it_learns_is_saved_and_writes_the_same(tmp_path: Path):
    training = TrainingConfig(steps=4, batch_size=2, learning_rate=3e-3, warmup_steps=1, precision="fp32", log_every=1)
    config = LearnConfig(width=48, depth=1, hidden=64, vocabulary_from=40, training=training)
    decoder, result = train_decoder(config, tmp_path, on_start=lambda _: None)
    assert result.records[-1]["loss"] < result.records[0]["loss"]
    again = Decoder.load(tmp_path / "model")
    assert written(again, statements()) == written(decoder, statements())
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="readable weights"):
        Decoder.load(tmp_path / "model")


def test_training_sentences_are_filled_without_a_gap():
    for seed in range(30):
        for statement, _, text in sentences_of(seed):
            assert "<" not in fill(text, statement)


def test_a_slot_that_nothing_fills_is_an_error():
    [first, *_] = statements()
    for text in ("a <c9.volume> .", "a <c1.weight> .", "since <x.nonsense> .", "a < b ."):
        with pytest.raises(UnfilledSlot):
            fill(text, first)


def test_the_config_alone_rebuilds_the_model(tiny_decoder: Decoder):
    again = Decoder(DecoderConfig.model_validate_json(tiny_decoder.config.model_dump_json()))
    assert again.words == tiny_decoder.words
    again.load_state_dict(tiny_decoder.state_dict())
