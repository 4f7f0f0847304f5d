"""Decoding of the small report decoder: our loop against transformers' generate on the same weights, and against the memory.

    python -m benchmarks report          random weights of the trained decoder's size; fp32, greedy, no early end

The floor is the time that reading the weights once for each word takes, measured on a buffer of their size, so that both sides
are served by the same cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from numpy.random import default_rng

from benchmarks._measure import Row, alone, compare
from foundation.cohort.claims import claims_of_truth, imagine_truth
from heads.report.decoder import BEGIN, Decoder, prompt_words
from heads.report.decoding import StaticDecoder
from heads.report.learning import LearnConfig, new_decoder
from heads.report.plan import Style, plan
from heads.report.writing import write_report

WORDS = 32


def rows() -> Iterator[Row]:
    decoder = new_decoder(LearnConfig(vocabulary_from=300)).eval()
    reading = claims_of_truth(imagine_truth(default_rng(4)), subject="benchmark")
    prompts = [decoder.encode([*prompt_words(one, Style()), BEGIN]) for one in plan(reading)]
    one = prompts[:1]
    loop = StaticDecoder(decoder.language)
    with torch.inference_mode():
        for name, some in (("one sentence", one), (f"{len(prompts)} sentences", prompts)):
            ours, theirs = partial(_ours, loop, some), partial(_theirs, decoder, some)
            assert ours() == theirs()
            yield compare(
                f"decoding {name}, theirs generate", ours=ours, theirs=theirs, target=1.3, words=WORDS,
                weights=sum(p.numel() for p in decoder.parameters()),
            )  # fmt: skip
        yield compare(
            "decoding one sentence, theirs the memory", ours=partial(_ours, loop, one), theirs=_floor(loop), target=0.45
        )
        yield alone("a whole report, verified", partial(write_report, reading, [decoder]), target=3.0)


def _ours(loop: StaticDecoder, prompts: list[list[int]]) -> list[list[int]]:
    return loop.generate(prompts, None, end=-1, longest=WORDS)


def _theirs(decoder: Decoder, prompts: list[list[int]]) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    out = decoder.language.generate(  # pyright: ignore[reportAttributeAccessIssue]: a mixin that transformers adds by name
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=WORDS,
        min_new_tokens=WORDS,
        do_sample=False,
        eos_token_id=None,
    )
    return out[:, width:].tolist()


def _floor(loop: StaticDecoder):
    """Reads as many bytes as the weights have, once for each word."""
    buffer = torch.ones(loop.num_bytes // 4)

    def read() -> None:
        for _ in range(WORDS):
            buffer.sum()

    return read
