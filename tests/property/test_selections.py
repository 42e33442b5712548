"""Every selection with every compensation: their definitions in NumPy, and matrices on which others crash."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekd.config import Compensation, Prune, SelectionName
from sparsekd.pruning.layer import prune_layer
from sparsekd.pruning.selection import SELECTIONS, Selection, explained_by, select_svd
from sparsekd.pruning.statistics import LayerStatistics, Moments

HIDDEN, NEURONS = 5, 12
PAIRS = list(itertools.product(get_args(SelectionName), get_args(Compensation)))


def moments_of(activations: torch.Tensor, target: torch.Tensor) -> Moments:
    moments = Moments(activations.shape[1], target.shape[1], torch.device("cpu"))
    for a, t in zip(activations.split(7), target.split(7), strict=True):
        moments.add(a, t)
    return moments


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(seed: int, activations: torch.Tensor) -> LayerStatistics:
    moments, down = moments_of(activations, activations @ draw(seed, NEURONS, HIDDEN)), draw(seed, HIDDEN, NEURONS)
    incoming = (draw(seed + 1, NEURONS, HIDDEN), draw(seed + 2, NEURONS, HIDDEN))
    generator = torch.Generator().manual_seed(seed)
    return LayerStatistics(
        moments.covariance, moments.mean, moments.mean_abs, moments.cross, down.double(), incoming, generator
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_scores_are_their_definitions(seed: int) -> None:
    """Each a sum over tokens or weights, written out; the highest first."""
    a = draw(seed + 5, 40, NEURONS) * torch.linspace(0.2, 2, NEURONS)
    layer = layer_of(seed, a)
    tokens, w = a.double().numpy(), layer.down.numpy()
    gate, up = (weight.double().numpy() for weight in layer.incoming)
    expected = {
        "energy": [np.sqrt(np.mean(np.sum(np.outer(tokens[:, j], w[:, j]) ** 2, 1))) for j in range(NEURONS)],
        "mean_abs": [np.abs(tokens[:, j]).mean() for j in range(NEURONS)],
        "magnitude": [np.linalg.norm(np.concatenate([gate[j], up[j], w[:, j]])) for j in range(NEURONS)],
    }
    for name, score in expected.items():
        assert SELECTIONS[name](layer, 4).order.tolist() == np.argsort(-np.array(score)).tolist(), name
    np.testing.assert_allclose(layer.mean, tokens.mean(0), atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    neurons=st.sampled_from([1, 12, 64, 65, 150]),
    rank=st.integers(1, 150),
    dead=st.integers(0, 20),
)
def test_every_fourth_pivot_is_by_energy_and_the_others_by_the_mean_of_abs(
    seed: int, neurons: int, rank: int, dead: int
) -> None:
    """Written out with a projection for each pivot; over the edges of the panels that the code works in."""
    columns = draw(seed, 200, rank).double() @ draw(seed + 1, rank, neurons).double()
    columns[:, :dead] = 0
    norms, score = draw(seed + 2, neurons).abs().double(), draw(seed + 3, neurons).abs().double()
    found = select_svd(columns.T @ columns, norms, score)
    residual, expected, explained = (columns * norms).numpy(), [], []
    energies = (residual**2).sum(0)
    enough = 1e-8 * energies
    while ((residual**2).sum(0) > enough).any():
        left = (residual**2).sum(0)
        by = left if len(expected) % 4 == 3 else score.numpy()
        pivot = int(np.where(left > enough, by, -1).argmax())
        direction = residual[:, pivot] / np.linalg.norm(residual[:, pivot])
        residual = residual - np.outer(direction, direction @ residual)
        expected.append(pivot)
        explained.append(1 - (residual**2).sum() / energies.sum())
    assert found.order[: len(expected)].tolist() == expected
    assert found.explained is not None
    np.testing.assert_allclose(found.explained[: len(expected)], explained, atol=1e-8)
    rest = energies[found.order[len(expected) :].tolist()]
    assert sorted(found.order.tolist()) == list(range(neurons))
    assert np.all(np.diff(rest) <= 0)


@pytest.mark.parametrize("name", get_args(SelectionName))
def test_a_smaller_choice_is_the_beginning_of_a_larger_one(name: SelectionName) -> None:
    a = draw(3, 40, NEURONS)
    full = SELECTIONS[name](layer_of(3, a), NEURONS).order.tolist()
    assert sorted(full) == list(range(NEURONS))
    for count in range(1, NEURONS):
        assert SELECTIONS[name](layer_of(3, a), count).order.tolist()[:count] == full[:count]


def test_random_neurons_differ_by_layer_and_seed_and_are_the_same_again() -> None:
    moments, weight = moments_of(draw(1, 20, NEURONS), draw(2, 20, HIDDEN)), draw(3, HIDDEN, NEURONS)

    def kept(seed: int, number: int) -> list[int]:
        config = Prune(selection="random", seed=seed)
        return prune_layer(moments, weight, 6, config, number=number).neurons.tolist()

    assert kept(0, 1) == kept(0, 1)
    assert len({tuple(kept(seed, number)) for seed in range(3) for number in range(3)}) == 9


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), tokens=st.integers(1, 30), count=st.integers(1, NEURONS - 1))
def test_the_explained_share_is_that_of_a_projection(seed: int, tokens: int, count: int) -> None:
    a = draw(seed, tokens, NEURONS).double()
    norms = draw(seed + 1, NEURONS).abs().double()
    kept = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    columns = (a * norms).numpy()
    fitted = columns[:, kept.numpy()] @ np.linalg.lstsq(columns[:, kept.numpy()], columns, rcond=1e-10)[0]
    expected = (fitted**2).sum() / (columns**2).sum()
    assert explained_by(a.T @ a / tokens, norms, kept) == pytest.approx(expected, abs=1e-6)
    layer = layer_of(seed, a.float())
    for name in ("svd", "mean_abs_svd"):
        best = SELECTIONS[name](layer, count)
        again = explained_by(layer.covariance, layer.down.norm(dim=0), best.keep(count))
        assert best.explained is not None
        assert float(best.explained[count - 1]) == pytest.approx(again, abs=1e-6)


def degenerate(seed: int, tokens: int, dead: int, twins: int, scale: float, spread: float) -> torch.Tensor:
    """Activations with dead neurons, equal ones, and scales over `spread` decimal powers."""
    a = draw(seed, tokens, NEURONS)
    a[:, :dead] = 0
    a[:, NEURONS - twins :] = a[:, [NEURONS - 1]]
    return a * 10 ** (spread * (torch.rand(NEURONS, generator=torch.Generator().manual_seed(seed)) - 0.5)) * scale


@settings(deadline=None, max_examples=150)
@given(
    pair=st.sampled_from(PAIRS),
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([1, 2, 5, 40]),
    dead=st.integers(0, NEURONS),
    twins=st.integers(0, NEURONS),
    scale=st.sampled_from([0.0, 1e-22, 1e-9, 1.0, 1e9, 1e25]),
    spread=st.sampled_from([0.0, 6.0, 16.0]),
    ridge=st.sampled_from([0.0, 0.01]),
    width=st.integers(1, NEURONS),
)
def test_any_matrix_gives_finite_weights_no_worse_than_slicing(
    pair: tuple[SelectionName, Compensation],
    seed: int,
    tokens: int,
    dead: int,
    twins: int,
    scale: float,
    spread: float,
    ridge: float,
    width: int,
) -> None:
    selection, compensation = pair
    a = degenerate(seed, tokens, dead, twins, scale, spread)
    weight = draw(seed + 1, HIDDEN, NEURONS) * (draw(seed + 2, NEURONS) > -1)  # columns of zeros too
    moments = moments_of(a, a @ weight.T + a.std(correction=0) * draw(seed + 3, tokens, HIDDEN))
    config = Prune(selection=selection, compensation=compensation, ridge=ridge, seed=seed)
    found = prune_layer(moments, weight, width, config, (draw(seed + 4, NEURONS, HIDDEN),), number=1)
    assert found.neurons.tolist() == sorted(set(found.neurons.tolist()))
    assert found.neurons.shape == (width,)
    assert set(found.neurons.tolist()) <= set(range(NEURONS))
    assert found.down_weight.shape == (HIDDEN, width)
    assert torch.isfinite(found.down_weight).all()
    assert 0 <= found.spectrum_kept <= 1
    sliced = weight[:, found.neurons].double()
    if compensation == "none" or width == NEURONS:
        assert torch.equal(found.down_weight, sliced)
    c = moments.covariance
    if not (c.isfinite().all() and moments.cross.isfinite().all()):
        assert torch.equal(found.down_weight, sliced), "nothing can be told from such sums"
        return
    beta = config.beta if compensation == "sequential" else 0.0
    wanted = (beta * moments.cross + (1 - beta) * weight.double() @ c)[:, found.neurons]
    kept = c[found.neurons][:, found.neurons]

    def loss(down: torch.Tensor) -> float:  # up to what no weights can change
        return float((down * (down @ kept)).sum() - 2 * (down * wanted).sum())

    energy = float((weight.double() * (weight.double() @ c)).sum()) + moments.target_energy
    written = found.down_weight.float().double()
    assert loss(written) <= loss(sliced) + 1e-5 * (energy + abs(loss(sliced)))
    assert found.error_after <= found.error_before * (1 + 1e-5) + 1e-5


def test_without_ridge_no_weight_is_made_of_rounding_errors() -> None:
    """Sums of integers hide no linear dependence: a Cholesky pivot is 1e-16 then, and of either sign."""
    for seed in range(300):
        a = (2 * draw(seed, 40, NEURONS)).round()
        a[:, 2], a[:, 5] = a[:, 0] + a[:, 1], a[:, 3] - a[:, 4]
        moments, weight = moments_of(a, draw(seed + 1, 40, HIDDEN)), draw(seed + 2, HIDDEN, NEURONS)
        config = Prune(ridge=0.0, beta=1.0, selection="random", seed=seed)
        found = prune_layer(moments, weight, NEURONS - 1, config)
        assert found.error_after <= found.error_before
        assert found.down_weight.abs().max() < 1e3, seed


def test_a_selection_that_names_a_neuron_twice_is_refused() -> None:
    moments = moments_of(draw(1, 20, NEURONS), draw(2, 20, HIDDEN))
    with pytest.raises(ValueError, match="gave 1 different neurons of 3"):
        prune_layer(
            moments, draw(3, HIDDEN, NEURONS), 3, Prune(), select=lambda layer, count: Selection(torch.zeros(count))
        )
