"""The layer-by-layer walk: two residual streams, the dense one and that of the model pruned so far.

Each layer's statistics are collected on the already pruned prefix; its compensation aims at the dense layer's output
plus what the prefix has lost (r − r̃). So errors are corrected on the way instead of adding up.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsekd.config import Prune
from sparsekd.models import FeedForward, feed_forwards, set_width
from sparsekd.progress import Progress, silent
from sparsekd.pruning.layer import PrunedLayer, prune_layer
from sparsekd.pruning.statistics import Moments


@dataclass(frozen=True)
class LayerReport:
    """One row of layers.csv. Errors are squared, relative to the energy of the layer's target."""

    layer: int
    width_before: int
    width_after: int
    spectrum_kept: float
    error_before: float
    error_after: float


class _Captured(Exception):
    """Ends a layer's forward pass as soon as the input of down_proj is known."""


@torch.no_grad()
def prune_model(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "sequences length"],
    width: int,
    config: Prune,
    progress: Progress = silent,
) -> list[LayerReport]:
    """Prune every feed-forward block of `model` to `width` neurons, in place, by statistics over `input_ids`.

    At full width nothing is changed. Returns a report for each layer. Weights stay in the model's dtype; matmuls run
    in bfloat16 by autocast, residual streams and statistics in float32 or better.
    """
    blocks = feed_forwards(model)
    arguments = _layer_arguments(model, [block.layer for block in blocks], input_ids[:1])
    dense = _embed(model, input_ids)
    pruned = dense.clone()
    reports = []
    for number, block in enumerate(blocks):
        before = block.width
        result = _prune_block(block, arguments[number], dense, pruned, width, config)
        reports.append(
            LayerReport(number, before, width, result.spectrum_kept, result.error_before, result.error_after)
        )
        progress(number + 1, len(blocks), "layers", error=result.error_after)
    set_width(model, width)
    return reports


def write_layers(reports: list[LayerReport], file: Path) -> None:
    """Write the reports as layers.csv."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(LayerReport.__annotations__)
        for report in reports:
            writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in vars(report).values())


def _prune_block(
    block: FeedForward,
    arguments: dict[str, Any],
    dense: Float[Tensor, "sequences length hidden"],
    pruned: Float[Tensor, "sequences length hidden"],
    width: int,
    config: Prune,
) -> PrunedLayer:
    """Prune one block and move both streams, in place, past its layer."""
    device = block.down.weight.device
    moments = Moments(block.width, block.down.out_features, device)
    activations = torch.empty(*dense.shape[:2], block.width, dtype=torch.bfloat16)
    for start in range(0, len(dense), config.batch_size):
        rows = slice(start, start + config.batch_size)
        residual, output, after = _dense_pass(block, arguments, dense[rows].to(device))
        pruned_residual, activation = _pruned_pass(block, arguments, pruned[rows].to(device))
        target = output.float() + (residual - pruned_residual)
        moments.add(activation.flatten(0, 1), target.flatten(0, 1))
        dense[rows], pruned[rows], activations[rows] = after.cpu(), pruned_residual.cpu(), activation.cpu()
    result = prune_layer(moments, block.down.weight, width, config)
    block.keep(result.neurons, result.down_weight)
    kept = result.neurons.cpu()
    for start in range(0, len(dense), config.batch_size):
        rows = slice(start, start + config.batch_size)
        with torch.autocast(device.type, torch.bfloat16):
            pruned[rows] += block.down(activations[rows][..., kept].to(device)).float().cpu()
    return result


def _dense_pass(block: FeedForward, arguments: dict[str, Any], hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Residual stream before the block, the block's output, and the stream after the layer."""
    seen: dict[str, Tensor] = {}
    hooks = [
        block.norm.register_forward_pre_hook(lambda _, inputs: seen.update(residual=inputs[0])),
        block.block.register_forward_hook(lambda _, inputs, output: seen.update(output=output)),
    ]
    after = _run(block.layer, hidden, arguments, hooks)
    return seen["residual"].float(), seen["output"], after.float()


def _pruned_pass(block: FeedForward, arguments: dict[str, Any], hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Residual stream before the block and the input of down_proj, on the pruned prefix."""
    seen: dict[str, Tensor] = {}

    def capture(_: nn.Module, inputs: tuple[Tensor]) -> None:
        seen["activation"] = inputs[0]
        raise _Captured

    hooks = [
        block.norm.register_forward_pre_hook(lambda _, inputs: seen.update(residual=inputs[0])),
        block.down.register_forward_pre_hook(capture),
    ]
    _run(block.layer, hidden, arguments, hooks)
    return seen["residual"].float(), seen["activation"]


def _run(layer: nn.Module, hidden: Tensor, arguments: dict[str, Any], hooks: list[Any]) -> Tensor:
    try:
        with torch.autocast(hidden.device.type, torch.bfloat16):
            output = layer(hidden, **arguments)
        return cast(Tensor, output[0] if isinstance(output, tuple) else output)
    except _Captured:
        return hidden
    finally:
        for hook in hooks:
            hook.remove()


def _embed(model: PreTrainedModel, input_ids: Tensor) -> Float[Tensor, "sequences length hidden"]:
    """What the first layer sees, float32, on the CPU."""
    embeddings: Callable[[Tensor], Tensor] = model.get_input_embeddings()
    return embeddings(input_ids.to(model.device)).float().cpu()


def _layer_arguments(model: PreTrainedModel, layers: list[nn.Module], input_ids: Tensor) -> list[dict[str, Any]]:
    """The keyword arguments (masks, positions) that the model's own forward gives each layer, for one sequence.

    They broadcast over a batch, since all sequences are full and of one length.
    """
    seen: list[dict[str, Any]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True)
        for layer in layers
    ]
    try:
        model.base_model(input_ids=input_ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
