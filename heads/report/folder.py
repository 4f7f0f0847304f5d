"""The largest writer: a folder with any causal language model of transformers (Llama, Qwen, SmolLM, Gemma), alone or under LoRA.

    writer = FolderWriter.load(Path("models/SmolLM2-135M"))
    train_folder(Path("models/SmolLM2-135M"), FolderConfig(), Path("runs/lora"))      # runs/lora/model loads the same way

Nothing is fetched and no code of the folder is run. Such a model's tokens are parts of words, so what the small decoder cannot say
for lack of a word is forbidden here letter by letter: no digit, no side, no comparison without a prior. Slots are given to it under
names without digits.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from foundation.checkpoint import load_model_folder, save_model_folder
from foundation.config import Config, save_config
from foundation.errors import InputError
from foundation.files import write_folder_aside
from foundation.study import Study
from foundation.training import Draw, TrainingConfig, TrainingResult, seeded, train
from heads.report.decoder import COMPARES, LONGEST, SentenceBatch, prompt_words
from heads.report.learning import Album, ImagesConfig, Pair, sentences_of
from heads.report.plan import Statement, Style
from heads.report.slots import slots_of
from heads.report.vision import Eyes, Resampler, Seen, Sight

SIDES = ("right", "left", "rightward", "leftward", "bilateral", "bilaterally", "both", "unilateral")
COMPARISONS = tuple(word for word in COMPARES.pattern.split("|") if word.isalpha())
LETTERS = "abcdefgh"
SIGHT = "sight"  # the folder beside an adapter in which its resampler lies


def alias(slot: str) -> str:
    """`<c2.brain_fraction>` is `<brain-fraction b>`, `<x.T2star>` is `<series T-two-star>`: the same without digits."""
    body = slot.strip("<>")
    kind, _, name = body.partition(".")
    if kind == "x":
        return f"<series {name.replace('1', '-one-').replace('2', '-two-')}>"
    if kind[:1] == "c" and kind[1:].isdigit():
        return f"<{name.replace('_', '-')} {LETTERS[int(kind[1:]) - 1]}>"
    return slot


def prompt_text(statement: Statement, style: Style) -> str:
    """The task in words: the claims as the small decoder gets them, and the slots that may be used."""
    claims = " ".join(word.strip("[]") for word in prompt_words(statement, style))
    claims = re.sub(r"\bc(\d)\b", lambda match: LETTERS[int(match[1]) - 1], claims)
    slots = " ".join(sorted(alias(slot) for slot in slots_of(statement.findings, statement.prior)))
    return f"Claims: {claims}\nSlots: {slots}\nSentence:"


def aliased(text: str, statement: Statement) -> str:
    for slot in slots_of(statement.findings, statement.prior):
        text = text.replace(slot, alias(slot))
    return text


def unaliased(text: str, statement: Statement) -> str:
    for slot in slots_of(statement.findings, statement.prior):
        text = text.replace(alias(slot), slot)
    return text


# ------------------------------------------------------------------------------------------------ what may be written


class Forbid(LogitsProcessor):
    """Bars every token that would put down a digit or finish a forbidden word, whatever parts the word is written in.

    Stateless: the unfinished word is read from the tokens written so far, so rows of a batch cannot be confused.
    """

    def __init__(self, tokenizer: Any, words: Sequence[str], *, start: int):
        self.words, self.start = tuple(words), start
        self.tokenizer = tokenizer
        size = len(tokenizer)
        # Decoded after a letter, because many tokenizers drop a leading space of what they decode alone.
        anchor = tokenizer.encode("a", add_special_tokens=False)
        alone = len(tokenizer.decode(anchor))
        self.texts = [tokenizer.decode([*anchor, number])[alone:].lower() for number in range(size)]
        self.barred: dict[str, Tensor] = {}

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]: transformers leaves room for more arguments
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor
    ) -> torch.FloatTensor:
        rows = []
        for ids in input_ids[:, self.start :].tolist():
            written = self.tokenizer.decode(ids).lower() if ids else ""
            open_word = re.search(r"[a-z]*$", written)
            rows.append(self._bar(open_word[0] if open_word else ""))
        # A model may have more scores than its tokenizer has tokens, or fewer.
        known = min(len(self.texts), scores.shape[1])
        barred = torch.zeros(scores.shape, dtype=torch.bool)
        barred[:, :known] = torch.stack(rows)[:, :known]
        return scores.masked_fill(barred.to(scores.device), -torch.inf)  # pyright: ignore[reportReturnType]

    def _bar(self, open_word: str) -> Tensor:
        """Which tokens may not follow an unfinished word; all words that begin no forbidden one are alike."""
        if not any(word.startswith(open_word) for word in self.words):
            open_word = "\x00"
        if open_word not in self.barred:
            self.barred[open_word] = torch.tensor([self._is_barred(open_word + text) for text in self.texts])
        return self.barred[open_word]

    def _is_barred(self, text: str) -> bool:
        if re.search(r"\d", text):
            return True
        return any(word in self.words for word in re.findall(r"(?<![a-z\x00])[a-z]+", text))


class FolderWriter:
    """A language model and its tokenizer; a sentence has at most `longest` tokens."""

    def __init__(self, model: Any, tokenizer: Any, name: str, longest: int = 2 * LONGEST):
        self.model, self.tokenizer, self.name, self.longest = model.eval(), tokenizer, name, longest
        self.eyes: Eyes | None = None
        self.resampler: Resampler | None = None

    @classmethod
    def load(cls, folder: Path, backbones: Sequence[Path] = ()) -> FolderWriter:
        model, tokenizer = load_language_model(folder)
        writer = cls(model, tokenizer, f"language model {folder.name}")
        if (folder / SIGHT).is_dir():
            loaded = load_model_folder(folder / SIGHT, kind="report-sight", config=Sight)
            writer.resampler = resampler_for(model, loaded.config)
            loaded.fill(writer.resampler)
            writer.eyes = Eyes.open(loaded.config, folder, backbones)
        return writer

    def look(self, study: Study) -> Tensor | None:
        return None if self.eyes is None else self.eyes.look(study)

    def write(
        self,
        statements: Sequence[Statement],
        style: Style,
        *,
        seed: int = 0,
        temperature: float = 0.0,
        images: Tensor | None = None,
    ) -> Iterator[tuple[int, str]]:
        """One sentence each, one after the other."""
        seeds = torch.randint(2**31, (len(statements),), generator=seeded(seed)).tolist()
        for place, statement in enumerate(statements):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds[place])
                text = self._sentence(statement, style, temperature, images)
            yield place, text

    @torch.inference_mode()
    def _sentence(self, statement: Statement, style: Style, temperature: float, images: Tensor | None) -> str:
        ids = self.tokenizer(prompt_text(statement, style), return_tensors="pt").to(self.model.device)
        start = ids["input_ids"].shape[1]
        asked: dict[str, Tensor] = dict(ids)
        if self.resampler is not None:
            prefix = self.resampler.prefix(Seen.of([images], [1]), 1)
            words = self.model.get_input_embeddings()(ids["input_ids"])
            embedded = torch.cat([prefix.to(words), words], dim=1)
            asked = {"inputs_embeds": embedded, "attention_mask": torch.ones(embedded.shape[:2], dtype=torch.long)}
            start = 0  # of embeddings, generate gives back new tokens only
        forbidden = SIDES if statement.prior is not None else (*SIDES, *COMPARISONS)
        out = self.model.generate(
            **asked,
            max_new_tokens=self.longest,
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_p=None,
            top_k=None,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            stop_strings=["\n", " ."],
            tokenizer=self.tokenizer,
            logits_processor=LogitsProcessorList([Forbid(self.tokenizer, forbidden, start=start)]),
        )
        text = self.tokenizer.decode(out[0, start:], skip_special_tokens=True)
        first = text.strip().split("\n")[0]
        return unaliased(first, statement)


def load_language_model(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a local folder, or of an adapter and the folder that it names."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    remedy = "Give a folder with config.json, weights in safetensors and a tokenizer, all on this machine."
    base, adapter = folder, folder / "adapter_config.json"
    if adapter.is_file():
        try:
            base = Path(json.loads(adapter.read_text())["base_model_name_or_path"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("an adapter names its model", got=str(error), remedy=remedy, file=adapter) from None
    try:
        options = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(base, **options)
        model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, dtype="auto", **options)
        if base != folder:
            with _peft_asks_by_an_old_name():
                model = PeftModel.from_pretrained(model, folder, local_files_only=True).merge_and_unload()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        got = " ".join(str(error).split())[:200]
        raise InputError("a language model can be loaded from its folder", got=got, remedy=remedy, file=base) from None
    return model, tokenizer


@contextmanager
def _peft_asks_by_an_old_name() -> Iterator[None]:
    """peft 0.21 reads an attribute that transformers 5.23 has renamed, and would warn whoever calls it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


