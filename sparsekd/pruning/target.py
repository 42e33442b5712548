"""What a block should give on the pruned prefix: the dense block's output, and what the stream has lost before it."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from sparsekd.feed_forward import FeedForward

_DAMPING = 0.1  # of the mean squared gain


def block_target(
    block: FeedForward,
    output: Float[Tensor, "sequences length hidden"],
    lost: Float[Tensor, "sequences length hidden"],
) -> tuple[Float[Tensor, "sequences length hidden"], Float[Tensor, "sequences length 1"] | None]:
    """The target of the down-projection and the weight of each token, None where all weigh the same.

    `output` is what the dense down-projection gives and `lost` = r − r̃ what the residual stream lacks. Without a norm
    after the block the target is output + lost. With one, c = g ⊙ y / rms(y) reaches the stream: `lost` is taken back
    to y through that slope at the dense output (damped where the gain g is near 0), and a token weighs 1 / rms(y), as
    its error does in the stream. That gives a lower KL than without `lost` or with equal tokens, and unlike
    output + lost it does not depend on the scale of y, which the norm leaves free (docs/experiments.md).
    """
    y = output.float()
    if block.post_norm is None:
        return y + block.unscaled(lost), None
    rms = y.square().mean(-1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    gain = cast(Tensor, block.post_norm(torch.ones_like(y[:1, :1])))
    slope = gain / (gain.square() + _DAMPING * gain.square().mean())
    return y + rms * slope * block.unscaled(lost), 1 / rms
