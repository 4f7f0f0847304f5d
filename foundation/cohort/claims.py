"""What is true of a synthetic patient, as the findings that a reader without error would have.

    reading = claims_of_truth(json.loads((folder / "truth.json").read_text()), subject="sub-00007")
    reading = claims_of_truth(imagine_truth(default_rng(0)), subject="imagined")

A finding that none of the acquired contrasts can show is "not assessed", never "absent". `imagine_truth` draws such truths without
a head or an image, thousands a second, for what learns wording alone: places and sizes are plausible, nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator

from foundation.cohort.anatomy import DISEASES, PREVALENCE
from foundation.cohort.outcome import HISTORY
from foundation.cohort.patient import ENLARGED_RATIO
from foundation.findings import (
    Change,
    Finding,
    Measurement,
    PriorStudy,
    Reading,
    SeriesSignal,
    SeriesSummary,
    Severity,
    Side,
    each_once,
    finding_id,
    if_seen,
)
from foundation.study import CONTRASTS, Contrast, checked_contrast
from foundation.terms import Signal

SOURCE = "oracle"
LOBES = ("frontal", "parietal", "temporal", "occipital", "cerebellum", "brainstem")
DEEP = "deep grey matter and its surroundings"

# Which label structures make a finding. A tumour is all of its parts; those that only contrast medium tells apart come besides.
FOCAL = {
    "tumour": ("enhancing tumour", "non-enhancing tumour", "necrosis"),
    "enhancing tumour": ("enhancing tumour",),
    "necrosis": ("necrosis",),
    "oedema": ("oedema",),
    "acute infarct": ("acute infarct",),
    "haemorrhage": ("haemorrhage",),
}
SCATTERED = {"plaque": ("plaque",), "white matter hyperintensity": ("white matter hyperintensity",)}
LEAST_SHIFT_MM = 2.0

# Textbook signal against white matter; contrasts that are not listed say little.
SIGNALS: dict[str, dict[Contrast, Signal]] = {
    "tumour": {"FLAIR": "hyperintense", "T2w": "hyperintense", "T1w": "hypointense"},
    "enhancing tumour": {"T1w-contrast": "enhancing"},
    "necrosis": {"T1w-contrast": "hypointense", "T2w": "hyperintense"},
    "oedema": {"FLAIR": "hyperintense", "T2w": "hyperintense"},
    "acute infarct": {"DWI": "hyperintense", "ADC": "hypointense", "FLAIR": "hyperintense"},
    "haemorrhage": {"T2star": "hypointense"},
    "plaque": {"FLAIR": "hyperintense", "T2w": "hyperintense"},
    "white matter hyperintensity": {"FLAIR": "hyperintense", "T2w": "hyperintense"},
}


def claims_of_truth(
    truth: Mapping[str, Any], *, subject: str, source: str = SOURCE, with_record: bool = True
) -> Reading:
    """The findings of an oracle that sees what was acquired; `truth` is a patient's truth.json or an imagined one."""
    series = tuple(_summary(one, number) for number, one in enumerate(truth["series"]))
    there: set[Contrast] = {one.contrast for one in series}
    findings = [
        *_focal(truth, series, source),
        *_scattered(truth, series, source),
        *_shape(truth, source),
        *_anatomy(truth, source),
        _artefact(truth, source),
    ]
    seen = each_once(if_seen(finding, there) for finding in findings)
    record = [_history(name) for name in truth["history"]] if with_record else []
    return Reading(subject=subject, series=series, findings=(*seen, *record))


def _focal(truth: Mapping[str, Any], series: Sequence[SeriesSummary], source: str) -> list[Finding]:
    """One finding per side of each focal lesion; what a grid cut off it is counted with it."""
    findings = []
    for name, structures in FOCAL.items():
        pieces = [one for one in truth["lesions"] if one["structure"] in structures]
        if not pieces:
            findings.append(_absent(name, "brain", source))
        for side in ("right", "left", "midline"):
            here = [one for one in pieces if one["side"] == side]
            if here:
                largest = max(here, key=lambda one: one["volume_ml"])
                volume = sum(one["volume_ml"] for one in here)
                findings.append(
                    _present(
                        name, place_of(largest["lobe"]), side, source,
                        (_volume(volume), _diameter(volume)), signals=_signals(name, series),
                    )
                )  # fmt: skip
    return findings


