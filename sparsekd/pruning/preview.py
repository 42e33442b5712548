"""The price list: what every width would cost and give, from one pass of the dense model.

The order of the pivots is nested, so that one factorisation a layer serves all widths; each width has its own ridge.
Statistics are the dense model's (compensation one_shot), which is what makes one pass enough: the sequential
compensation of a run gives a lower KL at the same width, and distillation a lower one still.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from sparsekd.config import Prune
from sparsekd.feed_forward import feed_forwards, set_width
from sparsekd.models import load_model
from sparsekd.progress import Progress, silent
from sparsekd.pruning.entry import first_input, layer_arguments
from sparsekd.pruning.layer import prune_layer
from sparsekd.pruning.passes import collect
from sparsekd.pruning.selection import SELECTIONS, Selection
from sparsekd.pruning.statistics import LayerStatistics

Kept = tuple[Int[Tensor, " kept"], Float[Tensor, "hidden kept"]]
"""Of one layer: the neurons that stay, and their down-projection."""


@torch.no_grad()
def prune_to_each(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "sequences length"],
    widths: Sequence[int],
    config: Prune,
    progress: Progress = silent,
) -> dict[int, list[Kept]]:
    """What pruning to each of `widths` leaves of every layer, by the dense model's statistics over `input_ids`.

    Changes nothing of `model`. The selection is `config.selection`; the compensation is one-shot, or none where
    `config.compensation` says so. Down-projections are in the model's own dtype, on the CPU.
    """
    once = config.model_copy(update={"compensation": "none" if config.compensation == "none" else "one_shot"})
    blocks = feed_forwards(model)
    arguments = layer_arguments(model, [block.layer for block in blocks], input_ids[:1])
    stream = first_input(model, blocks[0].layer, input_ids, config.batch_size)
    found: dict[int, list[Kept]] = {width: [] for width in widths}
    for number, block in enumerate(blocks):
        moments, _ = collect(block, arguments[number], stream, None, config.batch_size)
        select = _Once(config)
        for width in widths:
            layer = prune_layer(moments, block.down_weight, width, once, block.incoming, number, select)
            found[width].append((layer.neurons.cpu(), layer.down_weight.to(model.dtype).cpu()))
        progress(number + 1, len(blocks), "layers")
    return found


class _Once:
    """A selection that is made for the first width and serves all."""

    def __init__(self, config: Prune) -> None:
        self._select = SELECTIONS[config.selection]
        self._made: Selection | None = None

    def __call__(self, layer: LayerStatistics, count: int) -> Selection:
        self._made = self._made or self._select(layer, len(layer.mean))
        return self._made


def pruned_model(dense: Path, layers: Sequence[Kept], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The checkpoint `dense` with what is left of its layers, in `dtype`."""
    model = load_model(dense, dtype, device)
    for block, (neurons, down) in zip(feed_forwards(model), layers, strict=True):
        block.keep(neurons.to(device), down.to(device))
    set_width(model, len(layers[0][0]))
    return model
