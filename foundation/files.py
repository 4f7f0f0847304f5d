"""Outputs are written aside and renamed, so that what a path names is always whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foundation.errors import InputError


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Give a path to write to; on success it is flushed to disk and renamed to `path`, on failure it is removed.

    The aside name keeps the final suffixes, because nibabel and matplotlib choose a format by them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".aside-{os.getpid()}-{path.name}")
    try:
        yield aside
        _flush(aside)
        os.replace(aside, path)
        _flush_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def write_folder_aside(path: Path) -> Iterator[Path]:
    """The same for a folder: what was at `path` is replaced only once the new content is complete on disk.

    A folder cannot be exchanged in one step: for the moment between two renames `path` does not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".aside-{os.getpid()}-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _flush(file)
        _flush_folder(aside)
        old = path.with_name(f".old-{os.getpid()}-{path.name}")
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(aside, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        _flush_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def copy_folder_aside(source: Path, target: Path) -> None:
    """Copy a folder so that `target` is either what it was or the whole copy."""
    with write_folder_aside(target) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True)


def check_writable(folder: Path) -> str:
    """What to say of a folder that can be written; an `InputError` if it cannot. Nothing is left behind."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "Name another folder, or make room or write access."
        raise InputError("the run's folder can be written", got=str(error), remedy=remedy, file=folder) from None
    return f"{folder} can be written, {shutil.disk_usage(there).free / 1e9:.1f} GB are free"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut; a renamed file whose name is lost is lost with it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot, and keep their names in order themselves
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
