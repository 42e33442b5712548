"""What KL a width will have after distillation, from what earlier runs of the same recipe had at theirs.

In runs of one model and one recipe, the KL of the distilled model goes with a power of that of the model pruned in one
shot, log KL = a + b log KL₀. Two runs fix a, and b is 1; more fix both. The error is what the curve would have been off
by at each run, had it been fitted without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsekd.evaluation.offers import PriceList

LEAST = 2
"""So many runs at different widths are needed; one could not be checked against another."""


@dataclass(frozen=True)
class Known:
    """A finished run: the share of the neurons that it kept, and the distilled model's mean KL to dense."""

    run: str
    share: float
    kl: float


@dataclass(frozen=True)
class Expectation:
    """A curve through `runs` runs. `error` is the largest relative one of a run left out, 0.1 for 10 %."""

    intercept: float
    slope: float
    runs: int
    error: float

    def kl(self, one_shot: float) -> float:
        """The KL to expect after distillation where pruning in one shot has `one_shot`."""
        return math.exp(self.intercept + self.slope * math.log(one_shot))


def expectation(prices: PriceList, known: Sequence[Known]) -> Expectation | None:
    """The curve that `known` supports; None where they are too few, or at widths that the price list does not span."""
    points = {
        run.share: (math.log(one_shot), math.log(run.kl))
        for run in known
        if run.kl > 0 and (one_shot := kl_at(prices, run.share)) is not None
    }
    if len(points) < LEAST:
        return None
    pairs = list(points.values())
    intercept, slope = _fit(pairs)
    errors = []
    for number, (x, y) in enumerate(pairs):
        a, b = _fit(pairs[:number] + pairs[number + 1 :])
        errors.append(abs(math.expm1(a + b * x - y)))
    return Expectation(intercept, slope, len(pairs), max(errors))


def kl_at(prices: PriceList, share: float) -> float | None:
    """The one-shot KL at `share`, between the offers on a logarithmic scale; None outside of them."""
    offers = sorted((offer.share, math.log(offer.mean_kl)) for offer in prices.offers if offer.mean_kl > 0)
    if not offers or not offers[0][0] <= share <= offers[-1][0]:
        return None
    shares, logs = zip(*offers, strict=True)
    return math.exp(float(np.interp(share, shares, logs)))


def suggested_width(
    prices: PriceList, curve: Expectation | None, limit: float, multiple_of: int
) -> tuple[int, float] | None:
    """The smallest multiple of `multiple_of` that keeps KL to `limit`, and its KL; None where no priced width does.

    KL is what `curve` expects after distillation, or that of pruning in one shot where there is none.
    """
    for width in candidates(prices, multiple_of):
        one_shot = kl_at(prices, width / prices.dense.width)
        if one_shot is None:
            continue
        kl = curve.kl(one_shot) if curve else one_shot
        if kl <= limit:
            return width, kl
    return None


def candidates(prices: PriceList, multiple_of: int) -> range:
    """Widths between the narrowest and the widest offer, narrowest first."""
    widths = [offer.width for offer in prices.offers]
    least, most = -(-min(widths) // multiple_of), max(widths) // multiple_of
    return range(least * multiple_of, most * multiple_of + 1, multiple_of)


def _fit(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    x, y = (np.array(column) for column in zip(*pairs, strict=True))
    if len(pairs) <= LEAST:
        return float((y - x).mean()), 1.0
    slope, intercept = np.polyfit(x, y, 1)
    return float(intercept), float(slope)
