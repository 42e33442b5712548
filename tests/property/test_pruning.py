"""Selection, compensation and surgery hold their definitions; references are slow NumPy versions of the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekd.config import Prune
from sparsekd.pruning.compensation import ridge
from sparsekd.pruning.layer import prune_layer
from sparsekd.pruning.selection import select_svd
from sparsekd.pruning.statistics import Moments


def reference_selection(covariance: np.ndarray, norms: np.ndarray, count: int) -> set[int]:
    """Column-pivoted QR of C^(1/2) D, written out: take the column with the largest residual, project it out."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors @ np.diag(np.sqrt(np.clip(values, 0, None))) @ vectors.T
    columns = root @ np.diag(norms)
    chosen: list[int] = []
    for _ in range(count):
        residual = (columns**2).sum(0)
        residual[chosen] = -1
        best = int(residual.argmax())
        chosen.append(best)
        direction = columns[:, best] / np.linalg.norm(columns[:, best])
        columns = columns - np.outer(direction, direction @ columns)
    return set(chosen)


def random_covariance(seed: int, size: int, tokens: int) -> torch.Tensor:
    a = torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a = a * torch.linspace(0.2, 2.0, size, dtype=torch.float64)
    return a.T @ a / tokens


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), size=st.integers(2, 14), share=st.floats(0.1, 1.0))
def test_selection_is_pivoted_qr_of_the_scaled_root(seed: int, size: int, share: float) -> None:
    covariance = random_covariance(seed, size, 40)
    norms = torch.rand(size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) + 0.1
    count = max(1, round(share * size))
    expected = reference_selection(covariance.numpy(), norms.numpy(), count)
    assert set(select_svd(covariance, norms).keep(count).tolist()) == expected


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), size=st.integers(1, 20), tokens=st.integers(1, 8), dead=st.integers(0, 20))
def test_selection_never_fails_on_degenerate_matrices(seed: int, size: int, tokens: int, dead: int) -> None:
    """Rank below k, duplicates of a neuron, dead neurons, a single token: always a permutation, a growing share."""
    covariance = random_covariance(seed, size, tokens)
    covariance[: min(dead, size)] = 0
    covariance[:, : min(dead, size)] = 0
    if size > 2:
        covariance[-1], covariance[:, -1] = covariance[-2].clone(), covariance[:, -2].clone()
        covariance[-1, -1] = covariance[-2, -2]
    selection = select_svd(covariance, torch.ones(size, dtype=torch.float64))
    assert sorted(selection.order.tolist()) == list(range(size))
    assert (selection.explained.diff() >= -1e-12).all()
    assert 0 <= float(selection.explained[0]) <= float(selection.explained[-1]) <= 1


def test_selection_prefers_living_neurons_to_dead_ones() -> None:
    covariance = torch.diag(torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0], dtype=torch.float64))
    assert select_svd(covariance, torch.ones(5)).keep(3).tolist() == [1, 3, 4]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), hidden=st.integers(1, 6), kept=st.integers(1, 8), damping=st.floats(1e-4, 1.0))
def test_ridge_solves_its_normal_equations(seed: int, hidden: int, kept: int, damping: float) -> None:
    covariance = random_covariance(seed, kept, 30)
    draw = torch.Generator().manual_seed(seed)
    cross, weight = (torch.randn(hidden, kept, generator=draw, dtype=torch.float64) for _ in range(2))
    solved = ridge(cross, covariance, weight, damping).numpy()
    regular = covariance.numpy() + damping * np.eye(kept)
    expected = (cross.numpy() + damping * weight.numpy()) @ np.linalg.inv(regular)
    np.testing.assert_allclose(solved, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("covariance", [torch.zeros(3, 3), torch.ones(3, 3), torch.full((3, 3), torch.nan)])
def test_ridge_gives_finite_weights_whatever_the_matrix(covariance: torch.Tensor) -> None:
    weight = torch.ones(2, 3)
    assert torch.isfinite(ridge(covariance[:2], covariance, weight, 0.0)).all()


def make_moments(seed: int, tokens: int, neurons: int, hidden: int) -> tuple[Moments, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    activations = torch.randn(tokens, neurons, generator=draw)
    target = torch.randn(tokens, hidden, generator=draw)
    moments = Moments(neurons, hidden, torch.device("cpu"))
    for rows in torch.arange(tokens).chunk(3):
        moments.add(activations[rows], target[rows])
    return moments, activations.double(), target.double()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), tokens=st.integers(3, 60), neurons=st.integers(1, 13), hidden=st.integers(1, 5))
def test_moments_are_the_plain_averages(seed: int, tokens: int, neurons: int, hidden: int) -> None:
    moments, a, t = make_moments(seed, tokens, neurons, hidden)
    torch.testing.assert_close(moments.covariance, a.T @ a / tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.cross, t.T @ a / tokens, rtol=1e-4, atol=1e-5)
    assert moments.target_energy == pytest.approx(float(t.square().sum()) / tokens, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_moments_are_those_of_float32_whatever_unit_multiplies(dtype: torch.dtype) -> None:
    activations = torch.randn(1024, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = torch.backends.mkldnn.matmul.fp32_precision
    moments = Moments(512, 8, torch.device("cpu"))
    moments.add(activations, torch.zeros(1024, 8))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    a = activations.double()
    expected = a.T @ a / 1024
    gap = (moments.covariance - expected).abs().max() / expected.abs().max()
    assert gap < 5e-6, "1.4e-6 without AMX; entries rounded to bfloat16 would miss it by 1e-4"


def test_targets_cost_no_accuracy_that_tokens_have() -> None:
    """Rounded to bfloat16 beside bfloat16 activations, their mean is off by far less than a resampling is."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4096, 64, generator=generator).bfloat16()
    t = a.float() @ torch.randn(64, 16, generator=generator) + torch.randn(4096, 16, generator=generator)
    moments = Moments(64, 16, torch.device("cpu"))
    moments.add(a, t)
    exact, half = (t[rows].double().T @ a[rows].double() / len(t[rows]) for rows in (slice(None), slice(2048)))
    assert (moments.cross - exact).norm() < 0.01 * (half - exact).norm()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), width=st.integers(1, 9), beta=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_layer_errors_are_those_measured_on_the_tokens(seed: int, width: int, beta: float) -> None:
    """The reported errors, computed from moments, equal the mean squared error over the tokens themselves."""
    moments, a, t = make_moments(seed, 80, 9, 4)
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed + 1)).double()
    layer = prune_layer(moments, weight, width, Prune(beta=beta, ridge=0.01))
    target = beta * t + (1 - beta) * a @ weight.T
    energy = target.square().sum()
    for error, down in ((layer.error_before, weight[:, layer.neurons]), (layer.error_after, layer.down_weight)):
        measured = (target - a[:, layer.neurons] @ down.T).square().sum() / energy
        assert error == pytest.approx(float(measured), rel=1e-3, abs=1e-4)
    assert layer.error_after <= layer.error_before + 1e-4


def test_compensation_with_all_neurons_and_full_rank_is_the_identity() -> None:
    """Toward the layer's own output (β = 0) and without ridge, nothing is to be mended when nothing was removed."""
    covariance = random_covariance(5, 8, 200)
    weight = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ridge(weight @ covariance, covariance, weight, 0.0), weight)
