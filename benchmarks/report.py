"""Decoding of the small report decoder: our loop against transformers' generate on the same weights, and against the memory.

    python -m benchmarks report          random weights; greedy, no early end

The small decoder is as large as the trained one. The large model has the shape of SmolLM2-135M, as a folder's may be, in fp32 and
bf16. The floor is the time that reading the weights once for each word takes, measured on a buffer of their size, so that both
sides are served by the same cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from numpy.random import default_rng
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks._measure import Row, alone, compare
from foundation.cohort.claims import claims_of_truth, imagine_truth
from heads.report.decoder import BEGIN, prompt_words
from heads.report.decoding import StaticDecoder
from heads.report.learning import LearnConfig, new_decoder
from heads.report.plan import Style, plan
from heads.report.writing import write_report

WORDS, FEW = 32, 24
LARGE = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=512, tie_word_embeddings=True,
)  # fmt: skip


def rows() -> Iterator[Row]:
    decoder = new_decoder(LearnConfig(vocabulary_from=300)).eval()
    reading = claims_of_truth(imagine_truth(default_rng(4)), subject="benchmark")
    prompts = [decoder.encode([*prompt_words(one, Style()), BEGIN]) for one in plan(reading)]
    one = prompts[:1]
    loop = StaticDecoder(decoder.language)
    with torch.inference_mode():
        for name, some in (("one sentence", one), (f"{len(prompts)} sentences", prompts)):
            ours, theirs = partial(_ours, loop, some), partial(_theirs, decoder.language, some)
            assert ours() == theirs()
            yield compare(
                f"decoding {name}, theirs generate", ours=ours, theirs=theirs, target=1.3, words=WORDS,
                weights=sum(p.numel() for p in decoder.parameters()),
            )  # fmt: skip
        yield compare(
            "decoding one sentence, theirs the memory", ours=partial(_ours, loop, one), theirs=_floor(loop), target=0.45
        )
        yield alone("a whole report, verified", partial(write_report, reading, [decoder]), target=3.0)
        for dtype in (torch.float32, torch.bfloat16):
            yield from _large(dtype)


def _large(dtype: torch.dtype) -> Iterator[Row]:
    """One sentence by a model for which the memory counts."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LARGE)
    model = model.to(dtype).eval()
    loop, prompt = StaticDecoder(model), [list(range(1, 9))]
    ours, theirs = partial(_ours, loop, prompt, words=FEW), partial(_theirs, model, prompt, words=FEW)
    name = f"decoding with {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M weights in {str(dtype).removeprefix('torch.')}"
    if dtype == torch.float32:  # in bf16 two likeliest words can tie
        assert ours() == theirs()
    yield compare(f"{name}, theirs generate", ours=ours, theirs=theirs, target=1.3, words=FEW)
    yield compare(f"{name}, theirs the memory", ours=ours, theirs=_floor(loop, words=FEW), target=0.45)


def _ours(loop: StaticDecoder, prompts: list[list[int]], words: int = WORDS) -> list[list[int]]:
    return loop.generate(prompts, None, end=-1, longest=words)


def _theirs(model: Any, prompts: list[list[int]], words: int = WORDS) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=words,
        min_new_tokens=words,
        do_sample=False,
        eos_token_id=None,
    )
    return out[:, width:].tolist()


def _floor(loop: StaticDecoder, words: int = WORDS) -> Callable[[], None]:
    """Reads as many bytes as the weights have, once for each word."""
    buffer = torch.ones(loop.num_bytes // 4)

    def read() -> None:
        for _ in range(words):
            buffer.sum()

    return read
