"""Pretraining steps on one large GPU, beside what the arithmetic allows and beside MONAI's MaskedAutoEncoderViT.

    python -m benchmarks.gpu                 ViT-B and ViT-L, patches of 8 and 16 voxels, volumes of 160 x 192 x 160
    python -m benchmarks.gpu --toy           the same on a CPU with tiny models: does the script work

A floor is the step's operations at the rate of this GPU's own large matrix product. Ours predicts a third of the masked tokens,
MONAI all of them; each runs at the batch that suits it (MONAI: the largest that fits), so the ratio is of volumes per second.
Everything ends within `--minutes`: a case that would not fit in what is left is reported as left out. The report goes to
$OUT or runs/ as gpu.json and gpu.md.

Larmor's patch is 8 voxels. What knows it in the model are two linear layers, the first and the last; for 16 they are exchanged
here, and tokens are made at random, as many as the volume has patches.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundation.encoder import HEAD_DIM, Encoder, EncoderConfig
from foundation.engines import compile_regions, preferred_attention
from foundation.files import write_aside
from foundation.meters import matmul_rate, transformer_flops
from foundation.study import ACQUISITION_SIZE
from foundation.tokens import Tokens
from foundation.training import software_versions
from pretrain.masking import MaskedBatch
from pretrain.objectives.masked_autoencoding import Config, Objective

VISIBLE = 0.25
PREDICTED = 1 / 3  # of the masked tokens
WARM_UPS, STEPS = 3, 8


@dataclass(frozen=True)
class Case:
    """`at_most_ms` and `at_least` (ratio to MONAI) are the targets; None where nobody has set one."""

    name: str
    width: int
    depth: int
    patch: int
    batch: int
    shape: tuple[int, int, int] = (160, 192, 160)
    decoder_width: int = 384
    decoder_depth: int = 4
    at_most_ms: float | None = None
    at_least: float | None = None

    @property
    def tokens(self) -> int:
        x, y, z = (edge // self.patch for edge in self.shape)
        return x * y * z


CASES = (
    Case("ViT-L, patch 8", 1024, 24, 8, 16, at_most_ms=300, at_least=5.5),
    Case("ViT-B, patch 8", 768, 12, 8, 16, at_most_ms=240, at_least=5.0),
    Case("ViT-L, patch 16", 1024, 24, 16, 128, at_most_ms=225, at_least=2.0),
    Case("ViT-B, patch 16", 768, 12, 16, 128, at_least=1.8),
)
TOYS = (
    Case("toy, patch 8", 128, 2, 8, 1, (32, 32, 32), decoder_width=192, decoder_depth=1),
    Case("toy, patch 16", 192, 2, 16, 1, (32, 32, 32), decoder_width=192, decoder_depth=1),
)


@dataclass
class Result:
    case: Case
    step_ms: float = float("nan")
    volumes_per_s: float = float("nan")
    floor_ms: float = float("nan")
    memory_gb: float = float("nan")
    monai_volumes_per_s: float | None = None
    monai_batch: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def utilisation(self) -> float:
        return self.floor_ms / self.step_ms

    @property
    def ratio(self) -> float | None:
        return None if self.monai_volumes_per_s is None else self.volumes_per_s / self.monai_volumes_per_s

    def misses(self) -> list[str]:
        case, missed = self.case, []
        if case.at_most_ms is not None and not self.step_ms <= case.at_most_ms:
            missed.append(f"step > {case.at_most_ms:g} ms")
        if case.at_least is not None and self.ratio is not None and self.ratio < case.at_least:
            missed.append(f"ratio < {case.at_least:g}")
        return missed

    def row(self) -> str:
        monai = (
            "" if self.monai_volumes_per_s is None else f"{self.monai_volumes_per_s:.3g} at batch {self.monai_batch}"
        )
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}x"
        verdict = "; ".join([*(self.misses() or ["holds"]), *self.notes])
        return (
            f"| {self.case.name} | {self.case.batch} | {self.step_ms:.1f} | {self.floor_ms:.1f} | {self.utilisation:.0%} | "
            f"{self.volumes_per_s:.3g} | {self.memory_gb:.1f} | {monai} | {ratio} | {verdict} |"
        )


HEADER = (
    "| model | batch | step, ms | floor, ms | of the floor | volumes/s | peak, GB | MONAI volumes/s | ratio | verdict |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--toy", action="store_true", help="tiny models, on whatever there is")
    parser.add_argument("--minutes", type=float, default=7.5, help="all of it ends within this (default: %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    if not options.toy and not torch.cuda.is_available():
        print("benchmarks.gpu: no GPU here; --toy tries the script itself", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + 60 * options.minutes
    output = Path(os.environ.get("OUT", "runs"))
    rate = matmul_rate(str(device), device.type == "cuda", torch.get_num_threads())
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    results: list[Result] = []
    with preferred_attention(device) as attention:
        print(f"{machine}: {rate / 1e12:.3g} TFLOP/s in a large product; attention {attention}", flush=True)
        print(HEADER)
        for result in measured(TOYS if options.toy else CASES, device, rate, deadline, compiled=not options.no_compile):
            results.append(result)
            print(result.row(), flush=True)
            _write(output, machine, rate, results)
    return int(any(result.misses() for result in results))


def measured(
    cases: Sequence[Case], device: torch.device, rate: float, deadline: float, *, compiled: bool
) -> Iterator[Result]:
    """Each case, ours and then MONAI's; what the time does not suffice for is said."""
    for number, case in enumerate(cases):
        result = Result(case)
        if time.monotonic() > deadline - 20:
            result.notes.append("left out: no time")
            yield result
            continue
        share = time.monotonic() + (deadline - time.monotonic()) / (len(cases) - number)
        try:
            _measure_ours(result, device, rate, compiled=compiled)
        except torch.OutOfMemoryError:
            result.notes.append("ours does not fit")
        _empty(device)
        result.monai_volumes_per_s, result.monai_batch = monai_at_its_largest(case, device, min(share, deadline - 10))
        yield result


