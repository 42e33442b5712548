"""New down-projection weights for the kept neurons: ridge regression toward what the layer should give."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_MOST_DAMPING = 12
_TRUSTED = 1e-9  # of the mean squared activation: a pivot below it is the rounding of float32 sums


def ridge(
    cross: Float[Tensor, "hidden kept"],
    covariance: Float[Tensor, "kept kept"],
    weight: Float[Tensor, "hidden kept"],
    damping: float,
) -> Float[Tensor, "hidden kept"]:
    """(T + λ W_S)(C_SS + λ I)⁻¹ in float64, where `cross` is T = E[target ã_Sᵀ] and `damping` is λ.

    Pulls toward the old weights `weight`, and so on these statistics never gives a larger error than they do. On a
    failed Cholesky, or one that divides by rounding errors, λ grows tenfold until it succeeds; a layer whose statistics
    are not finite keeps its weights.
    """
    c, t, w = covariance.double(), cross.double(), weight.double()
    scale = float(c.diagonal().mean().clamp_min(0))
    if not (torch.isfinite(c).all() and torch.isfinite(t).all()) or scale == 0:
        return w
    level = damping if damping > 0 else 1e-12 * scale
    for attempt in range(_MOST_DAMPING):
        added = damping if attempt == 0 else level * 10.0**attempt
        damped = c.clone()
        damped.diagonal().add_(added)
        factor, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not failed and factor.diagonal().min().square() >= _TRUSTED * scale:
            solved: Tensor = torch.cholesky_solve((t + added * w).T, factor).T
            if torch.isfinite(solved).all():
                return solved
    return w
