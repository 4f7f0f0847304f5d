"""Contrasts by words and by physics, each alone and against the other, on what scanners of several makers write."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.reading.dicom.contrast import by_physics, by_words, recognise
from foundation.reading.dicom.headers import SeriesFacts


def facts(
    words: str = "", te: float | None = None, tr: float | None = None, ti: float | None = None, **known: Any
) -> SeriesFacts:
    plain: dict[str, Any] = {
        "uid": "1", "study_uid": "1", "subject": "", "date": "", "number": 1, "modality": "MR", "sop_class": "MR Image Storage",
        "is_colour": False, "kind": "classic", "mosaic": False, "image_type": (), "words": words, "agent": None,
        "acquisition_contrast": "", "scanning": (), "is_3d": False, "echo_time_ms": te, "repetition_time_ms": tr,
        "inversion_time_ms": ti, "flip_angle_deg": None, "field_strength_t": None, "vendor": None, "annotated": False,
    }  # fmt: skip
    return SeriesFacts(**(plain | known))


@pytest.mark.parametrize(
    ("words", "contrast"),
    [
        ("T1post B Ax T1 +C", "T1w"), ("T2_reg B Ax T2", "T2w"), ("B Ax Flair(10000 TR)", "FLAIR"), ("t1_flair_sag", "T1w"),
        ("ADNI_Sag3D MPRAGE", "T1w"), ("t2_tirm_tra_dark-fluid", "FLAIR"), ("SWI_Images", "T2star"), ("t2*_gre", "T2star"),
        ("ep2d_diff_b1000_ADC", "ADC"), ("DTI ortho", "DWI"), ("TOF_3D_multi-slab", "MRA"), ("PD TSE sag", "PD"),
        ("Ax FSPGR BRAVO", "T1w"), ("fcMRI Field Mapping", None), ("gre_field_mapping", None), ("EPI PE=AP", None), ("", None),
    ],
)  # fmt: skip
def test_words(words: str, contrast: str | None) -> None:
    assert by_words(facts(words)) == contrast


@pytest.mark.parametrize(
    ("known", "contrast"),
    [
        ((9.5, 500, None, ("SE", "SP")), "T1w"),
        ((92.0, 4000, None, ("SE", "SK")), "T2w"),
        ((90.0, 10000, 2600, ("SE", "IR")), "FLAIR"),
        ((2.93, 6.5, None, ("GR", "MP")), "T1w"),
        ((15.0, 3000, None, ("SE",)), "PD"),
        ((25.0, 700, None, ("GR",)), "T2star"),
        ((30.0, 5000, None, ("EP", "GR")), "T2star"),
        ((50.0, 2435, None, ("EP",)), None),  # could be anything
        ((4.6, 20, None, ("GR", "SP")), None),  # an angiogram, a field map, a T1w
        ((None, 500, None, ("SE",)), None),
    ],
)
def test_physics(known: tuple[Any, ...], contrast: str | None) -> None:
    te, tr, ti, scanning = known
    times = [None if value is None else float(value) for value in (te, tr, ti)]
    assert by_physics(facts("", *times, scanning=scanning), None) == contrast


def test_what_the_two_make_together() -> None:
    spin = {"scanning": ("SE",)}
    assert recognise(facts("t1 se", 9.0, 500.0, **spin), None).contrast == "T1w"
    assert recognise(facts("t1 se", 9.0, 500.0, agent=True, **spin), None).contrast == "T1w-contrast"
    assert recognise(facts("t1 se +c", 9.0, 500.0, **spin), None).contrast == "T1w-contrast"
    assert recognise(facts("t1 se +c", 9.0, 500.0, agent=False, **spin), None).contrast == "T1w"
    assert recognise(facts("t2 pre", 92.0, 4000.0, agent=True, **spin), None).contrast == "T2w"
    assert recognise(facts("series 7", 92.0, 4000.0, **spin), None).source == "sequence"
    assert recognise(facts("dwi adc"), 1000.0).contrast == "ADC"
    assert recognise(facts("unknown words"), 800.0).contrast == "DWI"
    assert recognise(facts("", acquisition_contrast="FLUID_ATTENUATED"), None).contrast == "FLAIR"
    disagreed = recognise(facts("t2 tse", 9.0, 500.0, **spin), None)
    assert disagreed.contrast == "unknown" and disagreed.conflict is not None
    assert "description says T2w" in disagreed.conflict and "parameters say T1w" in disagreed.conflict
