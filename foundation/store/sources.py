"""What a store is made from: the rows of a manifest, or a Hugging Face data set with a column of NIfTI files.

Both are a sequence of series in an order that does not change, so that a run that was killed knows how far it came.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from foundation.errors import InputError, did_you_mean
from foundation.reading.collection import Collection
from foundation.reading.nifti import nifti_stem
from foundation.store.index import Share
from foundation.store.prepare import Source


@runtime_checkable
class Sources(Protocol):
    """`identity` says which collection it is; `total` is None where only the end of a stream tells."""

    @property
    def identity(self) -> str: ...
    def total(self, share: Share) -> int | None: ...
    def series(self, share: Share) -> Iterator[Source]: ...


def belongs(subject: str, share: Share) -> bool:
    """By the subject's name alone, so that a subject is on one machine whatever else the collection holds."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") % share.of == share.index


@dataclass(frozen=True)
class ManifestSources:
    """The series of a manifest, every split of it."""

    collection: Collection

    @property
    def identity(self) -> str:
        return f"manifest with sha256 {self.collection.manifest_sha256}"

    def total(self, share: Share) -> int:
        return sum(len(row.series) for row in self.collection.rows if belongs(row.subject, share))

    def series(self, share: Share) -> Iterator[Source]:
        root = self.collection.root
        for row in self.collection.rows:
            if not belongs(row.subject, share):
                continue
            for number, entry in enumerate(row.series):
                yield Source(
                    subject=row.subject,
                    session=row.session,
                    number=number,
                    name=entry.path,
                    file=root / entry.path,
                    contrast=entry.contrast,
                    removed=None if entry.removed is None else root / entry.removed,
                    split=row.split,
                )


@dataclass(frozen=True)
class HuggingFaceSources:
    """The rows of a data set, each one series. `split` is the data set's own; streaming fetches volumes as they are needed.

    Columns 'subject', 'session' and 'contrast' are used where there are any; otherwise subject and session are those of a
    BIDS file name, and a file without one is a subject of its own. No split of ours is known: train on it with splits=null.
    """

    name: str
    column: str
    split: str = "train"
    streaming: bool = False

    @property
    def identity(self) -> str:
        return f"data set {self.name}, column {self.column}, split {self.split}"

    def total(self, share: Share) -> int | None:
        """Known without reading the rows only where one machine takes them all."""
        return None if self.streaming or share.of > 1 else len(self._load())

    def series(self, share: Share) -> Iterator[Source]:
        numbers: Counter[tuple[str, str]] = Counter()
        for place, row in enumerate(self._rows()):
            source = self._source(row, place)
            if belongs(source.subject, share):
                key = (source.subject, source.session)
                yield Source(**{**vars(source), "number": numbers[key]})
                numbers[key] += 1

    def _rows(self) -> Iterator[dict[str, Any]]:
        from datasets import Nifti

        data = self._load()
        known = data.column_names
        if known is not None and self.column not in known:
            remedy = did_you_mean(self.column, known)
            raise InputError("the data set has the column", got=repr(self.column), remedy=remedy, file=self.name)
        kept = [name for name in (self.column, "subject", "session", "contrast") if known is None or name in known]
        try:
            # Not decoded: datasets' own decoding neither checks the gzip checksum nor keeps integers apart from floats.
            yield from data.select_columns(kept).cast_column(self.column, Nifti(decode=False))
        except InputError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error

    def _load(self) -> Any:
        import datasets

        folder = Path(self.name)
        try:
            if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
                data = datasets.load_from_disk(self.name)
                if isinstance(data, datasets.DatasetDict):
                    if self.split not in data:
                        remedy = did_you_mean(self.split, map(str, data))
                        raise InputError(
                            "the data set has the split", got=repr(self.split), remedy=remedy, file=self.name
                        )
                    data = data[self.split]
                return data.to_iterable_dataset() if self.streaming else data
            return datasets.load_dataset(self.name, split=self.split, streaming=self.streaming)
        except InputError:
            raise
        except Exception as error:  # its complaints have many types; only its own calls are in here
            raise self._unreadable(error) from error

    def _source(self, row: dict[str, Any], place: int) -> Source:
        value = row[self.column] or {}  # a row without a volume is a bad file like others, found when it is prepared
        path, content = value.get("path"), value.get("bytes")
        local = path.split("::")[-1] if path else ""  # 'gzip://t1.nii::/data/t1.nii.gz' is how datasets says .nii.gz
        file = Path(local) if not content and local and Path(local).is_file() else None
        stem = nifti_stem(Path(local)) if local else ""
        named = dict(re.findall(r"(?:^|_)(sub|ses)-([A-Za-z0-9]+)", stem))
        subject = row.get("subject") or (f"sub-{named['sub']}" if "sub" in named else stem or f"row-{place:07d}")
        session = row.get("session") or (f"ses-{named['ses']}" if "ses" in named else "")
        return Source(
            subject=str(subject),
            session=str(session),
            number=0,
            name=local or f"row {place}",
            file=file,
            content=content,
            address=None if content or file else local or None,
            contrast=str(row.get("contrast") or "unknown"),  # one that is not ours is the reader's to refuse
        )

    def _unreadable(self, error: Exception) -> InputError:
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        remedy = "Check name, column, split and network; a local one is a folder that datasets wrote or can load."
        return InputError("a Hugging Face data set can be loaded", got=got, remedy=remedy, file=self.name)
