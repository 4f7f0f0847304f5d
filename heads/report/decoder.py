"""The small decoder: a causal language model of transformers that words one statement as one sentence with slots.

    decoder = Decoder.load(folder)
    decoder.write(statements, Style())        slot texts, all sentences in one batch

It reads claims: kind of sentence, style, and for each finding its name, place, certainty, severity, signals and
which numbers there are. It is not told which side a finding is on nor any number, so it cannot get them wrong: those are slots, and
a side or a digit is no word of its vocabulary (`check_vocabulary`). Words that compare with an earlier study are there, and are
masked unless there is one. Tokens of the images may come before the claims (`vision.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from foundation.checkpoint import load_model_folder, save_model_folder
from foundation.config import Config
from foundation.findings import Finding
from foundation.study import Study
from foundation.training import seeded
from heads.report.decoding import StaticDecoder
from heads.report.hedging import hedge_of
from heads.report.phrasing import HISTORY, NAMES, PLACES
from heads.report.plan import Statement, Style
from heads.report.slots import MEASURED, SLOT, has, slots_of
from heads.report.vision import Eyes, Resampler, Seen, Sight

PAD, UNKNOWN, BEGIN, END = "[pad]", "[unknown]", "[begin]", "[end]"
LONGEST = 72  # words of a sentence
COMPARES = re.compile(
    r"unchanged|stable|new|larger|smaller|grown|increased|decreased|since|compared|than|prior|previous|earlier|interval|again"
    r"|resolved|progress\w*|gone"
)
SIDED = re.compile(r"\b(?:right|left|both|bilateral|unilateral|midline(?! shift))\w*", re.IGNORECASE)


class DecoderConfig(Config):
    """`tokenizer` is a whole tokenizer of the tokenizers library, as JSON: the config alone rebuilds the model.

    `sight` is what it sees of the images, None where that is nothing.
    """

    tokenizer: str
    width: Annotated[int, Field(ge=16)] = 192
    depth: Annotated[int, Field(ge=1)] = 4
    hidden: int = 512
    head_dim: int = 48
    sight: Sight | None = None


# ------------------------------------------------------------------------------------------------ words


def prompt_words(statement: Statement, style: Style) -> list[str]:
    """What the decoder is told, as words in brackets; nothing of it is a side or a number."""
    words = [f"[{statement.kind}]", "[terse]" if style.terse else "[verbose]"]
    if statement.prior is not None:
        words.append("[prior]")
    for number, finding in enumerate(statement.findings, start=1):
        words += [f"[c{number}]", *_claim_words(finding)]
    return words


def _claim_words(one: Finding) -> list[str]:
    known_name = one.name.lower() in NAMES or one.name.lower() in PLACES or one.name in HISTORY
    sided = {"right": "one", "left": "one", "bilateral": "two", "midline": "middle"}.get(one.side, "none")
    words = [
        f"[name:{one.name.lower() if known_name else 'other'}]",
        f"[place:{one.anatomy if one.anatomy in (*PLACES, 'brain', 'images') else 'other'}]",
        f"[side:{sided}]",
        f"[sure:{hedge_of(one)}]",
    ]
    if one.severity:
        words.append(f"[severity:{one.severity}]")
    if one.change:
        words.append(f"[change:{one.change}]")
    words += [f"[has:{name}]" for name in MEASURED if has(one, name)]
    words += [f"[{one.signal}:{one.contrast}]" for one in one.signals[:4]]
    return [word.replace(" ", "_") for word in words]


def train_tokenizer(prompts: Sequence[Sequence[str]], texts: Sequence[str]) -> str:
    """Whole words, so that nothing outside the vocabulary can be put together from parts; JSON."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.WordLevelTrainer(special_tokens=[PAD, UNKNOWN, BEGIN, END], show_progress=False)
    tokenizer.train_from_iterator([*(" ".join(prompt) for prompt in prompts), *texts], trainer)
    return tokenizer.to_str()


def check_vocabulary(words: Sequence[str]) -> None:
    """No word that can be written is a number or a side: the guarantee that the slots give, stated on the vocabulary."""
    for word in words:
        if not is_prompt_word(word) and not SLOT.fullmatch(word):
            assert (not re.search(r"\d", word) and not SIDED.search(word)) or word == "midline", word


def is_prompt_word(word: str) -> bool:
    return word.startswith("[") and word != END


# ------------------------------------------------------------------------------------------------ model


class SentenceBatch:
    """Prompts and sentences side by side, padded on the right; `target` is -100 where nothing is learnt."""

    def __init__(self, ids: Int[Tensor, "batch words"], target: Int[Tensor, "batch words"], seen: Seen | None = None):
        self.ids, self.target, self.seen = ids, target, seen

    def to(self, device: torch.device | str) -> SentenceBatch:
        seen = None if self.seen is None else self.seen.to(device)
        return SentenceBatch(self.ids.to(device), self.target.to(device), seen)


