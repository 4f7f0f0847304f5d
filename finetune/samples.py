"""Labelled studies as the training loop's samples: prepared once, cropped and changed anew each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ehr.features import RecordSequence, sequence_of
from ehr.index import Admitted, admit, index_of
from ehr.record import read_records
from ehr.vocabulary import Vocabulary
from finetune.augment import Augment
from finetune.config import DataConfig, FinetuneConfig
from foundation.errors import InputError
from foundation.preprocess import Grid, PreparedStudy, prepare_study
from foundation.progress import progress
from foundation.reading.collection import Collection, Row, read_mask, read_study
from foundation.training import Draw, fold, seeded
from heads import HeadConfig
from heads._record import RecordConfig
from heads.base import Head, StudyBatch, StudySample, Target

Thing = TypeVar("Thing")

NEAR_STRUCTURE = 0.7  # how often a crop is centred on a labelled voxel: small structures would be missed otherwise


@dataclass(frozen=True)
class LabelledStudy:
    """A study ready for the task with its truth, `labels` on the reference series' own voxels and in the values of their file; and
    what may be known of the patient's record when it begins, where the head reads that and there is one."""

    row: Row
    prepared: PreparedStudy
    labels: np.ndarray | None
    admitted: Admitted | None = None

    @property
    def targets(self) -> dict[str, Target]:
        return dict(self.row.targets)

    def record_for(self, head: Head) -> RecordSequence | None:
        """The record in the codes that the head knows."""
        reading = head.reads_record
        if reading is None or self.admitted is None:
            return None
        return sequence_of(self.admitted, Vocabulary(codes=reading.codes), max_events=reading.max_events)


def choose_rows(collection: Collection, data: DataConfig, seed: int) -> list[Row]:
    """The training rows: all of the split, or `num_labels` of them drawn by the seed."""
    rows = list(collection.split(data.train_split))
    wanted = len(rows) if data.num_labels is None else data.num_labels
    if not 0 < wanted <= len(rows):
        raise InputError(
            "there are as many labelled studies as asked for",
            got=f"{len(rows)} in split '{data.train_split}', data.num_labels={data.num_labels}",
            remedy="Lower data.num_labels or name another data.train_split.",
            file=collection.path,
        )
    order = torch.randperm(len(rows), generator=seeded(seed, 17))
    return [rows[i] for i in order[:wanted].tolist()]


def read_labelled(
    collection: Collection, rows: Sequence[Row], head: Head, spacing_mm: tuple[float, float, float], *, label: str
) -> list[LabelledStudy]:
    """Read, check and prepare rows with the truth that the head needs."""
    studies = []
    for row in progress_over(rows, label):
        study = read_study(row, collection.root)
        labels = None
        if head.is_dense or (head.draws and row.mask is not None):
            if row.mask is None:
                remedy = "Give the row a mask, or leave it out of this split."
                raise InputError(
                    "a dense task has a mask for every study",
                    got=f"none for {row.subject}",
                    remedy=remedy,
                    file=collection.path,
                )
            labels = read_mask(row, study, collection.root)
        admitted = None if head.reads_record is None else record_of(row, collection.root)
        studies.append(LabelledStudy(row, prepare_study(study, spacing_mm), labels, admitted))
    return studies


def record_of(row: Row, root: Path) -> Admitted | None:
    """What may be known of the row's patient when its study begins; None without a record."""
    if row.ehr is None:
        return None
    record = read_records(root / row.ehr).only()
    return admit(record, index_of(record, study_uid=row.study_uid))


def with_vocabulary(head: HeadConfig, rows: Sequence[Row], root: Path) -> HeadConfig:
    """The head's config with the codes that these rows' patients have, if it reads records and has none yet."""
    reading: RecordConfig | None = getattr(head, "record", None)
    if reading is None or reading.codes:
        return head
    known = [one for row in rows if (one := record_of(row, root)) is not None]
    codes = Vocabulary.fit(known, min_patients=reading.min_patients).codes
    return head.model_copy(update={"record": reading.model_copy(update={"codes": codes})})


def progress_over(things: Sequence[Thing], label: str) -> Iterator[Thing]:
    with progress(total=len(things), label=label, unit="study") as bar:
        for thing in things:
            yield thing
            bar.update()


class LabelledSamples:
    """The dataset of `foundation.training` for a task."""

    def __init__(self, studies: Sequence[LabelledStudy], head: Head, config: FinetuneConfig):
        self.crop, self.sees_voxels = config.data.crop_voxels, head.sees_voxels
        self.augment = Augment(config.augment, config.data.spacing_mm)
        self.samples = []
        for study in studies:
            labels = None
            if study.labels is not None:
                labels = study.prepared.labels_to_grid(head.classes_of(study.labels))
            record = study.record_for(head)
            self.samples.append(StudySample.of(study.prepared, labels, study.targets, record))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> StudySample:
        return self.augment(self.plain(draw), draw.seed)

    def plain(self, draw: Draw) -> StudySample:
        """The study, or a box of it, as it is."""
        sample = self.samples[draw.index]
        return sample if self.crop is None else crop_sample(sample, self.crop, draw.seed)

    def collate(self, samples: list[StudySample]) -> StudyBatch:
        return StudyBatch.of(samples, dense=self.sees_voxels)


def crop_sample(sample: StudySample, voxels: tuple[int, int, int], seed: int) -> StudySample:
    """A box of at most `voxels`, mostly around a labelled voxel; its grid keeps its place in the patient."""
    generator = seeded(seed, 5)
    shape = torch.tensor(sample.grid.shape)
    size = torch.minimum(torch.tensor(voxels), shape)
    first = (torch.rand(3, generator=generator) * (shape - size + 1)).long()
    if sample.labels is not None and torch.rand((), generator=generator) < NEAR_STRUCTURE:
        labelled = sample.labels.nonzero()
        if len(labelled):
            voxel = labelled[torch.randint(len(labelled), (), generator=generator)]
            within = (torch.rand(3, generator=generator) * size).long()
            first = (voxel - within).clamp(min=0).minimum(shape - size)
    x, y, z = (slice(a, a + n) for a, n in zip(first.tolist(), size.tolist(), strict=True))
    affine = sample.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first.numpy()
    i, j, k = (int(n) for n in size)
    body = sample.body[:, x, y, z]
    if not body.any():
        return crop_sample(sample, voxels, fold(seed, 6))
    return replace(
        sample,
        voxels=sample.voxels[:, x, y, z],
        body=body,
        grid=Grid((i, j, k), affine),
        labels=None if sample.labels is None else sample.labels[x, y, z],
    )
