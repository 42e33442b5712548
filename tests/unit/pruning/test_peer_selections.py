"""Selections of other methods against their definitions, by brute force on small layers."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks import peer_selections
from benchmarks.peer_selections import PEER_SELECTIONS, explained_energy, modegpt, obs, swaps
from sparsekd.pruning.statistics import LayerStatistics


def layer(neurons: int, seed: int) -> LayerStatistics:
    """Statistics of correlated activations; the target is the layer's own output."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.rand(neurons, neurons, dtype=torch.float64, generator=generator)
    a = torch.randn(200, neurons, dtype=torch.float64, generator=generator) @ mixing
    down = torch.randn(4, neurons, dtype=torch.float64, generator=generator)
    covariance = a.T @ a / len(a)
    return LayerStatistics(
        covariance, a.mean(0), a.abs().mean(0), down @ covariance, down, (), torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("name", PEER_SELECTIONS)
def test_each_gives_as_many_different_neurons_as_asked_for(name: str) -> None:
    assert len(set(PEER_SELECTIONS[name](layer(12, 0), 5).keep(5).tolist())) == 5


@pytest.mark.parametrize("block", [1, 3, 64])
@pytest.mark.parametrize("seed", range(5))
def test_obs_eliminates_what_raises_the_error_least_each_time(
    seed: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_selections, "_BLOCK", block)
    statistics, kept = layer(8, seed), list(range(8))
    for _ in range(4):
        kept.remove(max(kept, key=lambda j: explained_energy(statistics, torch.tensor([i for i in kept if i != j]))))
    assert obs(statistics, 4).keep(4).tolist() == kept


@pytest.mark.parametrize("seed", range(5))
def test_swaps_lie_between_obs_and_the_best_of_all_choices(seed: int) -> None:
    statistics = layer(9, seed)
    best = max(explained_energy(statistics, torch.tensor(kept)) for kept in itertools.combinations(range(9), 4))
    found = explained_energy(statistics, swaps(statistics, 4).keep(4))
    assert explained_energy(statistics, obs(statistics, 4).keep(4)) <= found <= best * (1 + 1e-9)


def test_leverage_is_the_diagonal_of_its_formula() -> None:
    statistics = layer(6, 1)
    c = statistics.covariance
    damped = c + 0.01 * c.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    leverage = (c @ damped.inverse()).diagonal()
    assert modegpt(statistics, 3).order.tolist() == leverage.argsort(descending=True).tolist()
