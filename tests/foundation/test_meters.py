"""Formulas against countings: operations against torch's own counter, bytes against the tensors there are."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foundation.encoder import Encoder, EncoderConfig
from foundation.meters import Meter, SaysWork, Work, timed
from foundation.scaling import as_bytes, memory_of, traffic_of
from foundation.study import ACQUISITION_SIZE
from foundation.tokens import PATCH_VOXELS, Tokens
from pretrain.masking import MaskedBatch
from pretrain.objectives.masked_autoencoding import Config, Objective


def tokens(studies: int, number: int) -> Tokens:
    size = (studies, number)
    return Tokens(
        patches=torch.randn(*size, PATCH_VOXELS),
        centre_mm=80 * torch.randn(*size, 3),
        voxel_mm=torch.ones(*size, 3),
        contrast=torch.zeros(size, dtype=torch.long),
        acquisition=torch.zeros(*size, ACQUISITION_SIZE),
        series=torch.zeros(size, dtype=torch.long),
        cell=torch.zeros(*size, 3, dtype=torch.long),
        is_real=torch.ones(size, dtype=torch.bool),
    )


@pytest.mark.parametrize(("width", "visible", "targets"), [(192, 40, 70), (384, 300, 100)])
def test_the_formula_of_operations_is_what_torch_counts(width: int, visible: int, targets: int) -> None:
    """Within 2 %: small embeddings are not in the formula."""
    objective = Objective(Encoder(EncoderConfig(width=width, depth=4)), Config(decoder_width=192))
    batch = MaskedBatch(tokens(2, visible), tokens(2, targets))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(batch)["loss"].backward()
    assert isinstance(objective, SaysWork)
    work = objective.work(batch)
    assert work.tokens == 2 * (visible + targets)
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_memory_and_traffic_by_formula() -> None:
    """1000 weights, of which 800 learn, on four processes."""

    def kept(engine) -> float:
        return memory_of(engine, 4, weights=1000, trained=800, averaged=True).total

    assert kept("single") == kept("ddp") == 4000 + 3200 + 6400 + 4000
    assert kept("zero1") == 4000 + 800 + 3200 + 1600 + 4000, "a flat copy of its part beside the weights"
    assert kept("zero2") == 4000 + 800 + 800 + 1600 + 4000
    assert kept("zero3") == kept("fsdp2") == kept("single") / 4
    assert traffic_of("single", 1, trained=800) == 0
    assert traffic_of("ddp", 4, trained=800) == traffic_of("zero2", 4, trained=800) == 2 * 3 / 4 * 3200
    assert traffic_of("fsdp2", 4, trained=800) == 1.5 * traffic_of("ddp", 4, trained=800)
    assert as_bytes(4_910_000_000.0) == "4.91 GB"


def test_a_meter_counts_between_two_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("foundation.meters.time.perf_counter", lambda: clock[0])

    def batches():
        for _ in range(2):
            clock[0] += 1.0
            yield "batch"

    meter = Meter(world=2, peak_flops=100.0)
    for _ in timed(batches(), meter):
        meter.count(4, Work(tokens=10, flops=50.0))
        clock[0] += 3.0
    reading = meter.reading()
    assert reading == {"samples_per_s": 2.0, "waiting_for_data": 0.25, "tokens_per_s": 5.0, "flop_utilisation": 0.125}
    clock[0] += 1.0
    assert meter.reading()["samples_per_s"] == 0.0
