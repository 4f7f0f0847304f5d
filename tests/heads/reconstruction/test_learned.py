"""The unrolled network: held to its samples, told what is known, trainable in every weight, and the same after saving."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from foundation.cohort.patient import CohortConfig, make_anatomy
from foundation.cohort.raw import simulate_raw, write_raw
from foundation.cohort.stream import StreamConfig
from foundation.encoder import EncoderConfig
from foundation.errors import InputError
from foundation.raw import RawData
from foundation.reading.nifti import read_nifti
from foundation.reconstruction import metrics
from foundation.reconstruction.command import Undersampling
from foundation.reconstruction.methods import solve_normal, solve_sense
from foundation.training import Draw, TrainingConfig
from heads.reconstruction.command import LearnedMethod, learned, reconstruct_command
from heads.reconstruction.network import PENALTY, START_PENALTY, Scans, Unrolled, UnrolledConfig, ssim
from heads.reconstruction.scan import CONTEXT_SIZE, Scan
from heads.reconstruction.tasks import as_magnitude
from heads.reconstruction.training import CohortScans, TrainReconstructionConfig, begun, train_reconstruction

SMALL = UnrolledConfig(cascades=2, channels=8)
WITH_ENCODER = UnrolledConfig(cascades=2, channels=8, encoder=EncoderConfig(width=64, depth=1))


@pytest.fixture(scope="module")
def raw() -> RawData:
    """Two complete slices of a synthetic head."""
    anatomy, tissues = make_anatomy(CohortConfig(spacing_mm=4.0), 0)
    return simulate_raw(anatomy, tissues, "T2w", default_rng(0), num_slices=2, num_coils=6, noise=0.01)


def accelerated(raw: RawData, acceleration: int = 3) -> RawData:
    return raw.keep(Undersampling(acceleration, "random", 8).draw(raw))


def scan_of(raw: RawData, config: UnrolledConfig, **options: Any) -> Scan:
    return Scan.of(accelerated(raw), with_tokens=config.encoder is not None, **options).aiming_at(raw)


def make(config: UnrolledConfig) -> Unrolled:
    torch.manual_seed(0)
    return Unrolled(config)


@pytest.mark.parametrize("config", [SMALL, WITH_ENCODER], ids=["alone", "with an encoder"])
def test_the_loss_is_finite_and_every_weight_gets_a_gradient(raw: RawData, config: UnrolledConfig) -> None:
    network, scan = make(config), scan_of(raw, config)
    if scan.tokens is not None:
        scan.tokens.acquisition.fill_(1.0)
    scan.context.fill_(1.0)
    for parameter in network.parameters():  # what begins at zero shuts off what comes before it
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=1e-3)
    losses = network(Scans((scan, scan)))
    assert torch.isfinite(losses["loss"])
    losses["loss"].backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("config", [SMALL, WITH_ENCODER], ids=["alone", "with an encoder"])
@torch.no_grad()
def test_slices_do_not_see_each_other(raw: RawData, config: UnrolledConfig) -> None:
    network = make(config).eval()
    together = network.images(scan_of(raw, config))
    assert together.shape == (2, *raw.shape) and together.dtype == torch.complex64
    scan = scan_of(raw, config)
    parts = {name: getattr(scan, name)[1:] for name in ("kspace", "maps", "blurred")}
    tokens = None if scan.tokens is None else scan.tokens.take(torch.arange(len(scan.tokens)).expand(2, -1))
    if tokens is not None:
        tokens = type(tokens)(**{k: v[1:] if isinstance(v, torch.Tensor) else v for k, v in vars(tokens).items()})  # pyright: ignore[reportArgumentType]
    alone = network.images(Scan(**parts, mask=scan.mask, context=scan.context, scale=scan.scale, tokens=tokens))
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_refinement_it_is_sense(raw: RawData) -> None:
    """Each step's solution stays near the one before, so that what is left unexplained is ever less."""
    network, scan = make(SMALL), scan_of(raw, SMALL)
    for refine in (*network.refine, network.coils):
        refine.last.weight.zero_()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue, reportOptionalMemberAccess]
    operator, found = scan.operator, network.images(scan)
    start = solve_sense(operator, scan.kspace, SMALL.start_steps, START_PENALTY)
    left = operator.adjoint(scan.kspace - operator.forward(start))
    expected = start + solve_normal(operator, left, SMALL.data_steps, PENALTY)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    def misfit(image: torch.Tensor) -> float:
        return float((operator.forward(image) - scan.kspace).norm())

    assert misfit(found) < misfit(start) < misfit(operator.adjoint(scan.kspace))


