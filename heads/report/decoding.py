"""Fast decoding of a small Llama: our own loop over its weights, with a cache of fixed size, all sentences in one batch.

    StaticDecoder(model).generate(prompts, allowed, end=..., longest=72)

A token of a small model is a few hundred microseconds of arithmetic and, in transformers' generate, milliseconds of Python. Here
the projections of a block are joined, keys and values are written in place, and nothing is allocated per token but the scores. A
test holds its scores against transformers' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class StaticDecoder:
    """A view of a LlamaForCausalLM: its weights, joined once. Made anew after the weights change."""

    def __init__(self, model: Any):
        config = model.config
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.eps = config.rms_norm_eps
        self.embedding = model.get_input_embeddings().weight
        self.norm, self.out = model.model.norm.weight, model.lm_head.weight
        self.blocks = []
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            biases = [getattr(attention, name).bias for name in ("q_proj", "k_proj", "v_proj")]
            assert attention.o_proj.bias is None and mlp.up_proj.bias is None
            self.blocks.append(
                (
                    layer.input_layernorm.weight,
                    torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
                    None if biases[0] is None else torch.cat(biases),
                    attention.o_proj.weight,
                    layer.post_attention_layernorm.weight,
                    torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                    mlp.down_proj.weight,
                )
            )
        positions = torch.arange(config.max_position_embeddings)[None]
        cos, sin = model.model.rotary_emb(self.embedding[:1][None], positions)
        self.cos, self.sin = cos[0], sin[0]  # (positions, head_dim)

    @property
    def num_bytes(self) -> int:
        """Weights that one token reads; of the embedding only a row."""
        blocks = sum(one.numel() * one.element_size() for block in self.blocks for one in block if one is not None)
        return blocks + self.out.numel() * self.out.element_size()

    def _start(self, batch: int, length: int) -> None:
        shape = (len(self.blocks), 2, batch, self.kv_heads, length, self.head_dim)
        self.cache = torch.zeros(shape, dtype=self.embedding.dtype)

    def _forward(
        self, x: Float[Tensor, "batch words width"], place: Int[Tensor, "batch words"], first: int, mask: Tensor | None
    ) -> Float[Tensor, "batch vocabulary"]:
        """Scores after the last word; the words go into the cache from `first` on, `place` is where each stands in its sentence."""
        batch, number, _ = x.shape
        last = first + number
        cos, sin = self.cos[place][:, None], self.sin[place][:, None]
        half = self.head_dim // 2
        widths = (self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim)
        for index, (norm1, qkv, bias, output, norm2, gate_up, down) in enumerate(self.blocks):
            h = F.linear(F.rms_norm(x, norm1.shape, norm1, self.eps), qkv, bias)
            q, k, v = (part.view(batch, number, -1, self.head_dim).transpose(1, 2) for part in h.split(widths, dim=-1))
            q = q * cos + torch.cat([-q[..., half:], q[..., :half]], dim=-1) * sin
            k = k * cos + torch.cat([-k[..., half:], k[..., :half]], dim=-1) * sin
            keys, values = self.cache[index]
            keys[:, :, first:last], values[:, :, first:last] = k, v
            seen = F.scaled_dot_product_attention(
                q, keys[:, :, :last], values[:, :, :last], attn_mask=mask, enable_gqa=self.kv_heads != self.heads
            )
            x = x + F.linear(seen.transpose(1, 2).reshape(batch, number, -1), output)
            gate, up = F.linear(F.rms_norm(x, norm2.shape, norm2, self.eps), gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(F.rms_norm(x[:, -1], self.norm.shape, self.norm, self.eps), self.out)

    def generate(
        self, prompts: Sequence[Sequence[int]], allowed: Bool[Tensor, "batch vocabulary"] | None, **options: Any
    ) -> list[list[int]]:
        """What follows each prompt, as `stream` gives it, in the order of the prompts."""
        out = dict(self.stream(prompts, allowed, **options))
        return [out[row] for row in range(len(prompts))]

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        allowed: Bool[Tensor, "batch vocabulary"] | None,
        *,
        end: int,
        longest: int,
        once: Bool[Tensor, " vocabulary"] | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        prefix: Float[Tensor, "batch latents width"] | None = None,
    ) -> Iterator[tuple[int, list[int]]]:
        """A prompt's place and what follows it up to `end`, which is left out, as soon as it is known. A word of `once` is written
        at most once in a sentence."""
        batch, width = len(prompts), max(len(prompt) for prompt in prompts)
        before = 0 if prefix is None else prefix.shape[1]
        start = before + width
        ids = torch.zeros(batch, width, dtype=torch.long)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        for row, prompt in enumerate(prompts):  # padded on the left, so that all sentences continue at one place
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
        pad = width - lengths
        x = F.embedding(ids, self.embedding)
        column = torch.arange(start)
        is_real = torch.ones(batch, start, dtype=torch.bool)
        is_real[:, before:] = torch.arange(width) >= pad[:, None]
        if prefix is not None:
            x = torch.cat([prefix.to(x.dtype), x], dim=1)
        place = (is_real.cumsum(1) - 1).clamp(min=0)
        causal = column[None, :] <= column[:, None]
        mask = causal & is_real[:, None, :] | torch.eye(start, dtype=torch.bool)
        self._start(batch, start + longest)
        scores = self._forward(x, place, 0, mask[:, None])
        even = bool(is_real.all())
        step_mask = torch.cat([is_real, torch.ones(batch, longest, dtype=torch.bool)], dim=1)[:, None, None]
        place = place[:, -1:] + 1
        barred = None if allowed is None else torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
        out: list[list[int]] = [[] for _ in prompts]
        is_open = [True] * batch
        for step in range(longest):
            if barred is not None:
                scores = scores + barred
            if temperature > 0:
                chances = (scores.float() / temperature).softmax(dim=-1)
                word = torch.multinomial(chances, 1, generator=generator)
            else:
                word = scores.argmax(dim=-1, keepdim=True)
            for row, chosen in enumerate(word[:, 0].tolist()):
                if is_open[row]:
                    is_open[row] = chosen != end
                    if is_open[row]:
                        out[row].append(chosen)
                    else:
                        yield row, out[row]
            if not any(is_open):
                return
            if step + 1 == longest:
                break
            if once is not None and barred is not None:
                barred.scatter_(1, word, torch.where(once[word], -torch.inf, barred.gather(1, word)))
            now = start + step
            mask = None if even else step_mask[..., : now + 1]
            scores = self._forward(F.embedding(word, self.embedding), place, now, mask)
            place = place + 1
        yield from ((row, out[row]) for row in range(batch) if is_open[row])
