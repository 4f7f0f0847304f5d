"""Patients without files: the same request gives the same study, another repeat another scan of the same head."""

import numpy as np

from foundation.cohort.stream import CohortStream, StreamConfig

CONFIG = StreamConfig(subjects=3, kept=1, spacing_mm=4.0, contrasts=("T1w", "T2w"), missing_series=0.0)


def test_a_study_depends_on_its_index_and_repeat_alone() -> None:
    """Whatever was asked for in between, and though only one head is kept."""
    stream = CohortStream(CONFIG)
    assert len(stream) == 3
    first = stream.study(0, 5)
    stream.study(1, 5)
    again = stream.study(0, 5)
    for one, other in zip(first.series, again.series, strict=True):
        np.testing.assert_array_equal(one.voxels, other.voxels)
        np.testing.assert_array_equal(one.affine, other.affine)


def test_another_repeat_is_another_scan_of_the_same_head() -> None:
    stream = CohortStream(CONFIG)
    first, second = stream.study(0, 1), stream.study(0, 2)
    assert first.subject == second.subject
    assert first.reference.acquisition != second.reference.acquisition
    bodies = [series.voxels > 0.2 * np.percentile(series.voxels, 99) for series in (first.reference, second.reference)]
    assert 2 * (bodies[0] & bodies[1]).sum() / (bodies[0].sum() + bodies[1].sum()) > 0.8
