"""What a feed-forward layer's activations are on average, accumulated in float32 and averaged in float64."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_COLUMN_BLOCKS = 4


class Moments:
    """Running sums over tokens of ã ãᵀ, ã, |ã|, t ãᵀ and ‖t‖², for activations ã (neurons) and targets t (hidden)."""

    def __init__(self, neurons: int, hidden: int, device: torch.device) -> None:
        self._covariance = torch.zeros(neurons, neurons, device=device)
        self._cross = torch.zeros(hidden, neurons, device=device)
        self._sum = torch.zeros(neurons, dtype=torch.float64, device=device)
        self._sum_abs = torch.zeros(neurons, dtype=torch.float64, device=device)
        self._target = torch.zeros((), dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, activations: Float[Tensor, "tokens neurons"], target: Float[Tensor, "tokens hidden"]) -> None:
        """Add a batch of tokens."""
        a, t = activations.float(), target.float()
        with _bfloat16_products() if activations.dtype is torch.bfloat16 else contextlib.nullcontext():
            for start, end in self._blocks():
                # Only blocks on and above the diagonal: the matrix is symmetric, which saves 3/8 of the work
                self._covariance[start:end, start:].addmm_(a[:, start:end].T, a[:, start:])
            self._cross.addmm_(t.T, a)
        self._sum += a.sum(0)
        self._sum_abs += a.abs().sum(0)
        self._target += t.square().sum()
        self.tokens += len(a)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        neurons = len(self._covariance)
        return itertools.pairwise(neurons * block // _COLUMN_BLOCKS for block in range(_COLUMN_BLOCKS + 1))

    @property
    def covariance(self) -> Float[Tensor, "neurons neurons"]:
        """C = E[ã ãᵀ], float64."""
        full = self._covariance.double().triu_().div_(self.tokens)
        for start, end in self._blocks():
            full[start:, start:end] += full[start:end, start:].triu(1).T
        return full

    @property
    def mean(self) -> Float[Tensor, " neurons"]:
        """E[ã], float64."""
        return self._sum / self.tokens

    @property
    def mean_abs(self) -> Float[Tensor, " neurons"]:
        """E[|ã|], float64."""
        return self._sum_abs / self.tokens

    @property
    def cross(self) -> Float[Tensor, "hidden neurons"]:
        """E[t ãᵀ], float64."""
        return self._cross.double() / self.tokens

    @property
    def target_energy(self) -> float:
        """E[‖t‖²]."""
        return float(self._target) / self.tokens


@contextlib.contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Let the CPU multiply float32 matrices by its bfloat16 units: exact where every entry is a bfloat16 number.

    The products of such numbers fit into float32, in which they are summed as always. Other entries are rounded, each
    by up to 2⁻⁹ of itself, to either side: averaged over thousands of tokens that is far below what tokens differ by.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@dataclass(frozen=True)
class LayerStatistics:
    """All that a selection may go by. Averages are float64 over the tokens that the layer's statistics come from.

    Where a family weighs its tokens (sparsekd/pruning/target.py), a stands for the weighted activation everywhere.
    """

    covariance: Float[Tensor, "neurons neurons"]  # C = E[a aᵀ]; not centred
    mean: Float[Tensor, " neurons"]  # E[a], so that Var(a) = diag C − E[a]²
    mean_abs: Float[Tensor, " neurons"]  # E|a|
    target: Float[Tensor, "hidden neurons"]  # T = E[t aᵀ], t what the compensation aims at; W C for the own output
    down: Float[Tensor, "hidden neurons"]  # W, float64
    incoming: tuple[Float[Tensor, "neurons hidden"], ...]  # gate (where there is one) and up, in the model's dtype
    generator: torch.Generator  # on the CPU, seeded for this layer
