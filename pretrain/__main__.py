"""Pretrain an encoder on the studies of a manifest or a store.

    accelerate launch -m pretrain configs/pretrain/tiny.yaml manifest=collection/manifest.jsonl training.steps=2000
    accelerate launch -m pretrain --dry-run configs/pretrain/base.yaml      everything but the training; writes nothing
    python -m pretrain --plan configs/pretrain/base.yaml                    what each size costs under each engine

Writes into `folder`: the resolved config, metrics.jsonl, checkpoints, the model folder `model/`, what else the objective has
learnt, a loss curve and the objective's pictures. The same command continues a run that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from foundation.config import load_config, save_config
from foundation.encoder import Encoder
from foundation.engines import make_accelerator
from foundation.errors import InputError
from foundation.figures import plot_curves
from foundation.files import check_writable
from foundation.quarantine import describe
from foundation.reading.collection import read_manifest
from foundation.store.reader import Store
from foundation.training import Draw, Samples, TrainingResult, software_versions, train, what_runs
from pretrain.config import PretrainConfig
from pretrain.damage import Damage, Mended
from pretrain.objectives import objective_module
from pretrain.objectives.base import Objective
from pretrain.probe import Probe
from pretrain.samples import DrawnStudies, FiledStudies, StoredStudies, Studies

USAGE = "usage: accelerate launch -m pretrain [--dry-run | --plan] CONFIG.yaml [key=value ...]"


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}")
        return 0 if arguments else 2
    flags = {argument for argument in arguments if argument.startswith("--")}
    if flags - {"--dry-run", "--plan"}:
        print(USAGE, file=sys.stderr)
        return 2
    rest = [argument for argument in arguments if argument not in flags]
    try:
        config = load_config(PretrainConfig, rest[0] if rest else None, rest[1:])
        if "--plan" in flags:
            from pretrain.plan import plan

            print("\n".join(plan(config)))
        elif "--dry-run" in flags:
            rehearse(config)
        else:
            pretrain(config)
    except InputError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True)
class Parts:
    """What a run is put together from."""

    studies: FiledStudies | StoredStudies | DrawnStudies
    objective: Objective
    dataset: Samples
    probe: Probe | None

    @classmethod
    def of(cls, config: PretrainConfig, damage: Damage) -> Parts:
        """Encoder and objective come with their first weights."""
        studies = studies_of(config)
        torch.manual_seed(config.training.seed)
        objective = objective_module(config.objective.kind).Objective(Encoder(config.encoder), config.objective)
        objective.layer_decay = config.layer_decay
        dataset = objective.make_samples(Mended(studies, damage), config.crop)
        return cls(studies, objective, dataset, None if config.probe is None else Probe(config.probe))

    @cached_property
    def fingerprint(self) -> str:
        """Of the data; of a large collection it takes a while."""
        return self.studies.fingerprint()


def rehearse(config: PretrainConfig) -> None:
    """Everything but the training: data, model, engine, one real batch forward and backward, a folder that can be written."""
    accelerator = make_accelerator()
    what_runs(accelerator, config.training)
    if accelerator.is_main_process:
        print(f"pretrain: {check_writable(config.folder)}")
    parts = Parts.of(config, Damage(None, config.bad_files))
    train(
        parts.objective,
        parts.dataset,
        config.training,
        config.folder,
        label="pretrain",
        accelerator=accelerator,
        rehearse=True,
        about=lambda: _settings(config, parts),
    )
    if accelerator.is_main_process:
        print("pretrain: ready; nothing was trained and no weights were written")
    accelerator.wait_for_everyone()


def pretrain(config: PretrainConfig) -> Path:
    """Run one pretraining; return the model folder."""
    accelerator = make_accelerator()
    what_runs(accelerator, config.training)  # before anything is written or read
    damage = Damage(config.folder / "damaged.jsonl", config.bad_files)
    parts = Parts.of(config, damage)
    objective = parts.objective
    result = train(
        objective,
        parts.dataset,
        config.training,
        config.folder,
        label="pretrain",
        accelerator=accelerator,
        gauge=parts.probe,
        about=lambda: _settings(config, parts),
        on_accept=lambda: save_config(config, config.folder / "config.yaml"),
    )
    model_folder = config.folder / "model"
    if accelerator.is_main_process:
        provenance = {
            "versions": software_versions(),
            "data": {
                "source": _source(config),
                "fingerprint": parts.fingerprint,
                "studies": len(parts.studies),
            },
            "config": config.model_dump(mode="json"),
        }
        card = _card(config, len(parts.studies), result)
        objective.encoder.save(model_folder, card=card, provenance=provenance)
        plot_curves(config.folder / "loss.png", result.records, ["loss"])
        objective.to("cpu").eval()
        beside = objective.save_beside(config.folder, provenance=provenance)
        pictures = objective.save_pictures(config.folder, parts.dataset[Draw(0, config.training.seed)])
        if parts.probe is not None:
            figures = sorted({name for record in result.records for name in record if name.startswith("probe/")})
            plot_curves(config.folder / "probe.png", result.records, figures)
            pictures.append(config.folder / "probe.png")
        for path in (model_folder, *beside, config.folder / "metrics.jsonl", config.folder / "loss.png", *pictures):
            print(f"wrote {path}")
        _print_left_out(parts.studies, damage)
    accelerator.wait_for_everyone()
    return model_folder


def _settings(config: PretrainConfig, parts: Parts) -> dict[str, str]:
    """What a run may not change when it continues, besides its training settings."""
    return {
        "data": parts.fingerprint,
        "splits": repr(config.splits),
        "objective": config.objective.model_dump_json(),
        "crop": config.crop.model_dump_json(),
        "layer_decay": repr(config.layer_decay),
    }


def studies_of(config: PretrainConfig) -> FiledStudies | StoredStudies | DrawnStudies:
    """The manifest's or the store's studies of the chosen splits, or a stream of synthetic patients."""
    if (cohort := config.objective.own_cohort or config.cohort) is not None:
        return DrawnStudies(cohort)
    if config.store is not None:
        studies = StoredStudies(Store.open(config.store), config.splits)
        if not len(studies):
            raise _no_studies(config, config.store)
        return studies
    assert config.manifest is not None
    collection = read_manifest(config.manifest)
    rows = [row for row in collection.rows if config.splits is None or row.split in config.splits]
    if not rows:
        raise _no_studies(config, config.manifest)
    return FiledStudies(collection, rows)


def _no_studies(config: PretrainConfig, file: Path) -> InputError:
    got = f"none with split in {list(config.splits or ())}"
    return InputError("pretraining has studies", got=got, remedy="Set splits, or splits=null for all.", file=file)


def _print_left_out(studies: Studies, damage: Damage) -> None:
    """What the run did without: series that a store's verification had named, and studies that were found damaged on the way."""
    if isinstance(studies, StoredStudies) and studies.store.damaged:
        print(f"{studies.store.folder}: {describe(studies.store.damaged)}")
    if found := damage.found():
        print(f"{damage.path}: {describe(found)}")


def _source(config: PretrainConfig) -> str:
    if (cohort := config.objective.own_cohort or config.cohort) is None:
        return f"`{config.store or config.manifest}`"
    return f"a synthetic cohort (seed {cohort.seed}, {cohort.appearance} appearance)"


def _card(config: PretrainConfig, num_studies: int, result: TrainingResult) -> str:
    return (
        f"# Larmor encoder ({config.size})\n\n"
        f"Pretrained by {config.objective.kind.replace('_', ' ')} on {num_studies} studies of {_source(config)} for "
        f"{config.training.steps} steps of {config.training.batch_size} boxes in "
        f"{result.seconds:.0f} s; last loss {result.last_loss:.3f}.\n\n"
        "It has no head: it says nothing of a patient by itself. Not a medical device.\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
