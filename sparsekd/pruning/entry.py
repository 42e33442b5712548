"""How a model enters its layers: the first one's input, and what each of them is called with beside its input."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with after its input: by position, and by name."""


class Captured(Exception):
    """Ends a forward pass as soon as what it was for is known."""


def first_input(
    model: PreTrainedModel, layer: nn.Module, input_ids: Int[Tensor, "sequences length"], batch_size: int
) -> Float[Tensor, "sequences length hidden"]:
    """What the first layer sees, float32, on the CPU: embeddings with all that the model does to them."""
    seen: list[Tensor] = []

    def capture(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].float().cpu())
        raise Captured

    hook = layer.register_forward_pre_hook(capture)
    try:
        for ids in torch.split(input_ids, batch_size):
            with contextlib.suppress(Captured):
                model.base_model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        hook.remove()
    return torch.cat(seen)


def layer_arguments(
    model: PreTrainedModel, layers: list[nn.Module], input_ids: Int[Tensor, "one length"]
) -> list[Arguments]:
    """What the model's own forward gives each layer beside its input (masks, positions), for one sequence.

    They broadcast over a batch, since all sequences are full and of one length. They depend on no layer's output, so
    only the first layer computes and the others, which need no weights, hand on what they get.
    """
    seen: list[Arguments] = []
    in_a_tuple: list[bool] = []

    def hand_on(hidden: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden,) if in_a_tuple[0] else hidden

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, named: seen.append((args[1:], dict(named))), with_kwargs=True)
        for layer in layers
    ]
    hooks.append(
        layers[0].register_forward_hook(lambda _, inputs, output: in_a_tuple.append(isinstance(output, tuple)))
    )
    for layer in layers[1:]:
        vars(layer)["forward"] = hand_on
    try:
        model.base_model(input_ids=input_ids.to(model.device), use_cache=False)
    finally:
        for layer in layers[1:]:
            del vars(layer)["forward"]
        for hook in hooks:
            hook.remove()
    return seen
