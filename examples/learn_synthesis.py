"""Maps and missing contrasts, learned and measured on synthetic heads: python -m examples.learn_synthesis OUT

    python -m examples.learn_synthesis runs/synthesis                 40 heads at 2 mm, 6,000 steps
    python -m examples.learn_synthesis runs/smoke --smoke             minutes: 4 mm, 300 steps

Measured on heads that were not trained on. T1, T2 and ADC in the brain beside a dictionary (`foundation/physics/dictionary.py`),
beside the same number everywhere, and, for ADC, beside what a scanner computes of b = 0 and 1000. A missing FLAIR beside the best
quadratic combination of what is there; of lesions, how much of their contrast the predicted image shows. Stopped, it continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.measure_reconstruction import said
from foundation.cohort.materials import BRAIN, LESIONS, shows
from foundation.cohort.patient import CohortConfig, make_anatomy, scan_again
from foundation.files import write_aside
from foundation.physics.dictionary import match
from foundation.preprocess import prepare_study, sample_at
from foundation.progress import progress
from foundation.reconstruction.metrics import errors
from foundation.study import Study
from foundation.training import TrainingConfig
from heads.synthesis.network import CONTRASTS, MAPS, Translator, View
from heads.synthesis.training import TrainSynthesisConfig, train_synthesis, truth

FIRST_HEAD, HEADS = 1000, 20
INPUTS = {"T1w, T2w, PD": ("T1w", "T2w", "PD"), "T1w, T2w": ("T1w", "T2w"), "all five": CONTRASTS}
FITTED_ON = 3  # heads for the quadratic combination


def smoke() -> TrainSynthesisConfig:
    whole = TrainSynthesisConfig()
    return whole.model_copy(
        update={
            "network": whole.network.model_copy(update={"channels": 12, "spacing_mm": 4.0}),
            "training": TrainingConfig(
                steps=300, batch_size=1, learning_rate=3e-3, warmup_steps=10, ema_decay=0.98, precision="fp32"
            ),
            "cohort": whole.cohort.model_copy(update={"subjects": 6, "spacing_mm": 4.0}),
            "variants": 1,
        }
    )


class Case:
    """A held-out head with every contrast and, as a scanner makes it, its ADC map; all on one grid."""

    def __init__(self, config: TrainSynthesisConfig, number: int):
        spacing_mm = config.network.spacing_mm
        cohort = CohortConfig(spacing_mm=config.cohort.spacing_mm, contrasts=(*CONTRASTS, "ADC"), missing_series=0.0)
        self.anatomy, tissues = make_anatomy(cohort, number)
        self.scans = scan_again(self.anatomy, tissues, cohort, 0)
        measured = [scan for scan in self.scans if scan.series.contrast != "ADC"]
        prepared = prepare_study(Study("head", tuple(scan.series for scan in measured)), (spacing_mm,) * 3)
        self.grid = prepared.grid
        self.view = View.of(prepared)
        self.truth = truth(self.anatomy, tissues, self.grid)
        labels = sample_at(self.anatomy.labels, self.anatomy.affine, self.grid, nearest=True)
        on_slices = torch.from_numpy(labels).permute(2, 0, 1)
        self.brain = torch.from_numpy(shows(on_slices.numpy(), BRAIN)) & self.view.body
        self.lesion = torch.from_numpy(shows(on_slices.numpy(), LESIONS)) & self.view.body

    def raw(self, contrast: str) -> torch.Tensor:
        """A series' own values on the grid, (slices, rows, columns)."""
        series = next(scan.series for scan in self.scans if scan.series.contrast == contrast)
        return torch.from_numpy(sample_at(series.voxels, series.affine, self.grid)).permute(2, 0, 1).float()

    def outputs(self, network: Translator, contrasts: Sequence[str]) -> torch.Tensor:
        view = self.view.keeping(torch.tensor([name in contrasts for name in CONTRASTS]))
        with torch.inference_mode():
            return torch.cat([network.outputs(view.some(part)) for part in torch.arange(len(view.images)).split(8)])


def map_errors(case: Case, network: Translator) -> dict[str, float]:
    """Of each map by each method, the mean over the brain of |estimate / truth - 1|, no more than 1 at any place.

    Not the median: most of a brain is one of two tissues, and one number for all of it would have none.
    """
    found: dict[str, float] = {}

    def note(name: str, method: str, log_values: torch.Tensor) -> None:
        wanted = case.truth[:, list(MAPS).index(name)]
        known = case.brain & wanted.isfinite()
        found[f"{name}: {method}"] = float(((log_values - wanted)[known].exp() - 1).abs().clamp(max=1).mean())

    for words, contrasts in INPUTS.items():
        outputs = case.outputs(network, contrasts)
        for number, name in enumerate(MAPS):
            if name != "ADC" or "DWI" in contrasts:
                note(name, f"learned, {words}", outputs[:, number])
    for number, name in enumerate(MAPS):
        wanted = case.truth[:, number]
        middle = wanted[case.brain & wanted.isfinite()].median()
        note(name, "the head's own median everywhere", middle.expand_as(wanted))
    sequences = {scan.series.contrast: scan.protocol.sequence for scan in case.scans}
    chosen = [name for name in ("T1w", "T2w", "PD") if sequences[name] is not None]
    images = torch.stack([case.raw(name)[case.brain] for name in chosen])
    times = match(images, [sequences[name] for name in chosen])  # pyright: ignore[reportArgumentType]
    for name, values in zip(("T1", "T2"), times):
        everywhere = torch.zeros(case.brain.shape)
        everywhere[case.brain] = (values / MAPS[name]).log()
        note(name, "dictionary, T1w, T2w, PD", everywhere)
    note("ADC", "log-linear, b = 0 and 1000", (case.raw("ADC").clamp(min=1) / MAPS["ADC"]).log())
    return found