@torch.no_grad()
def test_where_all_samples_are_spoilt_they_count_less(raw: RawData) -> None:
    """A refinement that is not in the samples is undone by the next step, unless the samples are known to be wrong."""
    network = make(SMALL.model_copy(update={"channels": 4}))
    whole = as_magnitude(raw, default_rng(0))
    torch.nn.init.normal_(network.refine[0].last.weight)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    network.refine[1].last.weight.zero_()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    trusted, spoilt = (Scan.of(whole, fault=fault) for fault in (None, "ghost"))
    left = [float((network.images(scan) - scan.operator.adjoint(scan.kspace)).norm()) for scan in (trusted, spoilt)]
    assert left[0] < 0.3 * left[1]


@torch.no_grad()
def test_with_hard_consistency_the_samples_are_what_they_were(raw: RawData) -> None:
    """With maps that see everything alone: no image of several coils explains samples that no image has."""
    network = make(SMALL).eval()
    alone = RawData(raw.kspace.sum(1, keepdim=True), raw.mask, noise=None)
    scan = Scan.of(accelerated(alone))
    for refine in network.refine:
        torch.nn.init.normal_(refine.last.weight)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    held, free = (network.reconstruct(scan, hard=hard).image for hard in (True, False))
    torch.testing.assert_close(scan.operator.forward(held), scan.kspace, atol=1e-4, rtol=1e-4)
    assert float((scan.operator.forward(free) - scan.kspace).norm() / scan.kspace.norm()) > 0.1


@torch.no_grad()
def test_a_plain_network_never_sees_the_samples_again_and_an_untold_one_no_context(raw: RawData) -> None:
    scan = scan_of(raw, SMALL)
    plain = make(SMALL.model_copy(update={"unrolled": False})).eval()
    assert not hasattr(plain, "penalty")
    assert float((plain.images(scan) - scan.operator.adjoint(scan.kspace)).abs().max()) < 0.1
    untold = make(SMALL.model_copy(update={"context": False})).eval()
    other = replace(scan, context=scan.context + 1)
    assert torch.equal(untold.images(scan), untold.images(other))
    assert not torch.equal(make(SMALL).images(scan), make(SMALL).images(other))


@torch.no_grad()
def test_doubt_is_positive_and_part_of_what_the_command_says(raw: RawData) -> None:
    method = LearnedMethod(make(SMALL).eval())
    image = method(accelerated(raw))
    assert image.shape == method.maps["doubt"].shape == method.maps["unexplained"].shape == raw.target.shape  # pyright: ignore[reportOptionalMemberAccess]
    assert bool((method.maps["doubt"] > 0).all())


@torch.no_grad()
def test_scale_and_what_is_known_reach_the_network(raw: RawData) -> None:
    network = make(SMALL).eval()
    kept = accelerated(raw)
    loud = RawData(1e-6 * kept.kspace, kept.mask, noise=None if kept.noise is None else 1e-12 * kept.noise)
    torch.testing.assert_close(1e6 * learned(network, loud), learned(network, kept), rtol=1e-3, atol=1e-3)
    plain = Scan.of(kept)
    assert plain.context.shape == (CONTEXT_SIZE,)
    blind = Scan.of(RawData(kept.kspace, kept.mask))
    assert plain.context[2] == 1 and blind.context[2] == 0
    other = Scan.of(kept, denoise=0.0)
    assert torch.equal(network.images(plain), network.images(other)), "it begins without listening"
    for name, parameter in network.named_parameters():
        if name.endswith("tell.weight"):
            torch.nn.init.normal_(parameter)
    assert not torch.equal(network.images(plain), network.images(other))
    assert not torch.equal(plain.context, Scan.of(kept, contrast="T2w").context)


