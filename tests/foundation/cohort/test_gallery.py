"""The gallery is drawn from the same code as the cohort, so that it shows what a cohort holds."""

from pathlib import Path

import matplotlib.image

from foundation.cohort.gallery import main


def test_the_gallery_is_a_picture(tmp_path: Path) -> None:
    main([str(tmp_path / "gallery.png"), "--spacing", "4"])
    picture = matplotlib.image.imread(tmp_path / "gallery.png")
    assert picture.shape[0] > picture.shape[1] > 500
    # Every row of heads shows something: no band of the figure is black.
    bands = picture[..., :3].mean(axis=(1, 2)).reshape(-1)
    rows = [bands[i * len(bands) // 10 : (i + 1) * len(bands) // 10].max() for i in range(10)]
    assert min(rows) > 0.02
