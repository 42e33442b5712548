"""The layer-by-layer walk: two residual streams, the dense one and that of the model pruned so far.

With the sequential compensation each layer's statistics are collected on the already pruned prefix, and it aims at the
dense layer's output plus what the prefix has lost (r − r̃). So errors are corrected on the way instead of adding up.
Otherwise statistics come from the dense stream, and the second one is not needed.
"""

from __future__ import annotations

import contextlib
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsekd.config import Prune
from sparsekd.errors import ModelError
from sparsekd.feed_forward import FeedForward, feed_forwards, set_width
from sparsekd.progress import Progress, silent
from sparsekd.pruning.layer import PrunedLayer, prune_layer
from sparsekd.pruning.selection import Select
from sparsekd.pruning.statistics import Moments
from sparsekd.pruning.target import block_target


@dataclass(frozen=True)
class LayerReport:
    """One row of layers.csv. Errors are squared, relative to the energy of the layer's target."""

    layer: int
    width_before: int
    width_after: int
    spectrum_kept: float
    error_before: float
    error_after: float


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with after its input: by position, and by name."""

_ROUNDING = 0.05  # of the block's output: what bfloat16 leaves, with room


class _Captured(Exception):
    """Ends a forward pass as soon as what it was for is known."""


@torch.no_grad()
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
    blocks = feed_forwards(model)
    arguments = _layer_arguments(model, [block.layer for block in blocks], input_ids[:1])
    dense = _first_input(model, blocks[0].layer, input_ids, config.batch_size)
    pruned = dense.clone()
    reports = []
    for number, block in enumerate(blocks):
        before = block.width
        result = _prune_block(block, arguments[number], dense, pruned, width, config, number, select)
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
        raise _Captured

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
    except _Captured:
        return hidden
    finally:
        for hook in hooks:
            hook.remove()


def _first(output: Any) -> Tensor:
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def _first_input(
    model: PreTrainedModel, layer: nn.Module, input_ids: Tensor, batch_size: int
) -> Float[Tensor, "sequences length hidden"]:
    """What the first layer sees, float32, on the CPU: embeddings with all that the model does to them."""
    seen: list[Tensor] = []

    def capture(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].float().cpu())
        raise _Captured

    hook = layer.register_forward_pre_hook(capture)
    try:
        for ids in torch.split(input_ids, batch_size):
            with contextlib.suppress(_Captured):
                model.base_model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        hook.remove()
    return torch.cat(seen)


def _layer_arguments(model: PreTrainedModel, layers: list[nn.Module], input_ids: Tensor) -> list[Arguments]:
    """What the model's own forward gives each layer beside its input (masks, positions), for one sequence.

    They broadcast over a batch, since all sequences are full and of one length.
    """
    seen: list[Arguments] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, named: seen.append((args[1:], dict(named))), with_kwargs=True)
        for layer in layers
    ]
    try:
        model.base_model(input_ids=input_ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