# ------------------------------------------------------------------------------------------------ ours


def _measure_ours(result: Result, device: torch.device, rate: float, *, compiled: bool) -> None:
    case = result.case
    objective, batch = our_model(case, device), our_batch(case, device)
    if compiled and device.type == "cuda":
        compile_regions(objective)
    seconds, result.memory_gb = timed(_optimisation(objective, lambda: objective(batch)["loss"], device), device)
    result.step_ms, result.volumes_per_s = 1000 * seconds, case.batch / seconds
    result.floor_ms = 1000 * our_operations(case, objective) / rate


def our_model(case: Case, device: torch.device) -> Objective:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=case.width, depth=case.depth))
    objective = Objective(encoder, Config(decoder_width=case.decoder_width, decoder_depth=case.decoder_depth))
    encoder.embed.patch = nn.Linear(case.patch**3, case.width)
    objective.decoder.to_voxels = nn.Linear(case.decoder_width, case.patch**3)
    return objective.to(device)


def our_batch(case: Case, device: torch.device) -> MaskedBatch:
    """Every token is real: the head fills the volume, which is the worst case."""
    visible = round(VISIBLE * case.tokens)
    targets = round(PREDICTED * (case.tokens - visible))
    return MaskedBatch(_tokens(case, visible, device), _tokens(case, targets, device))


def _tokens(case: Case, number: int, device: torch.device) -> Tokens:
    size = (case.batch, number)
    return Tokens(
        patches=torch.randn(*size, case.patch**3, device=device),
        centre_mm=80 * torch.randn(*size, 3, device=device),
        voxel_mm=torch.ones(*size, 3, device=device),
        contrast=torch.zeros(size, dtype=torch.long, device=device),
        acquisition=torch.zeros(*size, ACQUISITION_SIZE, device=device),
        series=torch.zeros(size, dtype=torch.long, device=device),
        cell=torch.zeros(*size, 3, dtype=torch.long, device=device),
        is_real=torch.ones(size, dtype=torch.bool, device=device),
    )


