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
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsekd.config import Prune
from sparsekd.errors import ModelError
from sparsekd.feed_forward import FeedForward, set_width
from sparsekd.progress import Progress, silent
from sparsekd.pruning.entry import Arguments, Captured, first_input, layer_arguments
from sparsekd.pruning.layer import PrunedLayer, prune_layer
from sparsekd.pruning.selection import Select
from sparsekd.pruning.statistics import Moments
from sparsekd.pruning.target import block_target
from sparsekd.pruning.weights import InMemory, Layers


@dataclass(frozen=True)
class LayerReport:
    """One row of layers.csv. Errors are squared, relative to the energy of the layer's target."""

    layer: int
    width_before: int
    width_after: int
    spectrum_kept: float
    error_before: float
    error_after: float


_ROUNDING = 0.05  # of the block's output: what bfloat16 leaves, with room


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
    each layer. Weights stay in the model's dtype; matmuls run in bfloat16 by autocast, residual streams and statistics
    in float32 or better.
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
    sequential = config.compensation == "sequential"
    device = block.down_weight.device
    moments = Moments(block.width, dense.shape[-1], device)
    activations = torch.empty(*dense.shape[:2], block.width, dtype=torch.bfloat16)
    for start in range(0, len(dense), config.batch_size):
        rows = slice(start, start + config.batch_size)
        residual, activation, output, after = _dense_pass(block, arguments, dense[rows].to(device))
        if start == 0:
            _check_sum(block, residual, output, after)
        pruned_residual = residual
        if sequential:
            pruned_residual, activation = _pruned_pass(block, arguments, pruned[rows].to(device))
        target, weight = block_target(block, output, residual - pruned_residual)
        if block.down_bias is not None:
            target = target - block.down_bias  # it stays: the weights are for the rest
        if weight is None:
            moments.add(activation.flatten(0, 1), target.flatten(0, 1))
        else:
            moments.add((activation * weight).flatten(0, 1), (target * weight).flatten(0, 1))
        dense[rows] = after.cpu()
        if sequential:
            pruned[rows], activations[rows] = pruned_residual.cpu(), activation.cpu()
    result = prune_layer(moments, block.down_weight, width, config, block.incoming, number, select)
    block.keep(result.neurons, result.down_weight)
    if not sequential:
        return result
    kept = result.neurons.cpu()
    for start in range(0, len(dense), config.batch_size):
        rows = slice(start, start + config.batch_size)
        with torch.autocast(device.type, torch.bfloat16):
            added = block.contribution(block.down(activations[rows][..., kept].to(device)))
        pruned[rows] = block.after(pruned[rows].to(device) + added).cpu()
    return result


def _dense_pass(block: FeedForward, arguments: Arguments, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residual stream that the block adds to, input and output of its down-projection, the stream after the layer."""
    seen, hooks = _watch(block)
    hooks.append(
        block.down.register_forward_hook(
            lambda _, inputs, output: seen.update(activation=inputs[0], output=output.view(hidden.shape))
        )
    )
    after = _run(block.layer, hidden, arguments, hooks)
    return _residual(seen, hidden), seen["activation"].view(*hidden.shape[:2], -1), seen["output"], after.float()


def _pruned_pass(block: FeedForward, arguments: Arguments, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Residual stream that the block adds to, and the input of its down-projection, on the pruned prefix."""
    seen, hooks = _watch(block)

    def capture(_: nn.Module, inputs: tuple[Tensor]) -> None:
        seen["activation"] = inputs[0]
        raise Captured

    hooks.append(block.down.register_forward_pre_hook(capture))
    _run(block.layer, hidden, arguments, hooks)
    return _residual(seen, hidden), seen["activation"].view(*hidden.shape[:2], -1)


def _watch(block: FeedForward) -> tuple[dict[str, Tensor], list[Any]]:
    """What passes by the block on its layer's way, and the hooks that see it."""
    seen: dict[str, Tensor] = {}
    hooks = [block.norm.register_forward_pre_hook(lambda _, inputs: seen.update(residual=inputs[0]))]
    if block.beside is not None:
        hooks.append(block.beside.register_forward_hook(lambda _, inputs, output: seen.update(beside=_first(output))))
    return seen, hooks


def _residual(seen: dict[str, Tensor], hidden: Tensor) -> Tensor:
    residual = seen["residual"].view(hidden.shape).float()  # OPT flattens it
    return residual + seen["beside"].float() if "beside" in seen else residual


def _check_sum(block: FeedForward, residual: Tensor, output: Tensor, after: Tensor) -> None:
    """Raise ModelError unless the layer gives on what its family's description says: the walk relies on it."""
    with torch.autocast(residual.device.type, torch.bfloat16):
        added = block.contribution(output)
    gap = (block.after(residual + added) - after).norm()
    if gap > _ROUNDING * block.after(added).norm():
        raise ModelError(
            f"A {type(block.layer).__name__} does not add its block's output to the residual stream as its family is "
            "described in sparsekd/families.py (norm, post_norm, multiplier, beside, layer_scale). Mend its entry "
            "(docs/families.md)."
        )


def _run(layer: nn.Module, hidden: Tensor, arguments: Arguments, hooks: list[Any]) -> Tensor:
    more, named = arguments
    try:
        with torch.autocast(hidden.device.type, torch.bfloat16):
            return _first(layer(hidden, *more, **named))
    except Captured:
        return hidden
    finally:
        for hook in hooks:
            hook.remove()


def _first(output: Any) -> Tensor:
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)
