"""Pruning of one layer from its statistics: tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsekd.config import Prune
from sparsekd.pruning.compensation import ridge
from sparsekd.pruning.selection import SELECTIONS, Select, explained_by
from sparsekd.pruning.statistics import LayerStatistics, Moments


@dataclass(frozen=True)
class PrunedLayer:
    """Neurons to keep, their new down-projection, and how well the layer's target is met before and after."""

    neurons: Int[Tensor, " kept"]
    down_weight: Float[Tensor, "hidden kept"]
    spectrum_kept: float
    error_before: float
    error_after: float


def prune_layer(
    moments: Moments,
    weight: Float[Tensor, "hidden neurons"],
    width: int,
    config: Prune,
    incoming: tuple[Float[Tensor, "neurons hidden"], ...] = (),
    number: int = 0,
    select: Select | None = None,
) -> PrunedLayer:
    """Select `width` neurons, by `select` in place of `config.selection`, and refit their down-projection `weight`.

    The target is the layer's own output, T = W C, blended with `moments.cross` when the compensation is sequential:
    T = β E[t ãᵀ] + (1−β) W C. `incoming` are the weights of gate and up, `number` the layer's, which seeds its
    generator. Errors are squared, relative to the target's energy, with the sliced and with the compensated weights.
    At full width the layer is kept as it is.
    """
    covariance, w = moments.covariance, weight.detach().double()
    beta = config.beta if config.compensation == "sequential" else 0.0
    own = w @ covariance
    target = beta * moments.cross + (1 - beta) * own
    energy = _target_energy(moments, w, own, beta)
    if width == w.shape[1]:
        error = _error(w, covariance, target, energy)
        return PrunedLayer(torch.arange(width, device=w.device), w, 1.0, error, error)
    generator = torch.Generator().manual_seed((config.seed << 16) + number)
    layer = LayerStatistics(covariance, moments.mean, moments.mean_abs, target, w, incoming, generator)
    selection = (select or SELECTIONS[config.selection])(layer, width)
    keep = selection.keep(width).to(w.device)
    if selection.explained is None:
        spectrum = explained_by(covariance, w.norm(dim=0), keep)
    else:
        spectrum = float(selection.explained[width - 1])
    kept_covariance, kept_target, sliced = covariance[keep][:, keep], target[:, keep], w[:, keep]
    before = _error(sliced, kept_covariance, kept_target, energy)
    if config.compensation == "none":
        return PrunedLayer(keep, sliced, spectrum, before, before)
    damping = config.ridge * float(covariance.diagonal().mean())
    del covariance, own, layer  # half a gigabyte at 8192 neurons
    compensated = ridge(kept_target, kept_covariance, sliced, damping)
    after = _error(compensated, kept_covariance, kept_target, energy)
    return PrunedLayer(keep, compensated, spectrum, before, after)


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
