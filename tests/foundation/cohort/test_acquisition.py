"""Scans: tissues as bright as published, noise as a coil makes it, and every structure where it was, on any grid."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from numpy.random import default_rng

from foundation.cohort.acquisition import (
    CONTRASTS,
    MEASURED_AS,
    RANDOM,
    Protocol,
    Scan,
    acquire,
    draw_protocol,
    labels_on,
    quantitative_maps,
    series_grid,
)
from foundation.cohort.anatomy import Anatomy, Subject, build_anatomy
from foundation.cohort.grids import block_mean
from foundation.cohort.materials import INDEX, MATERIALS, STRUCTURES, indices
from foundation.cohort.templates import BundledTemplate
from foundation.physics.artefacts import ARTEFACTS, draw_artefact
from foundation.physics.relaxometry import TissueTable, sample_tissues, typical_tissues
from foundation.physics.signal import Flair

SPACING_MM = 4.0
PHYSICS = tuple(name for name in CONTRASTS if name != RANDOM)


@lru_cache(maxsize=4)
def head(index: int = 1, spacing_mm: float = SPACING_MM, family: str = "usual") -> Anatomy:
    """Healthy; nothing may be painted into it."""
    subject = replace(Subject.draw(0, index), family=family, orientation="RAS", is_oblique=False)
    return build_anatomy(subject, BundledTemplate(), spacing_mm)


def clean(contrast: str, anatomy: Anatomy, seed: int = 0, **changed) -> Protocol:
    """A drawn protocol on the anatomy's own grid, with hardly any noise and nothing that spoils or shades."""
    spacing_mm = float(anatomy.spacing_mm[0])
    drawn = draw_protocol(contrast, anatomy.subject, spacing_mm, default_rng(seed))
    plain = {
        "voxel_mm": (spacing_mm,) * 3,
        "tilt_deg": (0.0,) * 3,
        "noise": 0.002,
        "bias": 0.0,
        "centre": 0.0,
        "artefact": None,
    }
    return replace(drawn, **(plain | changed))


def scan(anatomy: Anatomy, protocol: Protocol, tissues: TissueTable | None = None, seed: int = 0) -> Scan:
    tissues = sample_tissues(anatomy.subject.field_t, default_rng(7)) if tissues is None else tissues
    return acquire(anatomy, protocol, tissues, default_rng(seed))


def pure(anatomy: Anatomy, material: str, least: float = 0.95) -> np.ndarray:
    """Where a voxel is this material and hardly anything else, on the anatomy's own grid."""
    found = (anatomy.fraction([INDEX[material]]) > least).numpy()
    assert found.sum() > 20, (material, found.sum())
    return found


# -------------------------------------------------------------------------------- Every contrast


@pytest.mark.parametrize("family", ["usual", "shifted"])
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_every_contrast_is_finite_whole_and_not_negative(contrast, family):
    anatomy = head(family=family)
    one = scan(anatomy, draw_protocol(contrast, anatomy.subject, SPACING_MM, default_rng(3)))
    voxels = one.series.voxels
    assert voxels.dtype == np.float32 and np.isfinite(voxels).all() and voxels.min() >= 0
    np.testing.assert_array_equal(voxels, voxels.round())
    assert voxels.shape == one.labels.shape and 200 < np.quantile(voxels, 0.995) < 4001
    assert one.series.contrast == MEASURED_AS.get(contrast, contrast) and one.series.name == contrast


def test_usual_and_shifted_protocols_share_no_time():
    for contrast in PHYSICS:
        drawn = {}
        for family in ("usual", "shifted"):
            subject = Subject.draw(0, 1, family)
            protocols = [draw_protocol(contrast, subject, 2.0, default_rng(seed)) for seed in range(100)]
            drawn[family] = {
                name: [getattr(protocol.sequence, name) for protocol in protocols] for name in ("tr_ms", "te_ms")
            }
        for name in ("tr_ms", "te_ms"):
            low, high = sorted((drawn["usual"][name], drawn["shifted"][name]), key=min)
            assert max(low) < min(high), (contrast, name)


