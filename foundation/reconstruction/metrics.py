"""How far an image is from the truth, by fastMRI's definitions (Zbontar et al. 2018), over a volume at a time.

    errors(reference, image)  ->  {"nmse": 0.012, "psnr": 33.1, "ssim": 0.87}

Written out here because the libraries at hand have another SSIM: torchmetrics and MONAI divide by 49 where scikit-image,
which fastMRI uses, divides the (co)variances by 48, and pad the edges that it leaves out. Differences between good methods
are below 0.01, and such choices make 0.01.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.ndimage import uniform_filter

WINDOW = 7
K1, K2 = 0.01, 0.03

Volume = Float[np.ndarray, "slices height width"]


def errors(reference: Volume, image: Volume) -> dict[str, float]:
    return {"nmse": nmse(reference, image), "psnr": psnr(reference, image), "ssim": ssim(reference, image)}


def nmse(reference: Volume, image: Volume) -> float:
    """|image - reference|^2 / |reference|^2."""
    reference, image = reference.astype(np.float64), image.astype(np.float64)
    return float(np.sum((image - reference) ** 2) / np.sum(reference**2))


def psnr(reference: Volume, image: Volume) -> float:
    """10 log10(max(reference)^2 / mean squared error), in dB."""
    error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(float(reference.max()) ** 2 / error))


def ssim(reference: Volume, image: Volume) -> float:
    """The mean over slices of the structural similarity (Wang 2004), its range the maximum of the whole reference.

    Windows of 7 x 7 of even weight, all that lie inside a slice; (co)variances of the sample, so over n - 1.
    """
    assert reference.shape == image.shape and min(reference.shape[1:]) >= WINDOW, (reference.shape, image.shape)
    span = float(reference.max())
    return float(np.mean([_ssim_of_slice(x, y, span) for x, y in zip(reference, image)]))


def _ssim_of_slice(x: Float[np.ndarray, "height width"], y: Float[np.ndarray, "height width"], span: float) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, edge = WINDOW**2, WINDOW // 2

    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, WINDOW)[edge:-edge, edge:-edge]

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, covariance = (
        (mean(a * b) - mean_a * mean_b) * (n / (n - 1))
        for a, b, mean_a, mean_b in ((x, x, mean_x, mean_x), (y, y, mean_y, mean_y), (x, y, mean_x, mean_y))
    )
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))
