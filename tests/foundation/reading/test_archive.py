"""A zip writes nowhere but under our numbers, and cannot grow beyond what is allowed."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest

from foundation.errors import InputError
from foundation.reading import archive
from foundation.reading.archive import gather

DICOM = bytes(128) + b"DICM" + b"x" * 100


def make(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_names_in_a_zip_are_not_used(tmp_path: Path) -> None:
    names = ["../../evil", "/etc/evil", "C:\\evil", "a/b/c", "plain"]
    path = make(tmp_path / "a.zip", {name: name.encode() for name in names})
    found = gather(path, tmp_path / "in" / "deep")
    assert [file.name for file in found] == ["00001", "00002", "00003", "00004", "00005"]
    assert sorted(file.read_bytes().decode() for file in found) == sorted(names)
    assert {path.name for path in tmp_path.rglob("*")} == {"a.zip", "in", "deep", *(file.name for file in found)}


def test_a_member_without_a_name_is_a_file(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"x": DICOM})
    nameless = zipfile.ZipInfo("y")
    nameless.filename = ""
    with zipfile.ZipFile(path, "a") as file, file.open(nameless, "w") as stream:
        stream.write(DICOM)
    assert len(gather(path, tmp_path / "in")) == 2


def test_links_and_litter_are_left_out(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"__MACOSX/._a": b"x", "good": DICOM, "x/.DS_Store": b"x"})
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    [only] = gather(path, tmp_path / "in")
    assert only.read_bytes() == DICOM and not only.is_symlink()

    outside = tmp_path / "outside"
    outside.write_bytes(DICOM)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "own").write_bytes(DICOM)
    (folder / "packed.dcm.gz").write_bytes(gzip.compress(DICOM))
    (folder / "log.gz").write_bytes(gzip.compress(b"nothing of ours"))
    found = gather(folder, tmp_path / "linked")
    assert [file.read_bytes() for file in found] == [b"", DICOM, DICOM]


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.zip", {"bomb": bytes(archive.SMALL_BYTES + 1)})
    with pytest.raises(InputError, match="times as much inside as outside"):
        gather(path, tmp_path / "a")
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(InputError, match="at most"):
        gather(make(tmp_path / "b.zip", {"one": bytes(600), "two": bytes(600)}), tmp_path / "b")
    (tmp_path / "c.dcm.gz").write_bytes(gzip.compress(DICOM + bytes(2000)))
    with pytest.raises(InputError, match="at most"):
        gather(tmp_path / "c.dcm.gz", tmp_path / "c")
    monkeypatch.setattr(archive, "MAX_FILES", 2)
    with pytest.raises(InputError, match="at most 2 files"):
        gather(make(tmp_path / "d.zip", dict.fromkeys("abc", b"")), tmp_path / "d")


def test_damaged_and_locked_zips_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"one": bytes(range(256)) * 40})
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        gather(path, tmp_path / "a")
    path.write_bytes(content[:50])
    with pytest.raises(InputError, match="damaged"):
        gather(path, tmp_path / "b")
    content = bytearray(make(path, {"one": b"x" * 40}).read_bytes())
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):  # the bit that says it has a password, in both headers
        content[content.index(mark) + (6 if mark[2] == 3 else 8)] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="password"):
        gather(path, tmp_path / "c")
    with pytest.raises(InputError, match="none of these"):
        gather(tmp_path / "absent", tmp_path / "d")
