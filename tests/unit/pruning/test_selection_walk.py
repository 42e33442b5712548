"""Selections and compensations on whole models: whose activations they see, and functions that nobody registered."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsekd import runtime
from sparsekd.config import Prune
from sparsekd.feed_forward import FeedForward, feed_forwards
from sparsekd.pruning.selection import SELECTIONS, Selection, by_score
from sparsekd.pruning.statistics import LayerStatistics
from sparsekd.pruning.walk import prune_model
from sparsekd.runtime import mixed_precision
from tests.tiny_models import tiny_model

WIDTH, KEPT = 64, 40
FAMILIES = ("llama", "phi3", "gemma2", "gpt2")
"""Plain; fused gate and up; tokens weighed for a norm after the block; biases, transposed weights and no gate."""
of_each = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def dense_model(family: str) -> PreTrainedModel:
    return tiny_model(family)


def ids() -> Tensor:
    return torch.randint(4, 384, (8, 24), generator=torch.Generator().manual_seed(0))


@functools.cache
@torch.no_grad()
def dense_activations(family: str) -> list[Tensor]:
    """Inputs of every down-projection of the dense model, by its own forward; weighed as the family has it."""
    seen: list[Tensor] = []
    model = copy.deepcopy(dense_model(family))
    for block in feed_forwards(model):

        def watch(_: object, inputs: tuple[Tensor], output: Tensor, normed: bool = block.post_norm is not None) -> None:
            weight = 1 / output.float().square().mean(-1, keepdim=True).sqrt() if normed else 1.0
            seen.append((inputs[0].float() * weight).flatten(0, -2).double())

        block.down.register_forward_hook(watch)
    with mixed_precision(torch.device("cpu")):
        model.base_model(input_ids=ids(), use_cache=False)
    return seen


def pruned(
    family: str, config: Prune, select: Callable[[LayerStatistics, int], Selection] | None = None
) -> list[Tensor]:
    """Down-projections after pruning, by layer."""
    model = copy.deepcopy(dense_model(family))
    prune_model(model, ids(), KEPT, config, select=select)
    return [block.down_weight.double() for block in feed_forwards(model)]


@of_each
def test_one_shot_is_the_ridge_on_the_dense_models_activations(family: str) -> None:
    """(W C_:S + λ W_:S)(C_SS + λI)⁻¹ with the neurons of greatest mean |a|, in every layer, by NumPy."""
    found = pruned(family, Prune(selection="mean_abs", compensation="one_shot"))
    for block, a, weights in zip(feed_forwards(dense_model(family)), dense_activations(family), found, strict=True):
        w, c = block.down_weight.double().numpy(), (a.T @ a / len(a)).numpy()
        kept = np.sort(np.argsort(-a.abs().mean(0).numpy())[:KEPT])
        damping = 0.01 * np.trace(c) / WIDTH
        regular = c[np.ix_(kept, kept)] + damping * np.eye(KEPT)
        expected = (w @ c[:, kept] + damping * w[:, kept]) @ np.linalg.inv(regular)
        np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
@torch.no_grad()
def test_sequential_is_the_ridge_toward_what_the_pruned_prefix_has_lost(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(T_:S + λ W_:S)(C_SS + λI)⁻¹ with T = β E[t ãᵀ] + (1 − β) W C and t = y + r − r̃, in every layer, by NumPy."""
    monkeypatch.setattr(runtime, "has_bfloat16", lambda device: False)
    result, prefix = copy.deepcopy(dense_model(family)), copy.deepcopy(dense_model(family))
    prune_model(result, ids(), KEPT, Prune(selection="mean_abs", compensation="sequential", beta=0.25))
    blocks = feed_forwards(prefix)
    for dense, block, found in zip(feed_forwards(dense_model(family)), blocks, feed_forwards(result), strict=True):
        r, _, y = stream_input_output(dense_model(family), dense)
        lost, a, _ = stream_input_output(prefix, block)
        w, c = dense.down_weight.double().numpy(), a.T @ a / len(a)
        target = y + r - lost - (0.0 if dense.down_bias is None else dense.down_bias.double().numpy())
        t = 0.25 * target.T @ a / len(a) + 0.75 * w @ c
        kept = np.sort(np.argsort(-np.abs(a).mean(0))[:KEPT])
        damping = 0.01 * np.trace(c) / WIDTH
        inverse = np.linalg.inv(c[np.ix_(kept, kept)] + damping * np.eye(KEPT))
        expected, own_loss_only = ((m[:, kept] + damping * w[:, kept]) @ inverse for m in (t, w @ c))
        # Behind the first layer the walk goes on from activations that are rounded to bfloat16
        allowed = 1e-4 + 0.02 * np.linalg.norm(expected - own_loss_only)
        assert np.linalg.norm(found.down_weight.double().numpy() - expected) < allowed
        block.keep(torch.from_numpy(kept), found.down_weight)