def test_the_target_goes_from_noisy_to_clean(raw: RawData) -> None:
    assert raw.target is not None
    noisy, half, clean = (scan_of(raw, SMALL, denoise=d) for d in (0.0, 0.5, 1.0))
    assert noisy.target is not None and half.target is not None and clean.target is not None
    torch.testing.assert_close(clean.target * clean.scale, raw.target)
    torch.testing.assert_close(half.target, (noisy.target + clean.target) / 2)
    bright = clean.target > 0.2  # where the magnitude's noise is that of one part
    assert raw.sigma is not None
    noise = (noisy.target - clean.target)[bright]
    assert float(noise.std()) * noisy.scale == pytest.approx(raw.sigma, rel=0.3)


def test_ssim_to_learn_by_is_the_one_to_measure_by() -> None:
    rng = default_rng(0)
    x = rng.random((3, 15, 12)).astype(np.float32)
    y = x + 0.2 * rng.standard_normal(x.shape).astype(np.float32)
    assert float(ssim(torch.from_numpy(x), torch.from_numpy(y))) == pytest.approx(metrics.ssim(x, y), abs=1e-4)


@pytest.mark.parametrize("config", [SMALL, WITH_ENCODER], ids=["alone", "with an encoder"])
def test_a_saved_network_gives_the_same_image(raw: RawData, config: UnrolledConfig, tmp_path: Path) -> None:
    network = make(config).eval()
    network.save(tmp_path / "model", card="# test\n", provenance={})
    loaded = Unrolled.load(tmp_path / "model")
    assert loaded.config == config
    assert torch.equal(learned(loaded, accelerated(raw)), learned(network, accelerated(raw)))


def small_training(steps: int) -> TrainReconstructionConfig:
    return TrainReconstructionConfig(
        network=SMALL,
        training=TrainingConfig(
            steps=steps,
            batch_size=1,
            learning_rate=5e-3,
            warmup_steps=2,
            log_every=5,
            weight_decay=0.0,
            precision="fp32",
        ),
        cohort=StreamConfig(subjects=1, spacing_mm=4.0, contrasts=("T2w",), missing_series=0.0),
        num_slices=2,
        num_coils=(6, 6),
    )


def unclipped(config: TrainReconstructionConfig) -> TrainReconstructionConfig:
    """The norm of a gradient is that of all networks together."""
    return config.model_copy(update={"training": config.training.model_copy(update={"clip_norm": 1e3})})


def test_samples_are_functions_of_their_draw() -> None:
    samples = CohortScans(small_training(1))
    one, same, other = (samples[Draw(0, seed)] for seed in (1, 1, 2))
    assert torch.equal(one.kspace, same.kspace) and torch.equal(one.context, same.context)
    assert one.kspace.shape != other.kspace.shape or not torch.equal(one.kspace, other.kspace)
    assert one.target is not None and float(one.target.max()) > 0.3
    assert not (one.kspace * ~one.mask).any()
    every = CohortScans(small_training(1)).make(Draw(0, 5))
    assert len(one.kspace) == len(every.kspace) > 1
    single = CohortScans(small_training(1).model_copy(update={"slices_a_step": 1}))
    firsts = [single[Draw(0, seed)] for seed in range(0, 20, 5)]  # one variant, its slices in turn
    assert {len(scan.kspace) for scan in firsts} == {1} and not torch.equal(firsts[0].kspace, firsts[1].kspace)
    tokens = Scan.of(accelerated(samples.raw(0, default_rng(0))), with_tokens=True)
    assert tokens.tokens is not None and tokens.only(1).tokens is not None
    torch.testing.assert_close(tokens.only(1).tokens.patches[0], tokens.tokens.patches[1])  # pyright: ignore[reportOptionalMemberAccess]