def test_protocols_differ_as_clinics_do():
    subject = Subject.draw(0, 1)
    protocols = [draw_protocol("T2w", subject, 2.0, default_rng(seed)) for seed in range(300)]
    assert np.mean([one.artefact is not None for one in protocols]) == pytest.approx(0.2, abs=0.07)
    assert {one.artefact.kind for one in protocols if one.artefact} == set(ARTEFACTS)
    assert {max(one.voxel_mm) for one in protocols} == {2.0, 4.0, 6.0}
    shifted = [draw_protocol("T1w", Subject.draw(0, 1, "shifted"), 2.0, default_rng(seed)) for seed in range(30)]
    assert {max(one.voxel_mm) for one in shifted} == {6.0, 8.0}  # T1w too is in thick slices in the family held apart
    assert {one.voxel_mm.index(max(one.voxel_mm)) for one in protocols if max(one.voxel_mm) > 2} == {0, 1, 2}
    assert 0.1 < np.mean([any(one.tilt_deg) for one in protocols]) < 0.7
    assert all(
        max(one.voxel_mm) == 2 for one in (draw_protocol("T1w", subject, 2.0, default_rng(s)) for s in range(30))
    )
    assert not any(draw_protocol("ADC", subject, 2.0, default_rng(seed)).artefact for seed in range(30))
    weak, strong = (draw_protocol("T2w", replace(subject, field_t=field), 2.0, default_rng(0)) for field in (0.55, 3.0))
    assert weak.noise > 2 * strong.noise


# -------------------------------------------------------------------------------- Brightness

# Ratios that published tissue values and protocols give, against white matter (facts/physics.md, 2.2 and 5): measured there
# T1w .68 and .23, T2w 1.54 and 3.52, FLAIR 1.14 and .10. The ranges hold what clinical protocols at 1.5 and 3 T show.
RATIOS = {
    "T1w": {"cortex": (0.58, 0.80), "ventricular fluid": (0.05, 0.40)},
    "T2w": {"cortex": (1.25, 1.80), "ventricular fluid": (2.4, 5.0)},
    "FLAIR": {"cortex": (1.0, 1.5), "ventricular fluid": (0.0, 0.15)},
    "PD": {"cortex": (1.02, 1.35), "ventricular fluid": (0.7, 1.6)},
}


@pytest.mark.parametrize("contrast", RATIOS)
def test_tissues_are_as_bright_against_white_matter_as_published(contrast):
    """At 2 mm, because no voxel of 4 mm holds cortex alone; three people at each field."""
    anatomy = head(spacing_mm=2.0)
    where = {name: pure(anatomy, name) for name in ("white matter", *RATIOS[contrast])}
    for seed in range(3):
        for field_t in (1.5, 3.0):
            tissues = sample_tissues(field_t, default_rng(seed))
            voxels = scan(anatomy, clean(contrast, anatomy, seed), tissues).series.voxels
            for name, (low, high) in RATIOS[contrast].items():
                ratio = voxels[where[name]].mean() / voxels[where["white matter"]].mean()
                assert low < ratio < high, (name, field_t, ratio)


def test_flair_nulls_this_patients_fluid_and_says_with_which_ti():
    anatomy = head()
    for seed in range(4):
        tissues = sample_tissues(3.0, default_rng(seed))
        one = scan(anatomy, clean("FLAIR", anatomy, seed), tissues)
        assert isinstance(one.protocol.sequence, Flair)
        at_null = one.protocol.sequence.nulling(float(tissues.t1[tissues.index("csf")])).ti_ms
        assert one.protocol.sequence.ti_ms == pytest.approx(at_null, rel=0.02)
        assert one.series.acquisition.inversion_time_ms == one.protocol.sequence.ti_ms
        voxels = one.series.voxels
        assert (
            voxels[pure(anatomy, "ventricular fluid", 0.9)].mean() < 0.2 * voxels[pure(anatomy, "white matter")].mean()
        )


