"""What a message shows of bytes and of text from outside."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from foundation.errors import InputError
from foundation.reading.nifti import read_nifti
from foundation.reading.raw import read_raw
from foundation.text import shown, without_bytes


def test_bytes_are_shown_as_they_read():
    assert shown(b"hell") == "'hell'" and shown(b"\x89HDF") == "the bytes 89 48 44 46" and shown(b"") == "none"
    assert without_bytes("expected b'\\x93NUMPY', got b'hello'") == "expected the bytes 93 4e 55 4d 50 59, got 'hello'"
    assert without_bytes("it's a \"b\" and a verb'") == "it's a \"b\" and a verb'"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "a.npz", "a.h5", "a.hdr"])
@pytest.mark.parametrize(
    "content", [b"hello world, this is no image at all" * 20, b"\x89\x00\xff", b"", gzip.compress(b"hi", mtime=0)]
)
def test_no_message_speaks_python(tmp_path: Path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        (read_nifti if ".nii" in name else read_raw)(path)
    assert "b'" not in str(caught.value) and 'b"' not in str(caught.value) and "\\x" not in str(caught.value)