def _scattered(truth: Mapping[str, Any], series: Sequence[SeriesSummary], source: str) -> list[Finding]:
    """One finding for all lesions of a kind that comes in numbers."""
    findings = []
    for name, structures in SCATTERED.items():
        pieces = [one for one in truth["lesions"] if one["structure"] in structures]
        sides = {one["side"] for one in pieces} - {"midline"}
        if not pieces:
            findings.append(_absent(name, "cerebral white matter", source))
            continue
        side: Side = "bilateral" if len(sides) == 2 else sides.pop() if sides else "midline"
        volume = sum(one["volume_ml"] for one in pieces)
        number = Measurement(
            name="number", value=float(len(pieces)), unit="1", method="connected pieces, 26 neighbours"
        )
        severity = _graded(volume, 5.0, 20.0) if name == "white matter hyperintensity" else None
        findings.append(
            _present(
                name, "cerebral white matter", side, source, (_volume(volume), number),
                signals=_signals(name, series), severity=severity,
            )
        )  # fmt: skip
    return findings


def _shape(truth: Mapping[str, Any], source: str) -> list[Finding]:
    """What disease does to the brain's shape: the midline, the ventricles, the whole."""
    findings = []
    shift_mm = float(truth["midline_shift_mm"])
    if shift_mm >= LEAST_SHIFT_MM:
        method = "the simulated displacement of the septum"
        shift = Measurement(name="shift", value=shift_mm, unit="mm", method=method)
        side = _away_from_the_mass(truth)
        findings.append(
            _present(
                "midline shift", "brain", side, source, (shift,), severity=_graded(shift_mm, 5.0, 10.0), abnormal=True
            )
        )
    else:
        findings.append(_absent("midline shift", "brain", source))
    ml = truth["volumes_ml"]
    ratio = ml["lateral ventricle"] / max(ml["intracranial"], 1e-6)
    if ratio > ENLARGED_RATIO:
        findings.append(
            _present(
                "ventricular enlargement", "lateral ventricle", "bilateral", source, (_volume(ml["lateral ventricle"]),),
                severity=_graded(ratio, 0.022, 0.032), abnormal=True,
            )
        )  # fmt: skip
    else:
        findings.append(_absent("ventricular enlargement", "lateral ventricle", source))
    if "atrophy" in truth["subject"]["diagnoses"]:
        fraction = Measurement(
            name="brain fraction", value=100 * min(1.0, ml["brain"] / max(ml["intracranial"], 1e-6)), unit="%",
            method="brain over intracranial volume",
        )  # fmt: skip
        severity = _graded(truth["subject"]["cortical_atrophy"], 0.66, 0.82)
        findings.append(_present("brain atrophy", "brain", "bilateral", source, (fraction,), severity=severity))
    else:
        findings.append(_absent("brain atrophy", "brain", source))
    return findings


def _anatomy(truth: Mapping[str, Any], source: str) -> list[Finding]:
    """Normal structures are claims too: their volumes, both sides together, as the truth has them."""
    return [
        _present(name, name, "bilateral", source, (_volume(truth["volumes_ml"][name]),), abnormal=False)
        for name in ("hippocampus", "thalamus")
    ]


def _artefact(truth: Mapping[str, Any], source: str) -> Finding:
    """The worst artefact of any series."""
    worst = max((one["artefact"]["severity"] for one in truth["series"] if one["artefact"]), default=0)
    if not worst:
        return _absent("image artefact", "images", source)
    return _present(
        "image artefact",
        "images",
        "not_applicable",
        source,
        (),
        severity=_graded(float(worst), 2.5, 3.5),
        abnormal=True,
    )


