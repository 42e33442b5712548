"""Which neurons to keep: SVD subset selection (Golub & Van Loan), as a pivoted Cholesky factorisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.linalg import lapack
from torch import Tensor

_COLUMNS = 256


@dataclass(frozen=True)
class Selection:
    """Neurons by importance: any first k of `order` are the best k in the greedy sense; and the energy each adds."""

    order: Int[Tensor, " neurons"]
    explained: Float[Tensor, " neurons"]  # cumulative share of the trace that the first k explain

    def keep(self, count: int) -> Int[Tensor, " kept"]:
        """The `count` best neurons in ascending order of index, which keeps a checkpoint's neighbours together."""
        return self.order[:count].sort().values


def select_svd(covariance: Float[Tensor, "neurons neurons"], down_norms: Float[Tensor, " neurons"]) -> Selection:
    """Column-pivoted QR of C^(1/2) D at full rank, D = diag(‖W_:j‖), by pivoted Cholesky of D C D in float64.

    One pass and no inverse, safe on a singular C: neurons beyond the numerical rank follow by their remaining energy.
    """
    norms = down_norms.double()
    # LAPACK wants columns: the transpose of D C D in rows, so that it works in this memory and makes no copy
    matrix = covariance.double() * norms[None, :]
    matrix *= norms[:, None]
    energy = matrix.diagonal().clamp_min(0)
    total = float(energy.sum())
    if total <= 0:  # every neuron is dead: any choice is as good
        count = len(norms)
        return Selection(torch.arange(count), torch.ones(count, dtype=torch.float64))
    factor, pivots, rank, _ = lapack.dpstrf(matrix.cpu().numpy().T, lower=1, overwrite_a=1)
    order = torch.from_numpy(pivots.astype("int64")) - 1
    columns = _squared_columns(torch.from_numpy(factor)[:, :rank])
    explained = torch.ones(len(order), dtype=torch.float64)
    explained[:rank] = (columns.cumsum(0) / total).clamp_max(1)
    rest = order[rank:]
    order = torch.cat([order[:rank], rest[energy.cpu()[rest].argsort(descending=True, stable=True)]])
    return Selection(order, explained)


def _squared_columns(factor: Float[Tensor, "neurons rank"]) -> Float[Tensor, " rank"]:
    """Squared norms of the columns of its lower triangle, some at a time: all squares would be a second factor."""
    parts = enumerate(torch.split(factor, _COLUMNS, dim=1))
    return torch.cat([part.tril(-number * _COLUMNS).square().sum(0) for number, part in parts])
