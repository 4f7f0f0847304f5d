"""Fast decoding of a small Llama: our own loop over its weights, with a cache of fixed size, all sentences in one batch.

    StaticDecoder(model).generate(prompts, allowed, end=..., longest=72)

A token of a small model is a few hundred microseconds of arithmetic and, in transformers' generate, milliseconds of Python. Here
the projections of a block are joined, queries and keys are rotated together as complex numbers, and keys and values are written
into a cache of fixed size. A large model is bound by reading its weights, so they lie as its one-row products read them
(`Product`). A test holds what is written against transformers' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class Product:
    """x W' + b on a CPU, with W where one row of x at a time gets it fastest: for a row, torch's own linear map is half as fast.

    In fp32 that is W's transpose, in bf16 the blocks that oneDNN's kernels read, by the calls that torch.compile makes.
    """

    def __init__(self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None = None):
        self.bias = None if bias is None else bias.detach()
        self.num_bytes = weight.numel() * weight.element_size()
        self.is_packed = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        held = weight.detach()
        self.held = (
            torch.ops.mkldnn._reorder_linear_weight(held.contiguous(), 1) if self.is_packed else held.t().contiguous()
        )

    def __call__(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.held, self.bias, "none", [], "")
        out = x.reshape(-1, x.shape[-1]) @ self.held
        return (out if self.bias is None else out + self.bias).view(*x.shape[:-1], -1)


class StaticDecoder:
    """A view of a LlamaForCausalLM: its weights, joined once. Made anew after the weights change."""

    @torch.no_grad()
    def __init__(self, model: Any):
        config = model.config
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.eps = config.rms_norm_eps
        self.embedding = model.get_input_embeddings().weight.detach()
        self.norm, self.out = model.model.norm.weight, Product(model.lm_head.weight)
        self.blocks = []
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            maps = attention.q_proj, attention.k_proj, attention.v_proj
            weights = [self._paired(maps[0].weight), self._paired(maps[1].weight), maps[2].weight]
            biases = [one.bias for one in maps]
            if biases[0] is not None:
                biases[:2] = [self._paired(one) for one in biases[:2]]
            assert attention.o_proj.bias is None and mlp.up_proj.bias is None
            self.blocks.append(
                (
                    layer.input_layernorm.weight,
                    Product(torch.cat(weights), None if biases[0] is None else torch.cat(biases)),
                    Product(attention.o_proj.weight),
                    layer.post_attention_layernorm.weight,
                    Product(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])),
                    Product(mlp.down_proj.weight),
                )
            )
        positions = torch.arange(config.max_position_embeddings)[None]
        cos, sin = model.model.rotary_emb(self.embedding[:1][None].float(), positions)
        half = self.head_dim // 2
        self.turns = torch.complex(cos[0, :, :half], sin[0, :, :half])  # (positions, half a head)

    def _paired(self, rows: Tensor) -> Tensor:
        """A projection's rows with those that rotate together side by side, so that they are one complex number. The products of
        queries and keys are the same in any order."""
        heads = rows.unflatten(0, (-1, 2, self.head_dim // 2))
        return heads.transpose(1, 2).reshape(rows.shape)

    @property
    def num_bytes(self) -> int:
        """Weights that one token reads; of the embedding only a row."""
        parts = [self.out, *(one for block in self.blocks for one in block)]
        return sum(one.num_bytes if isinstance(one, Product) else one.numel() * one.element_size() for one in parts)

    def _start(self, batch: int, length: int) -> None:
        shape = (len(self.blocks), 2, batch, length, self.kv_heads, self.head_dim)
        self.cache = torch.zeros(shape, dtype=self.embedding.dtype)

    @torch.inference_mode()
    def _forward(
        self, x: Float[Tensor, "batch words width"], place: Int[Tensor, "batch words"], first: int, mask: Tensor | None
    ) -> Float[Tensor, "batch vocabulary"]:
        """Scores after the last word; the words go into the cache from `first` on, `place` is where each stands in its sentence."""
        batch, number, _ = x.shape
        last = first + number
        turn = self.turns[place][:, :, None]
        rotated = self.heads + self.kv_heads
        for index, (norm1, qkv, output, norm2, gate_up, down) in enumerate(self.blocks):
            h = qkv(F.rms_norm(x, norm1.shape, norm1, self.eps))
            h = h.view(batch, number, rotated + self.kv_heads, self.head_dim)
            pairs = torch.view_as_complex(h[:, :, :rotated].float().unflatten(-1, (-1, 2)))
            qk = torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
            keys, values = self.cache[index]
            keys[:, first:last], values[:, first:last] = qk[:, :, self.heads :], h[:, :, rotated:]
            seen = F.scaled_dot_product_attention(
                qk[:, :, : self.heads].transpose(1, 2), keys[:, :last].transpose(1, 2), values[:, :last].transpose(1, 2),
                attn_mask=mask, enable_gqa=self.kv_heads != self.heads,
            )  # fmt: skip
            x = x + output(seen.transpose(1, 2).flatten(2))
            gate, up = gate_up(F.rms_norm(x, norm2.shape, norm2, self.eps)).chunk(2, dim=-1)
            x = x + down(F.silu(gate).mul_(up))
        return self.out(F.rms_norm(x[:, -1], self.norm.shape, self.norm, self.eps))

    def generate(
        self, prompts: Sequence[Sequence[int]], allowed: Bool[Tensor, "batch vocabulary"] | None, **options: Any
    ) -> list[list[int]]:
        """What follows each prompt, as `stream` gives it, in the order of the prompts."""
        out = dict(self.stream(prompts, allowed, **options))
        return [out[row] for row in range(len(prompts))]

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
        at most once in a sentence.

        Gradients are off in `_forward`, and not around the whole: whoever takes a sentence works on in between.
        """
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
