"""A folder of a causal model, real loading and training code on random weights: what it may write, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from foundation.errors import InputError
from foundation.training import TrainingConfig
from heads.report.folder import (
    SIDES,
    FolderConfig,
    FolderWriter,
    Forbid,
    alias,
    aliased,
    prompt_text,
    train_folder,
    unaliased,
)
from heads.report.learning import sentences_of
from heads.report.plan import Style, plan
from heads.report.slots import slots_of
from heads.report.verifier import verify
from heads.report.writing import load_writers, write_report
from tests.heads.report.making import imagined

FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def save_model(folder: Path, family: str) -> Path:
    """A model of that family, of nothing but chance, and a tokenizer whose tokens are parts of words, digits among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for seed in range(30) for _, _, text in sentences_of(seed)]
    tokenizer.train_from_iterator([*texts, "left right both 0 1 2 34 567 bilateral unchanged"] * 2, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    config, model = FAMILIES[family]
    torch.manual_seed(0)
    made = model(
        config(
            vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=1024, eos_token_id=0, pad_token_id=0, bos_token_id=None,
        )
    )  # fmt: skip
    made.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_is_loaded_and_its_nonsense_ends_in_a_true_report(tmp_path: Path, family: str):
    writers, reasons = load_writers([save_model(tmp_path / family, family)])
    assert reasons == [] and isinstance(writers[0], FolderWriter)
    writers[0].longest = 12
    whole = imagined(12)
    reading = whole.model_copy(update={"findings": whole.findings[:3]})
    report = write_report(reading, writers)
    assert verify(report.text(), reading) == []
    assert any(family in remark for remark in report.remarks)


def test_a_few_steps_of_lora_learn_and_are_loaded_again(tmp_path: Path):
    base = save_model(tmp_path / "base", "llama")
    training = TrainingConfig(steps=8, batch_size=1, learning_rate=1e-2, warmup_steps=1, precision="fp32", log_every=1)
    result = train_folder(base, FolderConfig(training=training, rank=4), tmp_path / "run", on_start=lambda _: None)
    assert result.records[-1]["loss"] < result.records[0]["loss"]
    fitted, plain = FolderWriter.load(tmp_path / "run" / "model"), FolderWriter.load(base)
    ids = torch.arange(1, 9)[None]
    assert not torch.equal(fitted.model(ids).logits, plain.model(ids).logits)
    for name, weight in plain.model.named_parameters():
        if "embed" in name or "norm" in name:  # what LoRA leaves alone
            assert torch.equal(weight, fitted.model.get_parameter(name))


def test_no_part_of_a_word_makes_a_side_or_a_number(tmp_path: Path):
    writer = FolderWriter.load(save_model(tmp_path, "llama"))
    forbid = Forbid(writer.tokenizer, SIDES, start=0)
    tokenizer = writer.tokenizer

    def may(before: str, after: str) -> bool:
        ids = (
            torch.tensor([tokenizer.encode(before)], dtype=torch.long)
            if before
            else torch.zeros((1, 0), dtype=torch.long)
        )
        scores = forbid(ids, torch.zeros(1, len(tokenizer)))
        [token] = [i for i, text in enumerate(forbid.texts) if text == after][:1]
        return bool(torch.isfinite(scores[0, token]))

    assert may("a ", "m") and may("the lef", "a") and may("", "a")
    assert not may("the lef", "t") and not may("a ", "3") and not may("the righ", "t")
    nothing = torch.zeros((1, 0), dtype=torch.long)
    allowed = torch.isfinite(forbid(nothing, torch.zeros(1, len(tokenizer))))[0]
    assert allowed.sum() > 300
    assert not any(char.isdigit() for text, may_be in zip(forbid.texts, allowed.tolist()) if may_be for char in text)
    writer.longest = 16
    for seed in range(3):
        some = plan(imagined(3))[:2]
        for _, text in writer.write(some, Style(), seed=seed, temperature=2.0):
            words = text.lower().replace("<", " <").split()
            assert not any(char.isdigit() for word in words if not word.startswith("<") for char in word), text
            assert not any(word.strip(".,;:()") in SIDES for word in words), text


def test_slots_have_names_without_digits_and_come_back():
    for statement in plan(imagined(9, prior=True)):
        slots = slots_of(statement.findings, statement.prior)
        text = " ".join(sorted(slots))
        assert unaliased(aliased(text, statement), statement) == text
        assert len({alias(slot) for slot in slots}) == len(slots)
        assert not any(char.isdigit() for char in prompt_text(statement, Style()).split("Slots:")[1])


def test_a_folder_that_is_none_says_what_it_needs(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="language model"):
        FolderWriter.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="adapter names"):
        FolderWriter.load(tmp_path)
