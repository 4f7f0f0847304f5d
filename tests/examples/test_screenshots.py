"""The documentation's pictures stay small."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from examples.screenshots import MOST_BYTES, small
from foundation.errors import InputError


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def test_pictures_take_as_many_colours_as_fit():
    shades = np.repeat(np.linspace(0, 255, 960).astype(np.uint8)[:, None], 1440, axis=1)
    smooth = np.stack([shades, shades[::-1], 255 - shades // 2], axis=-1)
    made = small(png(smooth))
    assert len(made) <= MOST_BYTES and Image.open(io.BytesIO(made)).size == (1440, 960)
    noise = 64 * np.random.default_rng(0).integers(0, 4, (720, 960, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="at most"):
        small(png(noise))