# ------------------------------------------------------------------------------------------------ training


class FolderConfig(Config):
    """LoRA on all projections of the blocks. `batch_size` counts patients, imagined ones or those of `images`."""

    training: TrainingConfig = TrainingConfig(steps=300, batch_size=2, learning_rate=2e-4, weight_decay=0.0)
    rank: Annotated[int, Field(ge=1)] = 16
    subjects: int = 1_000_000
    images: ImagesConfig | None = None


def resampler_for(model: Any, sight: Sight) -> Resampler:
    """Makes image tokens as wide as the model's own."""
    return Resampler(sight.width, model.get_input_embeddings().weight.shape[1], sight.num_latents)


class LanguageModel(nn.Module):
    """A language model as an objective of the training loop; only its adapter learns, and the resampler if it sees images."""

    def __init__(self, model: Any, pad: int, resampler: Resampler | None = None):
        super().__init__()
        self.model, self.pad, self.resampler = model, pad, resampler

    def forward(self, batch: SentenceBatch) -> dict[str, Tensor]:
        attended, labels = (batch.ids != self.pad).long(), batch.target
        if self.resampler is None:
            out = self.model(input_ids=batch.ids, attention_mask=attended, labels=labels)
            return {"loss": out.loss.float()}
        prefix = self.resampler.prefix(batch.seen, len(batch.ids))
        words = self.model.get_input_embeddings()(batch.ids)
        out = self.model(
            inputs_embeds=torch.cat([prefix.to(words), words], dim=1),
            attention_mask=torch.cat([attended.new_ones(prefix.shape[:2]), attended], dim=1),
            labels=torch.cat([labels.new_full(prefix.shape[:2], -100), labels], dim=1),
        )
        return {"loss": out.loss.float()}

    def learning_rate_scale(self, name: str) -> float:
        return 1.0