def _history(name: str) -> Finding:
    text = name.replace("_", " ")
    return Finding(
        id=finding_id("record", text, "not_applicable"), name=text, anatomy="history", side="not_applicable",
        presence="present", abnormal=False, source="record", origin="record",
    )  # fmt: skip


def _present(
    name: str,
    anatomy: str,
    side: Side,
    source: str,
    measurements: tuple[Measurement, ...],
    *,
    signals: tuple[SeriesSignal, ...] = (),
    severity: Severity | None = None,
    abnormal: bool | None = True,
) -> Finding:
    return Finding(
        id=finding_id(source, name, side), name=name, anatomy=anatomy, side=side, presence="present", abnormal=abnormal,
        measurements=measurements, signals=signals, severity=severity, source=source,
    )  # fmt: skip


def _absent(name: str, anatomy: str, source: str) -> Finding:
    return Finding(
        id=finding_id(source, name, "not_applicable"), name=name, anatomy=anatomy, side="not_applicable",
        presence="absent", abnormal=True, source=source,
    )  # fmt: skip


def _volume(volume_ml: float) -> Measurement:
    return Measurement(name="volume", value=volume_ml, unit="ml", method="voxel count times voxel volume")


def _diameter(volume_ml: float) -> Measurement:
    value = float((6 * 1000 * volume_ml / np.pi) ** (1 / 3))
    return Measurement(name="diameter", value=value, unit="mm", method="of a sphere of that volume")


def _signals(name: str, series: Sequence[SeriesSummary]) -> tuple[SeriesSignal, ...]:
    known = SIGNALS.get(name, {})
    return tuple(
        SeriesSignal(series=one.name, contrast=one.contrast, signal=known[one.contrast])
        for one in series
        if one.contrast in known
    )


def _graded(value: float, moderate: float, severe: float) -> Severity:
    return "severe" if value >= severe else "moderate" if value >= moderate else "mild"


def _away_from_the_mass(truth: Mapping[str, Any]) -> Side:
    """The midline goes away from the largest tumour, or clot where there is no tumour."""
    for structures in (FOCAL["tumour"], FOCAL["haemorrhage"]):
        volumes = dict.fromkeys(("right", "left"), 0.0)
        for one in truth["lesions"]:
            if one["structure"] in structures and one["side"] in volumes:
                volumes[one["side"]] += one["volume_ml"]
        if any(volumes.values()):
            return "left" if volumes["right"] > volumes["left"] else "right"
    return "not_applicable"


def place_of(lobe: str) -> str:
    """The truth's lobe as anatomy is called in findings."""
    if lobe == DEEP:
        return "deep grey matter"
    return lobe if lobe in ("cerebellum", "brainstem") else f"{lobe} lobe"


