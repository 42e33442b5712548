"""Selections of other methods, as far as they are a choice of neurons, in the form that `prune_model` takes.

FLAP and MoDeGPT have criteria; OBS and OSSCAR search on the layer's least-squares error with optimal compensation,

    E(S) = E‖t‖² − tr(T_S (C_SS + λI)⁻¹ T_Sᵀ),   λ = 0.01 · mean diag C,

of which the first term is the same for every S. Each is our own code after the paper named with it; the compensation
that follows is ours for all of them, so that only the choice differs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparsekd.pruning.selection import Select, Selection, by_score
from sparsekd.pruning.statistics import LayerStatistics

_RIDGE = 0.01  # prune.ridge
_TINY = torch.finfo(torch.float64).tiny
_BLOCK = 64  # eliminations between two updates of the matrices
_SWAPS = 40  # at most, a layer
_TOLERANCE = 1e-9  # a swap must gain this share of what the kept neurons explain


def flap(layer: LayerStatistics, count: int) -> Selection:
    """Var(a_j) · ‖W_:j‖² (FLAP, arXiv 2312.11983), without its bias."""
    variance = layer.covariance.diagonal() - layer.mean.square()
    return by_score(variance * layer.down.square().sum(0))


def modegpt(layer: LayerStatistics, count: int) -> Selection:
    """Ridge leverage diag(C (C + λI)⁻¹) (MoDeGPT, arXiv 2408.09632); its Nyström step is our one-shot ridge."""
    damped = _damped(layer)
    # C (C + λI)⁻¹ = I − λ (C + λI)⁻¹
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return by_score(-inverse.diagonal())


def obs(layer: LayerStatistics, count: int) -> Selection:
    """Greedy elimination: again and again the neuron whose loss, with the others refitted, raises the error least.

    Structured optimal brain surgeon (as in ZipLM, arXiv 2302.04089): ‖w_j‖² / (H⁻¹)_jj with H = C + λI and
    w = T H⁻¹ the refitted weights, both as of the neurons that are left. Eliminations are made in blocks: the cost's
    two parts are updated after each, the matrices once a block.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(layer)))
    weight = layer.target @ inverse
    left = torch.arange(len(inverse))
    while len(left) > count:
        gone, columns, removed = _eliminated(inverse, weight, min(_BLOCK, len(left) - count))
        stay = torch.ones(len(left), dtype=torch.bool).index_fill(0, gone, False)
        columns = columns[stay]
        inverse = inverse[stay][:, stay] - columns @ columns.T
        weight = weight[:, stay] - removed @ columns.T
        left = left[stay]
    return Selection(left)


def _eliminated(inverse: Tensor, weight: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the next `count` neurons to eliminate, each given those before it, and what goes with them, U and V.

    H⁻¹ loses U Uᵀ, the weights lose V Uᵀ.
    """
    error, diagonal = weight.square().sum(0), inverse.diagonal().clone()
    columns, removed = inverse.new_empty(len(inverse), count), weight.new_empty(len(weight), count)
    gone: list[int] = []
    for step in range(count):
        pivots = diagonal.clamp_min(_TINY)
        cost = error / pivots
        cost[gone] = torch.inf
        worst = int(cost.argmin())
        # this neuron's columns of H⁻¹ and of the weights, less what the eliminations before it in the block take
        u, v, own, scale = columns[:, :step], removed[:, :step], columns[worst, :step], pivots[worst].sqrt()
        column, lost = (inverse[:, worst] - u @ own) / scale, (weight[:, worst] - v @ own) / scale
        along = weight.T @ lost - u @ (v.T @ lost)
        error = error - 2 * column * along + column.square() * lost.square().sum()
        diagonal = diagonal - column.square()
        columns[:, step], removed[:, step] = column, lost
        gone.append(worst)
    return torch.tensor(gone), columns, removed


def swaps(layer: LayerStatistics, count: int) -> Selection:
    """Local search in the way of OSSCAR (arXiv 2403.12983): from the choice of `obs`, the best of all swaps of the
    neuron that is cheapest to lose for the one that is best to gain, while the error falls.
    """
    damped, kept = _damped(layer), obs(layer, count).order
    explained = explained_energy(layer, kept)
    for _ in range(_SWAPS):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[kept][:, kept]))
        weight = layer.target[:, kept] @ inverse
        cheapest = int((weight.square().sum(0) / inverse.diagonal()).argmin())
        rest = torch.cat([kept[:cheapest], kept[cheapest + 1 :]])
        candidate = torch.cat([rest, _best_to_gain(layer, damped, rest)[None]]).sort().values
        better = explained_energy(layer, candidate)
        if better <= explained * (1 + _TOLERANCE):
            break
        kept, explained = candidate, better
    return Selection(kept)


def _best_to_gain(layer: LayerStatistics, damped: Tensor, kept: Tensor) -> Tensor:
    """The neuron outside `kept` that lowers the error most: ‖T_j − W_S C_Sj‖² over the Schur complement of j."""
    others = torch.ones(len(damped), dtype=torch.bool).index_fill(0, kept, False).nonzero()[:, 0]
    factor = torch.linalg.cholesky(damped[kept][:, kept])
    half = torch.linalg.solve_triangular(factor, damped[kept][:, others], upper=False)
    projected = torch.linalg.solve_triangular(factor, layer.target[:, kept].T, upper=False)
    left = (layer.target[:, others] - projected.T @ half).square().sum(0)
    return others[(left / (damped.diagonal()[others] - half.square().sum(0))).argmax()]


def explained_energy(layer: LayerStatistics, kept: Tensor) -> float:
    """tr(T_S (C_SS + λI)⁻¹ T_Sᵀ): what the error falls by with the neurons `kept`."""
    factor = torch.linalg.cholesky(_damped(layer)[kept][:, kept])
    return float(torch.linalg.solve_triangular(factor, layer.target[:, kept].T, upper=False).square().sum())


def _damped(layer: LayerStatistics) -> Float[Tensor, "neurons neurons"]:
    identity = torch.eye(len(layer.covariance), dtype=torch.float64)
    return layer.covariance + _RIDGE * float(layer.covariance.diagonal().mean()) * identity


PEER_SELECTIONS: dict[str, Select] = {"flap": flap, "modegpt": modegpt, "obs": obs, "swaps": swaps}
