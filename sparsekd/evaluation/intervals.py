"""Confidence intervals over documents: the bootstrap of a ratio of sums.

Tokens of one document are not independent, so the document is what is drawn again, not the token.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from pydantic import BaseModel, ConfigDict

RESAMPLES = 2000
CONFIDENCE = 0.95


class Interval(BaseModel):
    """A measured value and its 95 % confidence interval."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


def bootstrap_ratios(
    numerator: Float[ndarray, " documents"],
    denominator: Float[ndarray, " documents"],
    seed: int,
    resamples: int = RESAMPLES,
) -> Float[ndarray, " resamples"]:
    """Σ numerator / Σ denominator for `resamples` draws of the documents with replacement.

    Drawing d of d documents is one multinomial count vector, so all draws are one matrix product.
    Raises ValueError for no documents or a denominator that is not positive.
    """
    documents = len(denominator)
    if documents == 0 or np.min(denominator) <= 0:
        raise ValueError("each document needs a positive denominator (its number of scored tokens)")
    counts = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), size=resamples)
    ratios: Float[ndarray, " resamples"] = (counts @ numerator) / (counts @ denominator)
    return ratios


def ratio_interval(
    numerator: Float[ndarray, " documents"],
    denominator: Float[ndarray, " documents"],
    seed: int,
    transform: Callable[[float], float] = float,
    resamples: int = RESAMPLES,
) -> Interval:
    """`transform`(Σ numerator / Σ denominator) with its percentile interval; `transform` must be increasing."""
    ratios = bootstrap_ratios(numerator, denominator, seed, resamples)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(np.sum(numerator) / np.sum(denominator))
    return Interval(value=transform(value), low=transform(float(low)), high=transform(float(high)))
