"""The Fisher metric of a block's output, in which a selection can weigh what neurons give to it.

With g the gradient of −log q(y) by the output of the down-projection, y drawn from the model's own q, the metric is
G = E[g gᵀ]: an error e of the output costs ½ eᵀ G e nats to second order. Without it every direction counts the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from sparsekd.decoding import drawn
from sparsekd.feed_forward import feed_forwards
from sparsekd.pruning.selection import Select, Selection
from sparsekd.pruning.statistics import LayerStatistics

_BATCH = 2


def output_metrics(
    model: PreTrainedModel, input_ids: Int[Tensor, "sequences length"], seed: int = 0
) -> list[Float[Tensor, "hidden hidden"]]:
    """G of every block, float64, over all tokens of `input_ids`."""
    blocks = feed_forwards(model)
    sums: list[Tensor] = [torch.zeros(len(block.down_weight), len(block.down_weight)).double() for block in blocks]
    choose = drawn(torch.Generator().manual_seed(seed))
    model.requires_grad_(False)
    model.enable_input_require_grads()
    with _gradients([block.down for block in blocks], lambda number, g: sums[number].addmm_(g.T, g)):
        for ids in torch.split(input_ids, _BATCH):
            logits = model(ids).logits.flatten(0, 1).float()
            torch.nn.functional.cross_entropy(logits, choose(logits.detach()), reduction="sum").backward()
    model.disable_input_require_grads()
    return [total / input_ids.numel() for total in sums]


@contextmanager
def _gradients(modules: list[torch.nn.Module], see: Callable[[int, Tensor], Any]) -> Iterator[None]:
    """Calls `see` with the number of a module and the gradient by its output, a row a token, in float64."""

    def watch(number: int) -> Callable[..., None]:
        def backward(gradient: Tensor) -> None:
            see(number, gradient.flatten(0, -2).double())

        def forward(module: Any, inputs: Any, output: Tensor) -> None:
            output.register_hook(backward)

        return forward

    hooks = [module.register_forward_hook(watch(number)) for number, module in enumerate(modules)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def in_metric(select: Select, metrics: list[Float[Tensor, "hidden hidden"]]) -> Select:
    """`select` with ‖G^(1/2) W_:j‖ for ‖W_:j‖, one G a layer in the order in which layers are asked for."""
    following = iter(metrics)

    def weighed(layer: LayerStatistics, count: int) -> Selection:
        values, vectors = torch.linalg.eigh(next(following))
        root = values.clamp_min(0).sqrt()[:, None] * vectors.T  # rootᵀ root = G
        return select(replace(layer, down=root @ layer.down), count)

    return weighed