def test_a_network_that_goes_on_begins_as_what_it_goes_on_from(raw: RawData, tmp_path: Path) -> None:
    before, eyes = make(SMALL), make(WITH_ENCODER)
    before.save(tmp_path / "before", card="# test\n", provenance={})
    assert eyes.encoder is not None
    eyes.encoder.save(tmp_path / "eyes", card="# test\n", provenance={})
    config = small_training(1).model_copy(
        update={"start": tmp_path / "before", "encoder_start": tmp_path / "eyes", "beside": {"eyes": WITH_ENCODER}}
    )
    torch.manual_seed(5)
    same, looking = (begun(Unrolled(one), config).eval() for one in (SMALL, WITH_ENCODER))
    assert looking.encoder is not None
    for name, value in eyes.encoder.state_dict().items():
        assert torch.equal(looking.encoder.state_dict()[name], value), name
    wanted = learned(before, accelerated(raw))
    assert torch.equal(learned(same, accelerated(raw)), wanted)
    torch.testing.assert_close(learned(looking, accelerated(raw)), wanted)  # features weigh nothing yet


def test_it_learns_a_scan(raw: RawData) -> None:
    network, batch = make(SMALL), Scans((scan_of(raw, SMALL),))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    values = []
    for _ in range(40):
        loss = network(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < values[0] - math.log(2)  # half the error and more


def test_a_training_run_leaves_a_model_for_the_command(
    raw: RawData, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    network, result = train_reconstruction(small_training(6), tmp_path / "run", on_start=lambda text: None)
    assert result.records[-1]["step"] == 6 and np.isfinite(result.last_loss)
    write_raw(tmp_path / "raw.h5", raw, subject="sub-00000")
    options = {"acceleration": 3, "mask": "random", "calibration": 8}
    reconstruct_command(
        tmp_path / "raw.h5", tmp_path / "out", methods=["zero-filled"], **options, model=tmp_path / "run" / "model"
    )
    assert "may show what was not measured" in capsys.readouterr().out
    shown = read_nifti(tmp_path / "out" / "learned.nii.gz").voxels.transpose(2, 0, 1)
    expected = learned(network, accelerated(raw)).numpy()
    np.testing.assert_allclose(shown, expected, atol=1e-3 * float(expected.max()))
    assert {path.name for path in (tmp_path / "out").glob("learned-*")} == {
        "learned-doubt.nii.gz",
        "learned-unexplained.nii.gz",
    }


def test_networks_that_learn_together_do_not_know_of_each_other(tmp_path: Path) -> None:
    alone, beside = (
        unclipped(small_training(3)),
        {"untold": SMALL.model_copy(update={"context": False}), "tokens": WITH_ENCODER},
    )
    one, _ = train_reconstruction(alone, tmp_path / "alone", on_start=lambda text: None)
    together = alone.model_copy(update={"beside": beside})
    same, result = train_reconstruction(together, tmp_path / "together", on_start=lambda text: None)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, atol=1e-5, rtol=1e-3)
    assert {"model loss", "untold loss", "tokens error"} <= set(result.records[-1])
    for name, config in beside.items():
        assert Unrolled.load(tmp_path / "together" / name).config == config


def test_a_training_can_begin_with_a_models_weights(tmp_path: Path) -> None:
    before = make(SMALL)
    before.save(tmp_path / "model", card="# test\n", provenance={})
    config = small_training(1)
    still = config.training.model_copy(update={"learning_rate": 0.0, "final_learning_rate": 0.0})
    config = config.model_copy(update={"start": tmp_path / "model", "training": still})
    after, _ = train_reconstruction(config, tmp_path / "run", on_start=lambda text: None)
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value)


def test_the_learned_method_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has a model"):
        reconstruct_command(tmp_path / "k.npy", tmp_path / "out", methods=["learned"])


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_that_is_none_is_refused(strength: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        reconstruct_command(tmp_path / "k.npy", tmp_path / "out", denoise=strength)