def flair_errors(case: Case, network: Translator, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """NMSE, PSNR and SSIM of a predicted FLAIR inside the body, and of the lesions' contrast the share that is shown."""
    number = CONTRASTS.index("FLAIR")
    wanted = case.view.images[:, number]
    found: dict[str, Any] = {}
    for words, contrasts in INPUTS.items():
        sources = tuple(name for name in contrasts if name != "FLAIR")
        images = {
            "learned": case.outputs(network, sources)[:, len(MAPS) + number],
            "quadratic": torch.from_numpy(features(case, sources) @ weights[words]).float().reshape(wanted.shape),
        }
        around = case.brain & ~case.lesion
        for method, image in images.items():
            shown, truly = ((one + 4).clamp(min=0) * case.view.body for one in (image, wanted))
            figures: dict[str, Any] = errors(truly.numpy(), shown.numpy())
            if int(case.lesion.sum()) > 20:
                true_contrast = float(wanted[case.lesion].mean() - wanted[around].mean())
                if abs(true_contrast) > 0.3:
                    figures["lesion"] = float(image[case.lesion].mean() - image[around].mean()) / true_contrast
            found[f"FLAIR from {', '.join(sources)}: {method}"] = figures
    return found


def features(case: Case, contrasts: Sequence[str]) -> np.ndarray:
    """What is there at each voxel, its squares and products, and one."""
    flat = [case.view.images[:, CONTRASTS.index(name)].flatten().numpy() for name in contrasts]
    products = [a * b for i, a in enumerate(flat) for b in flat[i:]]
    return np.stack([np.ones_like(flat[0]), *flat, *products], axis=1)


def quadratic_weights(config: TrainSynthesisConfig) -> dict[str, np.ndarray]:
    cases = [Case(config, number) for number in range(FITTED_ON)]
    fitted = {}
    for words, contrasts in INPUTS.items():
        sources = tuple(name for name in contrasts if name != "FLAIR")
        body = [case.view.body.flatten().numpy() for case in cases]
        x = np.concatenate([features(case, sources)[where] for case, where in zip(cases, body)])
        y = np.concatenate(
            [case.view.images[:, CONTRASTS.index("FLAIR")].flatten().numpy()[where] for case, where in zip(cases, body)]
        )
        fitted[words] = np.linalg.lstsq(x, y, rcond=None)[0]
    return fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="small and coarse, for minutes")
    parser.add_argument("--heads", type=int, default=HEADS)
    chosen = parser.parse_args()
    config = smoke() if chosen.smoke else TrainSynthesisConfig()
    network, result = train_synthesis(config, chosen.out)
    print(f"trained for {result.seconds:.0f} s, last loss {result.last_loss:.3f}")
    weights = quadratic_weights(config)
    maps: dict[str, list[float]] = {}
    contrasts: dict[str, dict[str, list[float]]] = {}
    with progress(total=chosen.heads, label="heads", unit="head") as bar:
        for number in range(chosen.heads):
            case = Case(config, FIRST_HEAD + number)
            for name, value in map_errors(case, network).items():
                maps.setdefault(name, []).append(value)
            for name, figures in flair_errors(case, network, weights).items():
                for figure, value in figures.items():
                    contrasts.setdefault(name, {}).setdefault(figure, []).append(value)
            bar.update()
    print(f"| {chosen.heads} heads, brain | mean relative error |\n|---|---|")
    for name, values in sorted(maps.items()):
        print(f"| {name} | {said(values, 3)} |")
    print("\n| | NMSE | PSNR | SSIM | lesion contrast shown | heads with lesions |\n|---|---|---|---|---|---|")
    for name, figures in contrasts.items():
        lesions = figures.get("lesion", [])
        shown = said(lesions, 2) if lesions else "none"
        cells = (said(figures[figure], digits) for figure, digits in (("nmse", 4), ("psnr", 2), ("ssim", 3)))
        print(f"| {name} | {' | '.join(cells)} | {shown} | {len(lesions)} |")
    with write_aside(chosen.out / "heads.json") as aside:
        aside.write_text(json.dumps({"maps": maps, "contrasts": contrasts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