class FolderWording:
    """The samples: the cohort's sentences after their prompts, in the model's own tokens."""

    def __init__(self, tokenizer: Any, pad: int, config: FolderConfig, album: Album | None = None):
        self.tokenizer, self.pad, self.config, self.album = tokenizer, pad, config, album

    def __len__(self) -> int:
        return self.config.subjects if self.album is None else len(self.album)

    def __getitem__(self, draw: Draw) -> tuple[list[Pair], Tensor | None]:
        pairs = []
        truth, features = (None, None) if self.album is None else self.album.shown(draw)
        for statement, style, text in sentences_of(draw.seed % 2**32, truth):
            prompt = self.tokenizer(prompt_text(statement, style))["input_ids"]
            answer = self.tokenizer(f" {aliased(text, statement)}\n", add_special_tokens=False)["input_ids"]
            pairs.append((prompt, answer))
        return pairs, features

    def collate(self, samples: Sequence[tuple[list[Pair], Tensor | None]]) -> SentenceBatch:
        pairs = [pair for some, _ in samples for pair in some]
        longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids, target = torch.full((len(pairs), longest), self.pad), torch.full((len(pairs), longest), -100)
        for row, (prompt, answer) in enumerate(pairs):
            both = torch.tensor([*prompt, *answer])
            ids[row, : len(both)] = both
            target[row, len(prompt) : len(both)] = both[len(prompt) :]
        seen = Seen.of([features for _, features in samples], [len(some) for some, _ in samples])
        return SentenceBatch(ids, target, seen)


def train_folder(
    folder: Path, config: FolderConfig, out: Path, *, on_start: Callable[[str], None] = print
) -> TrainingResult:
    """Fit a LoRA adapter to the cohort's reports; `out/model` is the adapter's folder. Continues where it was stopped."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_language_model(folder)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        remedy = "Set pad_token in its tokenizer_config.json."
        raise InputError(
            "a tokenizer has a token for padding or for the end", got="neither", remedy=remedy, file=folder
        )
    torch.manual_seed(config.training.seed)
    lora = LoraConfig(
        r=config.rank, lora_alpha=2 * config.rank, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0
    )
    album = None if config.images is None else Album(config.images)
    resampler = None if album is None else resampler_for(model, album.sight)
    with _peft_asks_by_an_old_name():
        objective = LanguageModel(get_peft_model(model, lora), pad, resampler)
    save_config(config, out / "config.yaml")
    samples = FolderWording(tokenizer, pad, config, album)
    result = train(objective, samples, config.training, out, label="report-lora", on_start=on_start)
    objective.model.peft_config["default"].base_model_name_or_path = str(folder.resolve())
    with write_folder_aside(out / "model") as aside:
        objective.model.save_pretrained(aside)
        (aside / "card.md").write_text(
            f"# LoRA adapter of {folder.name} for report sentences\n\n{config.training.steps} steps on imagined patients. "
            "Not a medical device.\n"
        )
        if album is not None and resampler is not None:
            card = f"# The resampler of an adapter of {folder.name}\n"
            save_model_folder(
                aside / SIGHT, kind="report-sight", config=album.sight, state=resampler.state_dict(), card=card,
                provenance=album.provenance,
            )  # fmt: skip
    return result
