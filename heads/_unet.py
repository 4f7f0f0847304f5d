"""A U-Net for slices that is told what is known of them: two convolutions a level, scaled and shifted by a context (FiLM).

UNet(num_in=4, num_out=2, context_size=20, channels=16)(slices, context)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

NORM_GROUPS = 4


class UNet(nn.Module):
    """`channels` wide at the first level, at most four times that below; begins as zero. With `token_width` it sees features of
    patches, at the lowest level."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        context_size: int,
        *,
        channels: int,
        levels: int = 4,
        token_width: int | None = None,
    ):
        super().__init__()
        widths = [min(2**level, 4) * channels for level in range(levels)]
        self.divisor = 2 ** (levels - 1)
        self.down = nn.ModuleList(Block(n, width, context_size) for n, width in zip((num_in, *widths), widths))
        self.look = None if token_width is None else nn.Conv2d(token_width, widths[-1], kernel_size=1)
        if self.look is not None:  # what an encoder says weighs nothing until it is worth something
            nn.init.zeros_(self.look.weight)
            nn.init.zeros_(self.look.get_parameter("bias"))
        self.up = nn.ModuleList(
            Block(deep + fine, fine, context_size) for fine, deep in zip(widths[-2::-1], widths[:0:-1])
        )
        self.last = nn.Conv2d(channels, num_out, kernel_size=1)
        nn.init.normal_(self.last.weight, std=1e-3)
        nn.init.zeros_(self.last.get_parameter("bias"))

    def forward(
        self,
        x: Float[Tensor, "slices channels rows columns"],
        context: Float[Tensor, "numbers"],
        seen: Float[Tensor, "slices width cells_r cells_c"] | None = None,
    ) -> Float[Tensor, "slices out rows columns"]:
        rows, columns = x.shape[-2:]
        x = nn.functional.pad(x, (0, -columns % self.divisor, 0, -rows % self.divisor))
        kept = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.avg_pool2d(x, 2) if level else x, context)
            kept.append(x)
        x = kept.pop()
        if self.look is not None and seen is not None:
            x = x + self.look(nn.functional.interpolate(seen, size=x.shape[-2:], mode="nearest"))
        for block in self.up:
            fine = kept.pop()
            x = nn.functional.interpolate(x, size=fine.shape[-2:], mode="nearest")
            x = block(torch.cat([x, fine], dim=1), context)
        return self.last(x)[..., :rows, :columns].float()


class Block(nn.Module):
    """Two convolutions; the context scales and shifts what comes between them."""

    def __init__(self, num_in: int, num_out: int, context_size: int):
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, num_out, affine=False)
        self.tell = nn.Linear(context_size, 2 * num_out)
        nn.init.zeros_(
            self.tell.weight
        )  # as what is known of the scan: a random scale of every channel is a poor beginning
        nn.init.zeros_(self.tell.bias)
        self.second = nn.Conv2d(num_out, num_out, kernel_size=3, padding=1)

    def forward(self, x: Tensor, context: Float[Tensor, "numbers"]) -> Tensor:
        scale, shift = self.tell(context)[:, None, None].chunk(2)
        x = nn.functional.silu(self.norm(self.first(x)) * (1 + scale) + shift)
        return nn.functional.silu(self.second(x))
