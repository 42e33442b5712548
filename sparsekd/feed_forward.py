"""The feed-forward blocks of a loaded model, found by its family's description, and the surgery on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sparsekd.errors import ModelError
from sparsekd.families import Family, family_of

PROJECTIONS = (nn.Linear, Conv1D)
"""What a projection may be. Conv1D is GPT-2's linear layer, with a transposed weight."""


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward block of one decoder layer."""

    family: Family
    layer: nn.Module

    @property
    def block(self) -> nn.Module:
        """The module that holds the projections."""
        return self.layer.get_submodule(self.family.block)

    @property
    def norm(self) -> nn.Module:
        """The module whose input is the residual stream before the block."""
        return self.layer.get_submodule(self.family.norm)

    @property
    def beside(self) -> nn.Module | None:
        """What adds to the residual stream together with the block, in a parallel layer."""
        return None if self.family.beside is None else self.layer.get_submodule(self.family.beside)

    @property
    def post_norm(self) -> nn.Module | None:
        """The norm between the block and the residual stream."""
        return None if self.family.post_norm is None else self.layer.get_submodule(self.family.post_norm)

    @property
    def down(self) -> nn.Module:
        return self.block.get_submodule(self.family.down)

    @property
    def projections(self) -> list[nn.Module]:
        """Gate (where there is one of its own), up and down: all that pruning changes."""
        names = (self.family.gate, self.family.up, self.family.down)
        return [self.block.get_submodule(name) for name in names if name is not None]

    @property
    def incoming(self) -> tuple[Float[Tensor, "neurons hidden"], ...]:
        """Weights of gate (where there is one) and up, a row a neuron."""
        weights = [_weight(module) for module in self.projections[:-1]]
        return tuple(weights[0].chunk(2)) if self.family.fused else tuple(weights)

    @property
    def down_weight(self) -> Float[Tensor, "hidden neurons"]:
        """The down-projection's weight as a linear layer has it."""
        return _weight(self.down)

    @property
    def down_bias(self) -> Float[Tensor, " hidden"] | None:
        """The down-projection's bias: pruning leaves it."""
        return _bias(self.down)

    @property
    def width(self) -> int:
        """intermediate_size of this layer."""
        return self.down_weight.shape[1]

    def contribution(self, output: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        """What the layer adds to its residual stream when its down-projection gives `output`, float32."""
        if self.post_norm is not None:
            output = self.post_norm(output)
        return self._scaled(output.float(), self.family.multiplier)

    def after(self, stream: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        """What the layer gives on of its residual stream, with everything added."""
        return self._scaled(stream, self.family.layer_scale)

    def unscaled(self, contribution: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        """What has to come out before the layer's own factor, for this contribution to the stream."""
        factor = self._factor(self.family.multiplier)
        return contribution if factor is None else contribution / factor

    def _scaled(self, values: Tensor, attribute: str | None) -> Tensor:
        factor = self._factor(attribute)
        return values if factor is None else values * factor

    def _factor(self, attribute: str | None) -> Tensor | float | None:
        return None if attribute is None else cast(Tensor | float, getattr(self.layer, attribute))

    def keep(self, neurons: Int[Tensor, " kept"], down_weight: Float[Tensor, "hidden kept"] | None = None) -> None:
        """Cut the block down to `neurons`, in that order: one index tensor slices every projection.

        `down_weight` replaces the sliced down-projection's weight (compensation). Biases of the neurons follow them.
        """
        rows = torch.cat([neurons, neurons + self.width]) if self.family.fused else neurons
        for name in (self.family.gate, self.family.up):
            if name is not None:
                old = self.block.get_submodule(name)
                bias = _bias(old)
                setattr(self.block, name, _projection(old, _weight(old)[rows], None if bias is None else bias[rows]))
        weight = self.down_weight[:, neurons] if down_weight is None else down_weight.to(self.down_weight)
        setattr(self.block, self.family.down, _projection(self.down, weight, self.down_bias))


def _weight(projection: nn.Module) -> Float[Tensor, "out in"]:
    weight = cast(Tensor, projection.weight).detach()
    return weight.T if isinstance(projection, Conv1D) else weight


def _bias(projection: nn.Module) -> Float[Tensor, " out"] | None:
    return None if projection.bias is None else cast(Tensor, projection.bias).detach()


def _projection(old: nn.Module, weight: Float[Tensor, "out in"], bias: Tensor | None) -> nn.Module:
    """A projection of the kind of `old` with these weights."""
    trains = cast(nn.Parameter, old.weight).requires_grad
    new: nn.Module
    if isinstance(old, Conv1D):
        with torch.device("meta"):
            new = Conv1D(*weight.shape)  # type: ignore[no-untyped-call]
        weight = weight.T
    else:
        new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.contiguous(), requires_grad=trains)
    if bias is not None:
        new.bias = nn.Parameter(bias.contiguous(), requires_grad=trains)
    return new


def feed_forwards(model: PreTrainedModel) -> list[FeedForward]:
    """The feed-forward block of every decoder layer, in order.

    Raises ModelError where the model is not as its family's description says, or its layers differ in width.
    """
    family = family_of(model.config.to_dict())
    try:
        layers = cast(nn.ModuleList, model.get_submodule(family.layers))
        blocks = [FeedForward(family, layer) for layer in layers]
        for block in blocks:
            _check(block)
    except AttributeError as error:
        where = ".".join(name for name in (family.layers, "N", family.block, family.down) if name)
        raise ModelError(
            f"A {model.config.model_type} model should have {where} and the rest of its description in "
            f"sparsekd/families.py; in this one {str(error).rstrip('.')}. Describe it there (docs/families.md)."
        ) from None
    widths = sorted({block.width for block in blocks})
    if len(widths) > 1:
        raise ModelError(
            f"The layers of this {model.config.model_type} model are {' and '.join(map(str, widths))} neurons wide; "
            "they must have one intermediate_size, which is all that stock runtimes take."
        )
    return blocks


def _check(block: FeedForward) -> None:
    """Raise AttributeError unless everything that the description names is there and fits."""
    family = block.family
    _ = block.norm, block.beside, block.post_norm
    for name in (family.multiplier, family.layer_scale):
        if name is not None:
            getattr(block.layer, name)
    for module in block.projections:
        if not isinstance(module, PROJECTIONS):
            raise AttributeError(f"a projection is a {type(module).__name__}, not a Linear or Conv1D")
    for name in (family.gate, family.up):
        if name is None:
            continue
        rows, expected = _weight(block.block.get_submodule(name)).shape[0], block.width * (2 if family.fused else 1)
        if rows != expected:
            raise AttributeError(f"{name} gives {rows} values, not the {expected} that {block.width} neurons need")


def set_width(model: PreTrainedModel, width: int) -> None:
    """Write the new integer width into the model's config and blocks."""
    blocks = feed_forwards(model)
    name = blocks[0].family.width
    setattr(model.config, name, width)
    for block in blocks:
        if hasattr(block.block, name):
            setattr(block.block, name, width)


def projection_parameters(blocks: Sequence[FeedForward]) -> list[nn.Parameter]:
    """The parameters of all feed-forward blocks, norms not among them."""
    return [parameter for block in blocks for module in block.projections for parameter in module.parameters()]
