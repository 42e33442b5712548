"""A made-up preview, for pages that show it beside a run."""

from __future__ import annotations

from sparsekd.evaluation.intervals import Interval
from sparsekd.evaluation.offers import Offer, PriceList
from tests.made_up_parts import TOTAL_DENSE, WIDTH


def made_up_prices() -> PriceList:
    """What a preview found."""
    offers = (_offer(0.8, 0.1), _offer(0.5, 0.6))
    return PriceList(model="dense", tokens=98304, held_out_tokens=8192, dense=_offer(1.0, 0.0), offers=offers)


def _offer(share: float, kl: float) -> Offer:
    at, total = Interval(value=kl, low=kl, high=kl), int(28e6 + 106e6 * share)
    return Offer(
        width=int(WIDTH * share),
        share=share,
        parameters={"total": total, "non_embedding": total - 28_000_000, "ffn": int(80e6 * share)},
        reduction={"width": 1 - share, "ffn": 1 - share, "non_embedding": 1 - share, "total": 1 - total / TOTAL_DENSE},
        bytes=2 * total,
        kl={"wiki": at, "c4": at},
        perplexity={"wiki": at, "c4": at},
        speed_up={"prefill": 1.2, "decode": 1.1},
    )