def _summary(series: Mapping[str, Any], number: int) -> SeriesSummary:
    contrast = {"SWI": "T2star"}.get(series["contrast"], series["contrast"])
    x, y, z = series["voxel_mm"]
    # A truth does not keep the shape of an array.
    return SeriesSummary(
        name=f"{series['contrast']}-{number + 1}",
        contrast=checked_contrast(contrast) if contrast in CONTRASTS else "unknown",
        shape=(0, 0, 0), spacing_mm=(x, y, z), orientation="RAS", side_is_known=True,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ imagined


def imagine_truth(rng: Generator) -> dict[str, Any]:
    """A truth as `make_patient` would give it, as far as `claims_of_truth` reads it, without a head or an image."""
    diagnoses = [name for name in DISEASES if rng.random() < 1.3 * PREVALENCE[name]]
    lesions: list[dict[str, Any]] = []
    shift_mm = 0.0
    for name in diagnoses:
        side = str(rng.choice(("right", "left")))
        lobe = str(rng.choice((*LOBES, DEEP)))
        if name == "glioma":
            volume = float(np.exp(rng.uniform(0, 4.6)))
            parts = ("enhancing tumour", "necrosis") if rng.random() < 0.66 else ("non-enhancing tumour",)
            lesions += [_lesion(part, volume * share, side, lobe) for part, share in zip(parts, (0.6, 0.4))]
            if rng.random() < 0.8:
                lesions.append(_lesion("oedema", float(np.exp(rng.uniform(0, 4.5))), side, lobe))
            shift_mm = float(rng.uniform(0, 14))
        elif name in ("infarct", "haemorrhage"):
            structure = "acute infarct" if name == "infarct" else "haemorrhage"
            lesions.append(_lesion(structure, float(np.exp(rng.uniform(-1, 4.5))), side, lobe))
            if name == "haemorrhage":
                lesions.append(_lesion("oedema", float(np.exp(rng.uniform(-1, 3))), side, lobe))
                shift_mm = max(shift_mm, float(rng.uniform(0, 9)))
        elif name in ("multiple_sclerosis", "white_matter_disease"):
            structure = "plaque" if name == "multiple_sclerosis" else "white matter hyperintensity"
            sides = ("right", "left") if rng.random() < 0.85 else (side,)
            lesions += [
                _lesion(structure, float(np.exp(rng.uniform(-3, 1.5))), str(rng.choice(sides)), str(rng.choice(LOBES)))
                for _ in range(int(rng.integers(1, 30)))
            ]
    ventricle = float(np.exp(rng.uniform(2.2, 4.2)))
    return {
        "subject": {"diagnoses": diagnoses, "cortical_atrophy": float(rng.uniform(0.5, 1.0))},
        "lesions": lesions,
        "midline_shift_mm": shift_mm,
        "volumes_ml": {
            "lateral ventricle": ventricle, "intracranial": float(rng.uniform(1150, 1700)), "brain": float(rng.uniform(900, 1140)),
            "hippocampus": float(rng.uniform(1.5, 8)), "thalamus": float(rng.uniform(5, 14)),
        },
        "series": [_series(name, rng) for name in ("T1w", "T1w-contrast", "T2w", "FLAIR", "DWI", "T2star") if rng.random() > 0.2]
        or [_series("T1w", rng)],
        "history": [name for name in HISTORY if rng.random() < 0.2],
    }  # fmt: skip


def _lesion(structure: str, volume_ml: float, side: str, lobe: str) -> dict[str, Any]:
    return {"structure": structure, "volume_ml": volume_ml, "side": side, "lobe": lobe}


def _series(contrast: str, rng: Generator) -> dict[str, Any]:
    artefact = {"severity": int(rng.integers(1, 6))} if rng.random() < 0.1 else None
    return {"contrast": contrast, "voxel_mm": (1.0, 1.0, float(rng.choice((1.0, 3.0, 5.0)))), "artefact": artefact}


def doubt(reading: Reading, rng: Generator) -> Reading:
    """The reading of somebody less sure: a third of the abnormal claims gets a calibrated probability of any size."""
    findings = []
    for one in reading.findings:
        if one.is_abnormal and one.presence in ("present", "absent") and rng.random() < 0.35:
            chance = float(rng.uniform(0.4, 1.0) if one.presence == "present" else rng.uniform(0, 0.4))
            presence = "uncertain" if one.presence == "present" and chance < 0.75 else one.presence
            one = one.model_copy(update={"probability": chance, "is_calibrated": True, "presence": presence})
        findings.append(one)
    return reading.model_copy(update={"findings": tuple(findings)})


def with_prior(reading: Reading, rng: Generator) -> Reading:
    """The reading beside an invented earlier study: what is there has changed, or has not."""
    changes: tuple[Change, ...] = ("new", "grown", "shrunk", "stable")
    findings = [
        one.model_copy(update={"change": changes[rng.integers(len(changes))]})
        if one.is_abnormal and one.presence == "present" and one.name != "image artefact"
        else one
        for one in reading.findings
    ]
    prior = PriorStudy(name="earlier", date=f"20{rng.integers(10, 26)}-0{rng.integers(1, 10)}-1{rng.integers(0, 10)}")
    return reading.model_copy(update={"findings": tuple(findings), "prior": prior})