def stream_input_output(model: PreTrainedModel, block: FeedForward) -> list[np.ndarray]:
    """A token a row: the residual stream before the block, and the input and output of its down-projection."""
    seen: list[Tensor] = []
    hooks = [
        block.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
        block.down.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output])),
    ]
    model.base_model(input_ids=ids(), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [tensor.flatten(0, -2).double().numpy() for tensor in seen]


@of_each
def test_none_slices_and_changes_no_weight(family: str) -> None:
    found = pruned(family, Prune(selection="energy", compensation="none"))
    for block, a, weights in zip(feed_forwards(dense_model(family)), dense_activations(family), found, strict=True):
        w = block.down_weight.double()
        kept = (w.norm(dim=0) * a.square().mean(0).sqrt()).argsort(descending=True)[:KEPT].sort().values
        assert torch.equal(weights, w[:, kept])


def flap(layer: LayerStatistics, count: int) -> Selection:
    """Var(a_j) · ‖w_j‖², as a peer of ours would be written down."""
    variance = layer.covariance.diagonal() - layer.mean.square()
    return by_score(variance * layer.down.square().sum(0))


@of_each
def test_a_peers_criterion_is_a_plain_function(family: str) -> None:
    """It needs no entry anywhere, and sees weights and weighed moments of its layer."""
    seen: list[LayerStatistics] = []

    def select(layer: LayerStatistics, count: int) -> Selection:
        seen.append(layer)
        return flap(layer, count)

    found = pruned(family, Prune(compensation="none"), select)
    blocks = feed_forwards(dense_model(family))
    for block, a, layer, weights in zip(blocks, dense_activations(family), seen, found, strict=True):
        w = block.down_weight.double()
        score = a.var(0, correction=0) * w.square().sum(0)
        assert torch.equal(weights, w[:, score.argsort(descending=True)[:KEPT].sort().values])
        torch.testing.assert_close(layer.mean, a.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.target, w @ layer.covariance)
        assert [weight.shape for weight in layer.incoming] == [(WIDTH, 32)] * (1 if family == "gpt2" else 2)


def test_incoming_rows_are_those_of_the_neurons() -> None:
    """act(gate) · up, or act(up), of the norm's output is the down-projection's input."""
    for family in FAMILIES:
        block = feed_forwards(dense_model(family))[0]
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
        seen: list[Tensor] = []
        hook = block.down.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        block.block(x)
        hook.remove()
        act = (
            torch.nn.functional.silu
            if family in ("llama", "phi3")
            else functools.partial(torch.nn.functional.gelu, approximate="tanh")
        )
        rows = [x @ weight.T for weight in block.incoming]
        if family == "gpt2":
            rows = [rows[0] + block.projections[0].bias]
        expected = act(rows[0]) * (rows[1] if len(rows) > 1 else 1)
        torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compensation", ["one_shot", "sequential"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_compensation_brings_every_selection_nearer_to_dense(selection: str, compensation: str) -> None:
    def error(kind: str) -> float:
        model = copy.deepcopy(dense_model("llama"))
        prune_model(model, ids(), KEPT, Prune(selection=selection, compensation=kind))
        with torch.no_grad():
            return float((model(input_ids=ids()).logits - dense_model("llama")(input_ids=ids()).logits).square().mean())

    assert error(compensation) < error("none")
