"""Where the weights of the layers are while a walk goes over them: what it asks for, and the plain case."""

from __future__ import annotations

from typing import Protocol

from transformers import PreTrainedModel

from sparsekd.feed_forward import FeedForward, feed_forwards


class Layers(Protocol):
    """The decoder layers of a model, wherever their weights are while nothing is done with them."""

    @property
    def model(self) -> PreTrainedModel:
        """The model that they belong to."""

    @property
    def blocks(self) -> list[FeedForward]:
        """The feed-forward block of each layer."""

    def load(self, number: int) -> None:
        """Have the weights of this layer, as they are now, in memory. Others may leave it."""

    def put_aside(self, number: int) -> None:
        """This layer is done: its weights as they are now are the result."""

    def put_aside_rest(self) -> None:
        """What is around the layers (embeddings, head) is done; it has not changed."""

    def restore(self, number: int, width: int) -> None:
        """Have this layer as an earlier walk put it aside, pruned to `width`."""


class InMemory:
    """All layers are in memory all the time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.blocks = model, feed_forwards(model)

    def load(self, number: int) -> None:
        pass

    def put_aside(self, number: int) -> None:
        pass

    def put_aside_rest(self) -> None:
        pass

    def restore(self, number: int, width: int) -> None:
        pass
