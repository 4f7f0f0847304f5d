"""One fine-tuning run from config to model folder, evaluation and figures; `finetune/__main__.py` is its command line."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from finetune.adapters import apply_recipe, merge_lora, take_adapter
from finetune.baselines import FITTED, NETWORKS, Baseline, baseline, network
from finetune.config import FinetuneConfig
from finetune.evaluate import Evaluation, evaluate_studies, save_evaluation, without_nan
from finetune.linear import begin_at_a_glance
from finetune.samples import LabelledSamples, LabelledStudy, choose_rows, read_labelled, with_vocabulary
from finetune.stopping import LOSS, ValidationLoss
from finetune.trust.fit import calibrate, calibrating_rows, calibration_words
from finetune.trust.ood import Reference
from foundation.calibration import Calibration
from foundation.checkpoint import read_about
from foundation.config import save_config
from foundation.encoder import Encoder, EncoderConfig
from foundation.engines import make_accelerator
from foundation.errors import InputError
from foundation.figures import plot_curves
from foundation.reading.collection import read_manifest
from foundation.training import TrainingResult, software_versions, train
from heads._relevance import explain
from heads.adapters.folder import Backbone, encoder_of, load_model, save_adapter
from heads.base import Scope, TaskConfig, TaskModel, save_task


@dataclass(frozen=True)
class Fitted:
    """What a run made. A baseline has no model folder; `evaluation` is None when the test split is empty."""

    model: TaskModel
    training: TrainingResult
    evaluation: Evaluation | None
    model_folder: Path | None


def finetune(config: FinetuneConfig, *, test_studies: list[LabelledStudy] | None = None) -> Fitted:
    """Fit, evaluate, save. `test_studies` may be given when several runs share them and reading takes long."""
    collection = read_manifest(config.data.manifest)
    fingerprint = cache(collection.fingerprint)
    rows, held, source = calibrating_rows(
        collection, choose_rows(collection, config.data, config.training.seed), config
    )
    torch.manual_seed(config.training.seed)
    asked, config = config, config.model_copy(update={"head": with_vocabulary(config.head, rows, collection.root)})
    model = make_model(config)
    backbone = Backbone.of(config.encoder) if config.encoder and config.recipe in ("frozen", "lora") else None
    apply_recipe(model, config)
    accelerator = make_accelerator()
    main = accelerator.is_main_process

    def begin() -> None:
        # Figures of an earlier run must not be taken for this one's if it is interrupted.
        (config.folder / "metrics.json").unlink(missing_ok=True)
        save_config(asked, config.folder / "config.yaml")

    studies = read_labelled(collection, rows, model.head, config.data.spacing_mm, label="read")
    model.head.meet([study.targets for study in studies])
    calibrating = read_labelled(
        collection, held if main else [], model.head, config.data.spacing_mm, label="read held out"
    )
    if main and (caution := _boxes_are_small(config, studies)):
        print(caution)
    samples, gauge = LabelledSamples(studies, model.head, config), None
    if config.encoder is not None and config.recipe in ("frozen", "lora", "full"):
        begin_at_a_glance(model.to(accelerator.device), samples, config.training.seed)
    if config.stopping.every:
        validation = read_labelled(
            collection,
            collection.split(config.stopping.split),
            model.head,
            config.data.spacing_mm,
            label="read validation",
        )
        gauge = ValidationLoss(validation, samples, model.head, config)
    if isinstance(model, Baseline):
        began = time.perf_counter()
        if main:
            begin()
        model.fit(studies)
        result = TrainingResult(config.folder, [], time.perf_counter() - began)
    else:
        result = train(
            model,
            samples,
            config.training,
            config.folder,
            label=f"{config.name} {config.recipe}",
            accelerator=accelerator,
            about=lambda: _settings(config, fingerprint(), [row.subject for row in rows]),
            on_accept=begin,
            gauge=gauge,
        )
    if main:
        seen = [(study.prepared, study.labels) for study in studies if study.labels is not None]
        model.head.look_back(seen, model.output_of)
    adapter = None if backbone is None else take_adapter(model.encoder, config.lora)
    merge_lora(model)
    evaluation, model_folder = None, None
    if main:
        if test_studies is None:
            test_rows = collection.split(config.data.test_split)
            test_studies = read_labelled(collection, test_rows, model.head, config.data.spacing_mm, label="read test")
        if isinstance(model.encoder, Encoder):
            calibrate(model, calibrating, source=source)
        about = {
            "task": config.name,
            "recipe": config.recipe,
            "num_labels": len(rows),
            "seed": config.training.seed,
            "training_seconds": result.seconds,
            "manifest": str(config.data.manifest),
            "split": config.data.test_split,
            "data": fingerprint(),
            "start": start_of(config),
            "trained_on": [row.subject for row in rows],
            "calibrated_on": [row.subject for row in held] if model.head.calibration else [],
        }
        written = []
        if result.records:
            plot_curves(config.folder / "loss.png", result.records, ["loss", *([LOSS] if gauge else [])])
            written.append(config.folder / "loss.png")
        if test_studies:
            evaluation = evaluate_studies(model, test_studies)
            written += save_evaluation(evaluation, config.folder, about=about)
        if isinstance(model.encoder, Encoder):
            model_folder = config.folder / "model"
            task = TaskConfig(
                name=config.name,
                caution=config.caution,
                encoder=model.encoder.config,
                head=config.head,
                spacing_mm=config.data.spacing_mm,
                scope=Scope.of([study.prepared for study in studies]),
                calibration=model.head.calibration,
                explanations=explain(model, [study.prepared for study in (calibrating or studies)]),
            )
            metrics = {} if evaluation is None else {name: asdict(one) for name, one in evaluation.figures.items()}
            provenance = {
                **about,
                "metrics": without_nan(metrics),
                "versions": software_versions(),
                "config": config.model_dump(mode="json"),
            }
            card = _card(config, about, evaluation, task.calibration)
            save_task(model_folder, model, task, card=card, provenance=provenance)
            Reference.of(model, [study.prepared for study in studies]).save(model_folder)
            written.append(model_folder)
            if adapter is not None and backbone is not None:
                folder = config.folder / "adapter"
                save_adapter(folder, adapter, model.head, task, backbone, card=card, provenance=provenance)
                written.append(folder)
        for path in written:
            print(f"wrote {path}")
    accelerator.wait_for_everyone()
    return Fitted(model, result, evaluation, model_folder)


def start_of(config: FinetuneConfig) -> str | None:
    """The hash of the weights that a run begins with, wherever they lie; None if it begins with nothing."""
    if config.encoder is None or config.recipe == "scratch" or config.recipe in NETWORKS:
        return None
    return Backbone.of(config.encoder).weights_sha256


def _settings(config: FinetuneConfig, fingerprint: str, subjects: list[str]) -> dict[str, str]:
    """What a run may not change when it continues, besides its training settings."""
    settings = config.model_dump(
        mode="json", include={"head", "augment", "encoder_rate", "layer_decay", "lora", "stopping"}
    )
    grid = f"{config.data.spacing_mm} {config.data.crop_voxels}"
    about = {"data": fingerprint, "studies": ",".join(subjects), "grid": grid, "settings": json.dumps(settings)}
    start = start_of(config)
    return about if start is None else {**about, "start": start}


def make_model(config: FinetuneConfig) -> TaskModel:
    """The model before anything is fitted: a pretrained encoder and a new head, all new, or the baseline."""
    if config.recipe in NETWORKS:
        return network(config.recipe, config.head)
    if config.recipe in FITTED:
        return baseline(config.recipe, config.head, None if config.encoder is None else encoder_of(config.encoder))
    if config.recipe == "scratch":
        return TaskModel.build(Encoder(EncoderConfig.of_size(config.size, drop_path=config.drop_path)), config.head)
    if config.encoder is None:
        raise InputError(
            f"recipe '{config.recipe}' starts from a pretrained encoder",
            got="encoder: null",
            remedy="Set encoder=FOLDER (pretraining writes one), or recipe=scratch.",
        )
    kind = read_about(config.encoder)["kind"]
    if kind == "encoder":
        return TaskModel.build(encoder_of(config.encoder), config.head)
    if kind == "adapter" and config.recipe in ("frozen", "lora"):
        raise InputError(
            "an adapter is fitted on whole weights",
            got="another adapter",
            remedy="Merge that first: larmor adapter DIR --merge OUT.",
            file=config.encoder,
        )
    start = load_model(config.encoder).model
    assert isinstance(start.encoder, Encoder)
    model = TaskModel.build(start.encoder.train(), config.head)
    # What was learnt of one vocabulary says nothing of another.
    same_codes = start.head.reads_record == model.head.reads_record
    others = [name for name, _ in model.head.named_parameters() if "record." in name] if not same_codes else []
    model.warm = frozenset(f"head.{name}" for name in model.head.adopt(start.head, but=frozenset(others)))
    return model


def _boxes_are_small(config: FinetuneConfig, studies: list[LabelledStudy]) -> str | None:
    """A note where training shows boxes much smaller than what the model will read in one pass.

    Fitted on 128 mm boxes of IXI heads and read on whole ones, mean Dice was 0.30 (a DynUNet's 0.60): attention over a head's
    tokens is not attention over a box's.
    """
    if config.data.crop_voxels is None or config.recipe == "dynunet":
        return None
    largest = np.max([study.prepared.grid.shape for study in studies], axis=0)
    if (largest <= Scope.SLACK * np.asarray(config.data.crop_voxels)).all():
        return None
    return (
        f"Note: training sees boxes of {config.data.crop_voxels} voxels, reading sees whole studies of up to "
        f"{tuple(largest.tolist())} in one pass, and may be much worse for it. Set data.crop_voxels=null to train on whole ones."
    )


def _card(config: FinetuneConfig, about: dict, evaluation: Evaluation | None, calibration: Calibration | None) -> str:
    lines = [
        f"# {config.name}",
        "",
        f"A {config.head.kind} model, recipe `{config.recipe}`, fitted on {about['num_labels']} labelled studies of "
        f"`{config.data.manifest}` (seed {config.training.seed}, {config.training.steps} steps).",
        "",
    ]
    if evaluation is not None:
        lines += [
            f"On {len(evaluation.cases)} other studies of the same collection (mean and bootstrap 95 % interval):",
            "",
        ]
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {name} | {interval} |" for name, interval in evaluation.figures.items()]
        lines.append("")
    lines.append(f"{calibration_words(calibration)} Not a medical device.")
    return "\n".join(lines) + "\n"