def our_operations(case: Case, objective: Objective) -> float:
    """Of a step, with this case's patch."""
    config = objective.encoder.config
    visible = round(VISIBLE * case.tokens)
    targets = round(PREDICTED * (case.tokens - visible))
    seen = visible + config.num_registers
    encode = transformer_flops(seen, case.width, case.depth, config.mlp_ratio)
    decode = transformer_flops(seen + targets, case.decoder_width, case.decoder_depth, config.mlp_ratio)
    ends = 2 * visible * case.width * (case.patch**3 + case.width) + 2 * seen * case.width * case.decoder_width
    return (
        3
        * case.batch
        * (encode + decode + ends + 2 * targets * case.decoder_width * (case.decoder_width + case.patch**3))
    )


# ------------------------------------------------------------------------------------------------ MONAI's


def monai_at_its_largest(case: Case, device: torch.device, until: float) -> tuple[float | None, int | None]:
    """Volumes per second at the largest batch that fits, by doubling; None if not even one volume does."""
    best: tuple[float | None, int | None] = (None, None)
    size = 1
    while size <= 2 * case.batch and time.monotonic() < until:
        try:
            seconds = _monai_seconds(case, device, size)
            if best[0] is None or size / seconds > best[0]:
                best = (size / seconds, size)
        except torch.OutOfMemoryError:
            break
        finally:
            _empty(device)
        size *= 2
    return best


def _monai_seconds(case: Case, device: torch.device, size: int) -> float:
    model = monai_model(case, device)
    volumes = torch.randn(size, 1, *case.shape, device=device)
    return timed(_optimisation(model, lambda: _monai_loss(model, volumes, case.patch), device), device)[0]


def monai_model(case: Case, device: torch.device) -> nn.Module:
    from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
        return MaskedAutoEncoderViT(
            in_channels=1,
            img_size=case.shape,
            pos_embed_type="sincos" if case.width % 6 == 0 else "learnable",  # it has no sines for a width of 1024
            patch_size=case.patch,
            masking_ratio=1 - VISIBLE,
            hidden_size=case.width,
            mlp_dim=4 * case.width,
            num_layers=case.depth,
            num_heads=case.width // HEAD_DIM,
            decoder_hidden_size=case.decoder_width,
            decoder_mlp_dim=4 * case.decoder_width,
            decoder_num_layers=case.decoder_depth,
            decoder_num_heads=case.decoder_width // HEAD_DIM,
        ).to(device)


def _monai_loss(model: nn.Module, volumes: Tensor, patch: int) -> Tensor:
    predicted, is_masked = model(volumes)
    cut = volumes.squeeze(1).unfold(1, patch, patch).unfold(2, patch, patch).unfold(3, patch, patch)
    truth = cut.reshape(len(volumes), -1, patch**3)
    error = (predicted - truth).square().mean(dim=-1)
    return (error * is_masked).sum() / is_masked.sum()


# ------------------------------------------------------------------------------------------------ measuring


def _optimisation(model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):  # MONAI has no bf16 on a CPU
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Median seconds of a step, and the most memory it took in GB (nothing on a CPU)."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(WARM_UPS + STEPS):
        began = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0
    return sorted(seconds[WARM_UPS:])[STEPS // 2], peak


def _empty(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _write(output: Path, machine: str, rate: float, results: Sequence[Result]) -> None:
    """After every case, so that a command that is cut short leaves what it has."""
    rows: list[dict[str, Any]] = [
        {**asdict(result), "utilisation": result.utilisation, "ratio": result.ratio, "missed": result.misses()}
        for result in results
    ]
    report = {"machine": machine, "matmul_flops": rate, "versions": software_versions(), "rows": rows}
    with write_aside(output / "gpu.json") as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")
    with write_aside(output / "gpu.md") as aside:
        aside.write_text(
            "\n".join([f"{machine}, {rate / 1e12:.3g} TFLOP/s\n", HEADER, *(r.row() for r in results)]) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
