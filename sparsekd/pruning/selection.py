"""Which neurons to keep. A selection is a function of a layer's statistics; `SELECTIONS` names those of params.yaml.

Any other function with the same arguments can be given to `prune_model`. Those here rank all neurons whatever the
count, so that a smaller choice is the beginning of a larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.linalg import lapack
from torch import Tensor

from sparsekd.config import SelectionName
from sparsekd.pruning.statistics import LayerStatistics

_COLUMNS = 256
_PANEL = 64
_EXPLAINED = 1e-8
"""A neuron of whose energy at most this share is left adds nothing but rounding errors."""
_BY_ENERGY = 4
"""Of so many pivots of `mean_abs_svd` one is picked by energy, the others by the mean of |a| (docs/experiments.md)."""


@dataclass(frozen=True)
class Selection:
    """Neurons, the most important first: all of them, or as many as were asked for."""

    order: Int[Tensor, " neurons"]
    explained: Float[Tensor, " neurons"] | None = None
    """Cumulative share of trace(D C D) that the first k explain, where the selection knows it anyway."""

    def keep(self, count: int) -> Int[Tensor, " kept"]:
        """The `count` best neurons in ascending order of index, which keeps a checkpoint's neighbours together.

        Raises ValueError when the order has fewer neurons, or one of them twice.
        """
        kept = self.order[:count].sort().values
        different = len(set(kept.tolist()))
        if different < count:
            raise ValueError(f"A selection gave {different} different neurons of {count}; it must give all.")
        return kept


Select = Callable[[LayerStatistics, int], Selection]
"""Statistics of a layer and how many neurons will stay, to the choice."""


def by_score(score: Float[Tensor, " neurons"]) -> Selection:
    """The highest score first, equal ones by index; one that is no number counts as 0."""
    return Selection(score.nan_to_num(nan=0.0).argsort(descending=True, stable=True))


def svd(layer: LayerStatistics, count: int) -> Selection:
    """SVD subset selection (Golub & Van Loan) of C^(1/2) D."""
    return select_svd(layer.covariance, layer.down.norm(dim=0))


def mean_abs_svd(layer: LayerStatistics, count: int) -> Selection:
    """As `svd`, but three of four pivots are the neuron of the highest E|a_j| that those before it do not explain yet.

    Energy is what a few strong tokens make it; the mean of |a| also speaks for neurons that other text needs.
    """
    return select_svd(layer.covariance, layer.down.norm(dim=0), layer.mean_abs)


def energy(layer: LayerStatistics, count: int) -> Selection:
    """‖W_:j‖₂ · √C_jj, the root mean square of what neuron j gives to the output (like Wanda-sp)."""
    return by_score(layer.down.norm(dim=0) * layer.covariance.diagonal().clamp_min(0).sqrt())


def mean_abs(layer: LayerStatistics, count: int) -> Selection:
    """E|a_j|, the criterion of Minitron (arXiv 2407.14679) with the mean over all tokens."""
    return by_score(layer.mean_abs)


def magnitude(layer: LayerStatistics, count: int) -> Selection:
    """The L2 norm of all the neuron's weights as one group: its rows of gate and up, and its column of down.

    Biases do not count, and neither does any text.
    """
    squares = [weight.double().square().sum(1) for weight in layer.incoming]
    return by_score(torch.stack([*squares, layer.down.square().sum(0)]).sum(0).sqrt())


def random(layer: LayerStatistics, count: int) -> Selection:
    """A random order, another in each layer, the same for the same `prune.seed`."""
    return Selection(torch.randperm(layer.down.shape[1], generator=layer.generator))


SELECTIONS: Mapping[SelectionName, Select] = {
    "mean_abs_svd": mean_abs_svd, "svd": svd, "energy": energy, "mean_abs": mean_abs, "magnitude": magnitude,
    "random": random,
}  # fmt: skip


def select_svd(
    covariance: Float[Tensor, "neurons neurons"],
    down_norms: Float[Tensor, " neurons"],
    score: Float[Tensor, " neurons"] | None = None,
) -> Selection:
    """Column-pivoted QR of C^(1/2) D at full rank, D = diag(‖W_:j‖), by pivoted Cholesky of D C D in float64.

    One pass and no inverse, safe on a singular C: neurons beyond the numerical rank follow by their energy. A pivot is
    the neuron of which the most energy is left; with `score`, that is every fourth, and the others are the highest
    score of which any is left.
    """
    norms = down_norms.double()
    # LAPACK wants columns: the transpose of D C D in rows, so that it works in this memory and makes no copy
    matrix = covariance.double() * norms[None, :]
    matrix *= norms[:, None]
    energies = matrix.diagonal().clamp_min(0)
    total = float(energies.sum())
    if not matrix.isfinite().all():
        return by_score(energies)
    if total <= 0:  # every neuron is dead: any choice is as good
        count = len(norms)
        return Selection(torch.arange(count), torch.ones(count, dtype=torch.float64))
    if score is None:
        factor, order, rank = _pivoted_cholesky(matrix.cpu())
        columns, pivots = _squared_columns(factor), order[:rank]
    else:
        columns, pivots = _led_cholesky(matrix.cpu(), score.cpu())
    explained = torch.ones(len(norms), dtype=torch.float64)
    explained[: len(pivots)] = (columns.cumsum(0) / total).clamp_max(1)
    rest = energies.cpu().index_fill(0, pivots, -1.0).argsort(descending=True, stable=True)
    return Selection(torch.cat([pivots, rest[: len(norms) - len(pivots)]]), explained)


def _led_cholesky(
    matrix: Float[Tensor, "n n"], score: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " rank"], Int[Tensor, " rank"]]:
    """Squared norms of the columns of L with P M Pᵀ = L Lᵀ, and the pivots, up to M's numerical rank.

    Pivots are picked one by one and their columns made from the panel's; what a panel explains leaves `matrix` in one
    product, and its neurons leave too, all in place. LAPACK's routine takes no pivots but its own.
    """
    neurons, score = torch.arange(len(matrix)), score.clone()  # of the rows of `matrix`, which those picked leave
    left = matrix.diagonal().clamp_min(0)
    nothing = _EXPLAINED * left
    pivots: list[int] = []
    squares: list[Tensor] = []
    while len(neurons):
        panel = matrix.new_zeros(len(matrix), _PANEL)
        stays = torch.ones(len(matrix), dtype=torch.bool)
        picked = _panel(panel, matrix, left, nothing, score, stays, len(pivots))
        if not picked:
            break
        pivots += neurons[picked].tolist()
        squares.append(panel[:, : len(picked)].square().sum(0))
        matrix.addmm_(panel, panel.T, alpha=-1)
        count = int(stays.sum())
        gaps, last = (~stays[:count]).nonzero()[:, 0], stays[count:].nonzero()[:, 0] + count
        matrix[gaps] = matrix[last]
        matrix[:, gaps] = matrix[:, last]
        matrix = matrix[:count, :count]
        for vector in (neurons, score, left, nothing):
            vector[gaps] = vector[last]
        neurons, score, nothing = neurons[:count], score[:count], nothing[:count]
        left = torch.minimum(left[:count], matrix.diagonal()).clamp_min(0)
    return torch.cat(squares), torch.tensor(pivots)


def _panel(
    panel: Float[Tensor, "n panel"],
    matrix: Float[Tensor, "n n"],
    left: Float[Tensor, " n"],
    nothing: Float[Tensor, " n"],
    score: Float[Tensor, " n"],
    stays: Bool[Tensor, " n"],
    before: int,
) -> list[int]:
    """The next pivots, as rows of `matrix`, their columns in `panel`; what they leave goes into `left` and `stays`.

    In NumPy, on the tensors' own memory: these are thousands of small steps, and torch takes twice as long for them.
    """
    columns, values, rest, least, scores, open_ = (
        tensor.numpy() for tensor in (panel, matrix, left, nothing, score, stays)
    )
    picked: list[int] = []
    for place in range(columns.shape[1]):
        wanted = rest if (before + place + 1) % _BY_ENERGY == 0 else scores
        candidates = np.where(rest > least, wanted, -np.inf)
        pivot = int(candidates.argmax())
        if candidates[pivot] == -np.inf:
            break
        column = values[pivot] - columns[:, :place] @ columns[pivot, :place]
        column *= open_ / np.sqrt(rest[pivot])
        columns[:, place] = column
        rest -= column * column
        rest[pivot], open_[pivot] = 0, False
        picked.append(pivot)
    return picked


def _squared_columns(factor: Float[Tensor, "neurons rank"]) -> Float[Tensor, " rank"]:
    """Squared norms of the columns of its lower triangle, some at a time: all squares would be a second factor."""
    parts = enumerate(torch.split(factor, _COLUMNS, dim=1))
    return torch.cat([part.tril(-number * _COLUMNS).square().sum(0) for number, part in parts])


def explained_by(
    covariance: Float[Tensor, "neurons neurons"], down_norms: Float[Tensor, " neurons"], kept: Int[Tensor, " kept"]
) -> float:
    """Share of trace(D C D) that the neurons `kept` explain: the energy of all columns of C^(1/2) D in their span."""
    norms = down_norms.double()
    matrix = (covariance.double() * norms[:, None] * norms[None, :]).cpu()
    total = float(matrix.diagonal().clamp_min(0).sum())
    if total <= 0 or not matrix.isfinite().all():
        return 1.0
    kept = kept.cpu()
    factor, pivots, rank = _pivoted_cholesky(matrix[kept][:, kept])
    factor = factor.tril()
    rest = torch.ones(len(matrix), dtype=torch.bool).index_fill(0, kept, False)
    others = torch.linalg.solve_triangular(factor[:rank], matrix[kept[pivots[:rank]]][:, rest], upper=False)
    return min(float(factor.square().sum() + others.square().sum()) / total, 1.0)


def _pivoted_cholesky(matrix: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n rank"], Int[Tensor, " n"], int]:
    """L with P M Pᵀ = L Lᵀ up to M's numerical rank, the pivots in order, and that rank.

    L is the lower triangle of what is given back, which lies in the memory of `matrix`; above it there are leftovers.
    """
    factor, pivots, rank, _ = lapack.dpstrf(matrix.numpy().T, lower=1, overwrite_a=1)
    return torch.from_numpy(factor)[:, :rank], torch.from_numpy(pivots.astype("int64")) - 1, rank