@pytest.fixture(scope="module")
def diseased() -> tuple[Anatomy, dict[str, np.ndarray]]:
    """Cubes of every lesion's material in white matter, and where they are."""
    anatomy = build_anatomy(head().subject, BundledTemplate(), SPACING_MM)
    white = np.argwhere(pure(anatomy, "white matter", 0.9))
    lesions = [name for name in MATERIALS if INDEX[name] >= INDEX["necrosis"]]
    where = {}
    for name, (x, y, z) in zip(lesions, white[:: len(white) // len(lesions)].tolist(), strict=False):
        box = (slice(x, x + 2), slice(y, y + 2), slice(z, z + 2))
        anatomy.paint(box, INDEX[name], torch.ones(2, 2, 2))
        where[name] = np.zeros(anatomy.shape, bool)
        where[name][box] = True
    return anatomy, where


@pytest.mark.parametrize("field_t", [1.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_lesions_look_as_radiologists_expect_in_every_patient(diseased, seed, field_t):
    anatomy, where = diseased
    tissues, white = sample_tissues(field_t, default_rng(seed)), pure(anatomy, "white matter")
    images = {name: scan(anatomy, clean(name, anatomy, seed), tissues).series.voxels for name in PHYSICS}

    def shown(contrast: str, lesion: str) -> float:
        """Against white matter."""
        return float(images[contrast][where[lesion]].mean() / images[contrast][white].mean())

    assert shown("DWI", "acute infarct") > 1.5 and shown("ADC", "acute infarct") < 0.85
    assert shown("T2star", "haemorrhage") < 0.6 and shown("SWI", "haemorrhage") < 0.7
    assert shown("T1w-contrast", "enhancing tumour") > 1.2 * shown("T1w", "enhancing tumour")
    assert shown("T1w-contrast", "non-enhancing tumour") < 0.9 > shown("T1w", "non-enhancing tumour")
    assert shown("T1w", "necrosis") < 0.6 and shown("T2w", "necrosis") > 2
    for bright in ("oedema", "plaque", "white matter hyperintensity", "non-enhancing tumour"):
        # On FLAIR the long T1 of tumour takes back most of what its long T2 gives.
        assert shown("FLAIR", bright) > (1.0 if bright == "non-enhancing tumour" else 1.2), bright
        assert shown("T2w", bright) > 1.25 and shown("ADC", bright) > 1.05, bright


def test_adc_maps_show_the_tissues_own_adc_whatever_the_coil():
    """Within 5 %, at 2 mm; in cortex a twentieth of fluid would already add that."""
    anatomy = head(spacing_mm=2.0)
    tissues = sample_tissues(3.0, default_rng(1))
    flat, shaded = (
        scan(anatomy, clean("ADC", anatomy, bias=bias, centre=bias), tissues).series.voxels for bias in (0.0, 0.3)
    )
    for name in ("white matter", "thalamus", "putamen", "ventricular fluid", "brainstem", "cortex"):
        inside = pure(anatomy, name, 0.99)
        true = 1000 * float(tissues.adc[tissues.index(MATERIALS[name].tissue or "")])
        assert flat[inside].mean() == pytest.approx(true, rel=0.05), name
        assert shaded[inside].mean() == pytest.approx(flat[inside].mean(), rel=0.01), name
    assert (flat[pure(anatomy, "air", 0.99)] == 0).mean() > 0.99


def test_the_receive_field_shades_an_image_and_nothing_else():
    anatomy = head()
    flat, shaded = (scan(anatomy, clean("T1w", anatomy, bias=bias, noise=1e-4)).series.voxels for bias in (0.0, 0.2))
    white = pure(anatomy, "white matter")
    assert np.log(shaded[white] / flat[white]).std() > 0.03
    assert (flat[white].std() / flat[white].mean()) < 0.06  # texture alone


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_air_has_the_mean_and_deviation_of_rician_noise(noise):
    """Of magnitude 0 with sigma in each channel: mean sigma sqrt(pi / 2), mean over deviation 1.913."""
    anatomy = head()
    voxels = scan(anatomy, clean("T1w", anatomy, noise=noise)).series.voxels
    air = pure(anatomy, "air", 0.999)
    signal = scan(anatomy, clean("T1w", anatomy, noise=0.0)).series.voxels
    scale = voxels[pure(anatomy, "white matter")].mean() / signal[pure(anatomy, "white matter")].mean()
    sigma = noise * scale * signal[signal > 0.05 * signal.max()].mean()
    assert voxels[air].mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.1)
    assert voxels[air].mean() / voxels[air].std() == pytest.approx(1.913, rel=0.06)


def test_random_contrast_differs_between_repeats_and_between_materials():
    anatomy = head()
    means = []
    for seed in range(5):
        voxels = scan(anatomy, clean(RANDOM, anatomy, seed), seed=seed).series.voxels
        found = np.array(
            [voxels[pure(anatomy, name, 0.8)].mean() for name in ("white matter", "thalamus", "brainstem")]
        )
        assert np.ptp(found) > 0.02 * found.max()
        means.append(found / found.sum())
    assert len({tuple(np.argsort(one)) for one in means}) > 1 and np.std(means, axis=0).min() > 0.02


# -------------------------------------------------------------------------------- Artefacts


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_an_artefact_is_recorded_and_comes_back_from_its_record(kind):
    anatomy = head()
    artefact = draw_artefact(kind, 4, default_rng(5))
    protocol = clean("T1w", anatomy, artefact=artefact)
    one, again = scan(anatomy, protocol), scan(anatomy, protocol)
    np.testing.assert_array_equal(one.series.voxels, again.series.voxels)
    facts = json.loads(json.dumps(one.protocol.facts()))["artefact"]
    assert facts.pop("kind") == kind

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    assert ARTEFACTS[kind](**{name: tuples(value) for name, value in facts.items()}) == artefact
    sound = scan(anatomy, clean("T1w", anatomy)).series.voxels
    assert abs(one.series.voxels / one.series.voxels.mean() - sound / sound.mean()).mean() > 0.02
    assert (one.labels == anatomy.labels).all()


def test_facts_say_everything_that_made_the_image():
    anatomy = head()
    protocol = clean("FLAIR", anatomy)
    facts = json.loads(json.dumps(scan(anatomy, protocol).protocol.facts()))
    assert isinstance(protocol.sequence, Flair)
    assert facts["sequence"]["kind"] == "Flair" and facts["sequence"]["tr_ms"] == protocol.sequence.tr_ms
    assert facts["artefact"] is None and facts["contrast"] == "FLAIR" and facts["noise"] == protocol.noise
    assert scan(anatomy, clean(RANDOM, anatomy)).protocol.facts()["sequence"] is None


# -------------------------------------------------------------------------------- Places


def centroid_mm(labels: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
    return apply_affine(affine, np.argwhere(labels == STRUCTURES[name])).mean(axis=0)


GRIDS = {
    "own": ((4.0, 4.0, 4.0), (0.0, 0.0, 0.0)),
    "axial": ((4.0, 4.0, 8.0), (0.0, 0.0, 0.0)),
    "coronal": ((4.0, 8.0, 4.0), (0.0, 0.0, 0.0)),
    "sagittal": ((12.0, 4.0, 4.0), (0.0, 0.0, 0.0)),
    "tilted": ((4.0, 4.0, 4.0), (9.0, -6.0, 5.0)),
    "thick and tilted": ((4.0, 4.0, 8.0), (9.0, -6.0, 5.0)),
}


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PSR"])
@pytest.mark.parametrize("grid", GRIDS)
def test_image_and_labels_show_every_structure_where_it_is_in_the_patient(grid, orientation):
    own = head()
    voxel_mm, tilt_deg = GRIDS[grid]
    anatomy = replace(own, mapping=replace(own.mapping, subject=replace(own.subject, orientation=orientation)))
    one = scan(anatomy, clean("T2w", anatomy, voxel_mm=voxel_mm, tilt_deg=tilt_deg))
    if tilt_deg == (0.0, 0.0, 0.0):
        assert one.series.orientation == orientation
    np.testing.assert_allclose(sorted(one.series.spacing_mm), sorted(voxel_mm))
    for name in ("cerebellum", "cerebral white matter", "brainstem", "lateral ventricle"):
        there = centroid_mm(own.labels, own.affine, name)
        # Half of the thickest side would be a shifted grid; a structure's edge in thick slices may lie a little elsewhere.
        atol = 1e-9 if grid == "own" else 0.2 * max(voxel_mm)
        np.testing.assert_allclose(centroid_mm(one.labels, one.series.affine, name), there, atol=atol, err_msg=name)
    # Fluid is bright under its own label, and less so under the label moved by a voxel to any side.
    voxels, ventricle = one.series.voxels, one.labels == STRUCTURES["lateral ventricle"]
    here = voxels[ventricle].mean()
    assert here > 1.8 * voxels[one.labels == STRUCTURES["cerebral white matter"]].mean()
    for axis in range(3):
        for step in (-1, 1):
            assert voxels[np.roll(ventricle, step, axis)].mean() < 0.97 * here, (axis, step)


def test_orientation_turns_the_array_and_nothing_else():
    own = head()
    scans = {}
    for orientation in ("RAS", "LAS", "PSR"):
        anatomy = replace(own, mapping=replace(own.mapping, subject=replace(own.subject, orientation=orientation)))
        scans[orientation] = scan(anatomy, clean("T1w", anatomy))
    plain = scans["RAS"]
    np.testing.assert_array_equal(scans["LAS"].series.voxels, plain.series.voxels[::-1])
    np.testing.assert_array_equal(scans["PSR"].series.voxels, plain.series.voxels.transpose(1, 2, 0)[::-1])
    np.testing.assert_array_equal(scans["PSR"].labels, plain.labels.transpose(1, 2, 0)[::-1])


def test_labels_on_thick_slices_are_what_fills_most_of_them():
    """Against the plain sum over a slice's own voxels: structure by structure, both materials by their shares."""
    anatomy = head()
    shape, affine = series_grid(anatomy, clean("T2w", anatomy, voxel_mm=(4.0, 4.0, 8.0)))
    filled = torch.stack([anatomy.fraction([0])] + [anatomy.fraction(indices(name)) for name in STRUCTURES])
    mean = block_mean(filled, anatomy.affine, 1, 1, 2)[0]
    best = mean.argmax(dim=0)
    want = np.array([0, *STRUCTURES.values()])[best.numpy()]
    is_clear = (mean.topk(2, dim=0).values[0] - mean.topk(2, dim=0).values[1] > 1e-3).numpy()
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(labels_on(anatomy, shape, affine)[is_clear], want[is_clear])


# -------------------------------------------------------------------------------- Maps


def test_quantitative_maps_are_what_the_simulator_put_in():
    anatomy, tissues = head(), typical_tissues(3.0)
    maps = quantitative_maps(anatomy, tissues)
    assert set(maps) == {"T1", "T2", "ADC"}
    for name, values in maps.items():
        assert values.shape == anatomy.shape and np.isfinite(values).all()
        assert not values[pure(anatomy, "air")].any(), name
    for material in ("white matter", "thalamus", "ventricular fluid"):
        row = tissues.index(MATERIALS[material].tissue or "")
        where = pure(anatomy, material, 0.9)
        np.testing.assert_allclose(maps["T1"][where], float(tissues.t1[row]), rtol=1e-5)
        np.testing.assert_allclose(maps["T2"][where], float(tissues.t2[row]), rtol=1e-5)
        np.testing.assert_allclose(maps["ADC"][where], 1000 * float(tissues.adc[row]), rtol=1e-5)
