"""Pruning of one layer from its statistics: tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsekd.config import Prune
from sparsekd.pruning.compensation import ridge
from sparsekd.pruning.selection import select_svd
from sparsekd.pruning.statistics import Moments


@dataclass(frozen=True)
class PrunedLayer:
    """Neurons to keep, their new down-projection, and how well the layer's target is met before and after."""

    neurons: Int[Tensor, " kept"]
    down_weight: Float[Tensor, "hidden kept"]
    spectrum_kept: float
    error_before: float
    error_after: float


def prune_layer(moments: Moments, weight: Float[Tensor, "hidden neurons"], width: int, config: Prune) -> PrunedLayer:
    """Select `width` neurons and compensate toward T = β E[t ãᵀ] + (1−β) W C (METHOD: sequential ridge).

    Errors are squared, relative to the target's energy, with the sliced and with the compensated weights. At full
    width the layer is kept as it is.
    """
    covariance, w = moments.covariance, weight.detach().double()
    own = w @ covariance
    target = config.beta * moments.cross + (1 - config.beta) * own
    energy = _target_energy(moments, w, own, config.beta)
    if width == w.shape[1]:
        error = _error(w, covariance, target, energy)
        return PrunedLayer(torch.arange(width, device=w.device), w, 1.0, error, error)
    selection = select_svd(covariance, w.norm(dim=0))
    keep = selection.keep(width).to(w.device)
    kept_covariance = covariance[keep][:, keep]
    damping = config.ridge * float(covariance.diagonal().mean())
    del covariance, own  # half a gigabyte at 8192 neurons
    compensated = ridge(target[:, keep], kept_covariance, w[:, keep], damping)
    return PrunedLayer(
        keep,
        compensated,
        float(selection.explained[width - 1]),
        _error(w[:, keep], kept_covariance, target[:, keep], energy),
        _error(compensated, kept_covariance, target[:, keep], energy),
    )


def _target_energy(moments: Moments, weight: Tensor, own: Tensor, beta: float) -> float:
    """E‖β t + (1−β) W ã‖²."""
    cross = float((weight * moments.cross).sum())
    return (
        beta**2 * moments.target_energy + 2 * beta * (1 - beta) * cross + (1 - beta) ** 2 * float((weight * own).sum())
    )


def _error(weight: Tensor, covariance: Tensor, target: Tensor, energy: float) -> float:
    """E‖target − W ã‖² / E‖target‖², from the moments alone."""
    left = energy - 2 * float((weight * target).sum()) + float((weight * (weight @ covariance)).sum())
    return max(left, 0.0) / energy if energy > 0 else 0.0
