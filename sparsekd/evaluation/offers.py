"""What `sparsekd preview` says of a model: an offer for each width. Needs no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from sparsekd.evaluation.intervals import Interval

WIDTHS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""The shares of the neurons that are priced where nobody says which."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Offer(_Part):
    """One width: the model pruned to it in one shot, before any distillation.

    `bytes` are those of the weights in the checkpoint's own dtype; `kl` is KL(dense || pruned) in nats a token, by
    corpus of the validation part, `mean_kl` the corpora's mean; `speed_up` is what FLOPs (prefill) and bytes read
    (decode) promise, 1 for dense.
    """

    width: int
    share: float
    parameters: dict[str, int]
    reduction: dict[str, float]
    bytes: int
    kl: dict[str, Interval]
    perplexity: dict[str, Interval]
    speed_up: dict[str, float]

    @property
    def mean_kl(self) -> float:
        return sum(kl.value for kl in self.kl.values()) / len(self.kl)


class PriceList(_Part):
    """Offers of a model, the widest first; `dense` is the model itself. `tokens` gave the statistics."""

    model: str
    tokens: int
    held_out_tokens: int
    dense: Offer
    offers: tuple[Offer, ...]

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"