class Decoder(nn.Module):
    """A Llama of transformers over whole words; `forward` gives the loss, as the training loop asks."""

    name = "small decoder"

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer = Tokenizer.from_str(config.tokenizer)
        self.words = [word for word, _ in sorted(self.tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
        check_vocabulary(self.words)
        heads = max(1, config.width // config.head_dim)
        self.language = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.words), hidden_size=config.width, intermediate_size=config.hidden,
                num_hidden_layers=config.depth, num_attention_heads=heads, num_key_value_heads=heads,
                head_dim=config.head_dim, max_position_embeddings=512, tie_word_embeddings=False,
                pad_token_id=self.id_of(PAD), bos_token_id=self.id_of(BEGIN), eos_token_id=self.id_of(END),
            )
        )  # fmt: skip
        sight = config.sight
        self.resampler = None if sight is None else Resampler(sight.width, config.width, sight.num_latents)
        self.eyes: Eyes | None = None

    def id_of(self, word: str) -> int:
        number = self.tokenizer.token_to_id(word)
        number = self.tokenizer.token_to_id(UNKNOWN) if number is None else number
        assert number is not None
        return number

    def encode(self, words: Sequence[str]) -> list[int]:
        return [self.id_of(word) for word in words]

    def sample(self, statement: Statement, style: Style, text: str) -> tuple[list[int], list[int]]:
        """A prompt and the sentence that should follow it."""
        return self.encode([*prompt_words(statement, style), BEGIN]), self.encode([*text.split(), END])

    def collate(self, pairs: Sequence[tuple[list[int], list[int]]], seen: Seen | None = None) -> SentenceBatch:
        longest = max(len(prompt) + len(text) for prompt, text in pairs)
        ids = torch.full((len(pairs), longest), self.id_of(PAD))
        target = torch.full((len(pairs), longest), -100)
        for row, (prompt, text) in enumerate(pairs):
            both = torch.tensor(prompt + text)
            ids[row, : len(both)] = both
            target[row, len(prompt) : len(both)] = both[len(prompt) :]
        return SentenceBatch(ids, target, seen)

    def forward(self, batch: SentenceBatch) -> dict[str, Tensor]:
        embedded = self.language.get_input_embeddings()(batch.ids)
        target = batch.target
        if self.resampler is not None:
            prefix = self.resampler.prefix(batch.seen, len(embedded))
            embedded = torch.cat([prefix, embedded], dim=1)
            target = torch.cat([target.new_full(prefix.shape[:2], -100), target], dim=1)
        scores = self.language(inputs_embeds=embedded, use_cache=False).logits.float()
        loss = nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), target[:, 1:].flatten(), ignore_index=-100)
        with torch.no_grad():
            known = target[:, 1:] != -100
            right = (scores[:, :-1].argmax(-1) == target[:, 1:])[known].float().mean()
        return {"loss": loss, "right words": right}

    def learning_rate_scale(self, name: str) -> float:
        return 1.0

    def allowed(self, statement: Statement) -> Bool[Tensor, " words"]:
        """Which words may be written at all for this statement: its own slots, and comparisons only with a prior."""
        slots = slots_of(statement.findings, statement.prior)
        return torch.tensor([self._may(word, slots, statement.prior is not None) for word in self.words])

    def _may(self, word: str, slots: set[str], has_prior: bool) -> bool:
        if word == END:
            return True
        if is_prompt_word(word):
            return False
        if SLOT.fullmatch(word):
            return word in slots
        return has_prior or COMPARES.fullmatch(word) is None

    def look(self, study: Study) -> Tensor | None:
        """What it sees of a study; None for a writer that reads claims alone."""
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
        """A sentence with slots for each statement, as `writing.Writer` says: all are decoded in one batch, and each is given as it
        ends. With a `temperature` words are drawn, else the likeliest is taken."""
        if not statements:
            return
        loop = StaticDecoder(self.language)
        prompts = [self.encode([*prompt_words(one, style), BEGIN]) for one in statements]
        prefix = None
        if self.resampler is not None:
            with torch.inference_mode():
                prefix = self.resampler.prefix(Seen.of([images], [len(statements)]), len(statements))
        mask = torch.stack([self.allowed(one) for one in statements])
        once = torch.tensor([SLOT.fullmatch(word) is not None for word in self.words])
        for row, ids in loop.stream(
            prompts, mask, end=self.id_of(END), longest=LONGEST, once=once, temperature=temperature,
            generator=seeded(seed), prefix=prefix,
        ):  # fmt: skip
            yield row, " ".join(self.words[i] for i in ids)

    def save(self, folder: Path, *, card: str, provenance: dict[str, Any]) -> None:
        save_model_folder(
            folder, kind="report", config=self.config, state=self.state_dict(), card=card, provenance=provenance
        )

    @classmethod
    def load(cls, folder: Path, backbones: Sequence[Path] = ()) -> Decoder:
        loaded = load_model_folder(folder, kind="report", config=DecoderConfig)
        decoder = cls(loaded.config)
        loaded.fill(decoder)
        if loaded.config.sight is not None:
            decoder.eyes = Eyes.open(loaded.config.sight, folder, backbones)
        return decoder.eval()
