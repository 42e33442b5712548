"""What passes through one decoder layer: its statistics, on the dense and on the pruned model's residual stream."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsekd.errors import ModelError
from sparsekd.feed_forward import FeedForward
from sparsekd.pruning.entry import Arguments, Captured
from sparsekd.pruning.statistics import Moments
from sparsekd.pruning.target import block_target
from sparsekd.runtime import mixed_precision

_ROUNDING = 0.05  # of the block's output: what bfloat16 leaves, with room


def collect(
    block: FeedForward,
    arguments: Arguments,
    dense: Float[Tensor, "sequences length hidden"],
    pruned: Float[Tensor, "sequences length hidden"] | None,
    batch_size: int,
) -> tuple[Moments, Tensor]:
    """The block's moments, and where there is a second stream the activations that they are of.

    Those are on the CPU, rounded to bfloat16: they are the largest that stands in memory.

    Moves the dense stream, in place, past the layer, and the pruned one up to its block. Without a pruned stream the
    statistics are the dense model's.
    """
    device = block.down_weight.device
    moments = Moments(block.width, dense.shape[-1], device)
    kept = (*dense.shape[:2], block.width) if pruned is not None else (0,)
    activations = torch.empty(kept, dtype=torch.bfloat16)
    with mixed_precision(device):  # one for all batches: the weights are cast once
        for start in range(0, len(dense), batch_size):
            rows = slice(start, start + batch_size)
            residual, activation, output, after = _dense_pass(block, arguments, dense[rows].to(device))
            if start == 0:
                _check_sum(block, residual, output, after)
            pruned_residual = residual
            if pruned is not None:
                pruned_residual, activation = _pruned_pass(block, arguments, pruned[rows].to(device))
            target, weight = block_target(block, output, residual - pruned_residual)
            if block.down_bias is not None:
                target = target - block.down_bias  # it stays: the weights are for the rest
            if weight is None:
                moments.add(activation.flatten(0, 1), target.flatten(0, 1))
            else:
                moments.add((activation * weight).flatten(0, 1), (target * weight).flatten(0, 1))
            dense[rows] = after.cpu()
            if pruned is not None:
                pruned[rows], activations[rows] = pruned_residual.cpu(), activation.cpu()
    return moments, activations


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
        return _first(layer(hidden, *more, **named))
    except Captured:
        return hidden
    finally:
        for hook in hooks:
            hook.remove()


def _first(output: Any) -> Tensor:
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)
