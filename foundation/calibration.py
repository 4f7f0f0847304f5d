"""How a model's scores become probabilities that mean what they say: divided by temperatures that were fitted on studies which
the model did not learn from (Guo et al. 2017, arXiv 1706.04599). Dividing never changes which class scores highest.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from foundation.config import Config


class Calibration(Config):
    """One temperature where classes exclude each other, one per label where labels do not.

    `fitted_on` says on which studies, in words for a card. `errors` are, in ascending order, how wrong the model was on each of
    them: what split-conformal sets and intervals are made of (one minus the true class's probability under 'class', the
    absolute error of each structure's volume in ml under its name).
    """

    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    fitted_on: str
    num_studies: Annotated[int, Field(ge=1)]
    errors: dict[str, tuple[FiniteFloat, ...]] = Field(default_factory=dict)

    def scale(self, scores: Float[Tensor, "batch classes *voxels"]) -> Float[Tensor, "batch classes *voxels"]:
        """The scores over their temperatures; the softmax (or, label by label, the sigmoid) of that is the probability."""
        temperatures = torch.tensor(self.temperatures).to(scores)
        return scores / temperatures.reshape(1, -1, *[1] * (scores.ndim - 2))
