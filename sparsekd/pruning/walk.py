"""The layer-by-layer walk: two residual streams, the dense one and that of the model pruned so far.

With the sequential compensation each layer's statistics are collected on the already pruned prefix, and it aims at the
dense layer's output plus what the prefix has lost (r − r̃). So errors are corrected on the way instead of adding up.
Otherwise statistics come from the dense stream, and the second one is not needed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from sparsekd.config import Prune
from sparsekd.feed_forward import FeedForward, set_width
from sparsekd.progress import Progress, silent
from sparsekd.pruning.entry import Arguments, first_input, layer_arguments
from sparsekd.pruning.layer import PrunedLayer, prune_layer
from sparsekd.pruning.passes import collect
from sparsekd.pruning.selection import Select
from sparsekd.pruning.weights import InMemory, Layers
from sparsekd.runtime import compute_dtype, mixed_precision


@dataclass(frozen=True)
class LayerReport:
    """One row of layers.csv. Errors are squared, relative to the energy of the layer's target."""

    layer: int
    width_before: int
    width_after: int
    spectrum_kept: float
    error_before: float
    error_after: float


@dataclass
class Position:
    """Where a walk stands: both residual streams after the layers that have a report; float32, on the CPU."""

    dense: Float[Tensor, "sequences length hidden"]
    pruned: Float[Tensor, "sequences length hidden"]
    reports: list[LayerReport]


def prune_model(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "sequences length"],
    width: int,
    config: Prune,
    progress: Progress = silent,
    select: Select | None = None,
) -> list[LayerReport]:
    """Prune every feed-forward block of `model` to `width` neurons, in place, by statistics over `input_ids`.

    `select` chooses the neurons in place of `config.selection`. At full width nothing is changed. Returns a report for
    each layer. `model` is float32; matmuls run in `compute_dtype` by autocast, residual streams are float32, and
    statistics are summed in float32 or better, of activations and targets in bfloat16 where that is `compute_dtype`.
    """
    reports = prune_layers(InMemory(model), input_ids, width, config, progress, select=select)
    set_width(model, width)
    return reports


@torch.no_grad()
def prune_layers(
    layers: Layers,
    input_ids: Int[Tensor, "sequences length"],
    width: int,
    config: Prune,
    progress: Progress = silent,
    start: Position | None = None,
    reached: Callable[[Position], None] = lambda position: None,
    select: Select | None = None,
) -> list[LayerReport]:
    """The walk itself: as `prune_model`, but it needs one layer's weights at a time and does not touch the config.

    Goes on from `start`; `reached` is told the position after each layer, whose streams the next layer overwrites.
    """
    blocks = layers.blocks
    modules = [block.layer for block in blocks]
    layers.load(0)
    arguments = layer_arguments(layers.model, modules, input_ids[:1])
    if start is None:
        dense = first_input(layers.model, modules[0], input_ids, config.batch_size)
        start = Position(dense, dense.clone(), [])
    layers.put_aside_rest()
    for number in range(len(start.reports)):
        layers.restore(number, width)
    for number in range(len(start.reports), len(blocks)):
        layers.load(number)
        before = blocks[number].width
        streams = start.dense, start.pruned
        result = _prune_block(blocks[number], arguments[number], *streams, width, config, number, select)
        start.reports.append(
            LayerReport(number, before, width, result.spectrum_kept, result.error_before, result.error_after)
        )
        layers.put_aside(number)
        reached(start)
        progress(number + 1, len(blocks), "layers", error=result.error_after)
        del result  # its float64 weights are in the layer
    return start.reports


def write_layers(reports: list[LayerReport], file: Path) -> None:
    """Write the reports as layers.csv."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(LayerReport.__annotations__)
        for report in reports:
            writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in vars(report).values())


def _prune_block(
    block: FeedForward,
    arguments: Arguments,
    dense: Float[Tensor, "sequences length hidden"],
    pruned: Float[Tensor, "sequences length hidden"],
    width: int,
    config: Prune,
    number: int,
    select: Select | None,
) -> PrunedLayer:
    """Prune one block and move both streams, in place, past its layer; without sequential compensation the dense one.

    `number` is the layer's.
    """
    device = block.down_weight.device
    second = pruned if config.compensation == "sequential" else None
    moments, activations = collect(block, arguments, dense, second, config.batch_size)
    result = prune_layer(moments, block.down_weight, width, config, block.incoming, number, select)
    block.keep(result.neurons, result.down_weight)
    if second is None:
        return result
    kept, dtype = result.neurons.cpu(), compute_dtype(device)
    with mixed_precision(device):
        for start in range(0, len(dense), config.batch_size):
            rows = slice(start, start + config.batch_size)
            added = block.contribution(block.down(activations[rows][..., kept].to(device, dtype)))
            pruned[rows] = block.after(pruned[rows].to(device) + added).cpu()
    return result
