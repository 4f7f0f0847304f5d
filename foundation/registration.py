"""Rigid registration of two series of one patient, for comparing two dates; everything else here needs none.

Mutual information over a pyramid, by SimpleITK (Mattes et al. 2003; Lowekamp et al. 2013).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from foundation.errors import InputError
from foundation.preprocess import find_body, resample_series
from foundation.study import Series

SPACING_MM = 2.0  # finer changes little in where a head lies
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK counts x to the left and y to the back
FARTHEST_MM, FARTHEST_DEG = 60.0, 45.0  # beyond this the optimiser is lost, not the patient turned


def rigid(fixed: Series, moving: Series) -> Float[np.ndarray, "4 4"]:
    """Takes patient mm of `fixed` to those of `moving`, for the same place in the head.

    An `InputError` where the two cannot be brought together, as when they show different parts of the body.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # several threads add in another order each time
    images = [_image(series) for series in (fixed, moving)]
    start = sitk.CenteredTransformInitializer(
        *images, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=48)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200, gradientMagnitudeTolerance=1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    try:
        found = method.Execute(*images)
    except RuntimeError as error:
        raise InputError(
            "the two studies can be registered",
            got=str(error).strip().splitlines()[-1][:120],
            remedy="Compare studies of the same part of the same patient.",
        ) from None
    matrix = np.eye(4)
    for axis in range(3):
        corner = np.zeros(3)
        corner[axis] = 1.0
        matrix[:3, axis] = np.subtract(found.TransformPoint(corner), found.TransformPoint(np.zeros(3)))
    matrix[:3, 3] = found.TransformPoint(np.zeros(3))
    matrix = LPS @ matrix @ LPS
    _check(matrix, start_mm=np.array(LPS[:3, :3] @ np.array(start.GetParameters()[3:])), fixed=fixed)
    return matrix


def _check(matrix: np.ndarray, *, start_mm: np.ndarray, fixed: Series) -> None:
    """What is left after the centres are brought together is a patient lying otherwise, within reason."""
    centre = fixed.affine[:3, :3] @ ((np.array(fixed.shape) - 1) / 2) + fixed.affine[:3, 3]
    moved_mm = float(np.linalg.norm(matrix[:3, :3] @ centre + matrix[:3, 3] - centre - start_mm))
    turned_deg = float(np.rad2deg(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))
    if moved_mm > FARTHEST_MM or turned_deg > FARTHEST_DEG:
        raise InputError(
            "the two studies show the same head in about the same position",
            got=f"a shift of {moved_mm:.0f} mm and a turn of {turned_deg:.0f} degrees",
            remedy="Compare studies of the same part of the same patient.",
        )


def _image(series: Series):
    """The series at `SPACING_MM`, for ITK; air is set to 0, so that only the body is matched."""
    import SimpleITK as sitk

    spacing_mm = np.maximum(series.spacing_mm, SPACING_MM)
    coarse = resample_series(series, spacing_mm)
    voxels = np.where(find_body(coarse), coarse.voxels, 0.0).astype(np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    affine = LPS @ coarse.affine
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(coarse.spacing_mm.tolist())
    image.SetDirection((affine[:3, :3] / coarse.spacing_mm).ravel().tolist())
    return image
