"""Intervals for what is compared on the same rows or documents: paired differences, bootstrap ratios, flips.

All intervals are 95 %. The bootstrap has a fixed seed, so equal inputs give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""
RESAMPLES = 10_000
STANDARD_ERRORS_ABOVE_CHANCE = 2.0
_SEED = 0
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and standard error; None where the data allow none."""

    value: float
    low: float | None = None
    high: float | None = None
    stderr: float | None = None


def paired_difference(model: Sequence[float], dense: Sequence[float]) -> Estimate:
    """Mean of `model - dense` over the same rows, scores [rows] in the same order.

    Right-or-wrong scores get the Agresti-Min interval (half a row is added to each cell of the 2 x 2 table), which
    stays honest when no answer changed at all; other scores a bootstrap over rows. One row gives no interval.
    Raises ValueError when the lengths differ or there is no row.
    """
    ours, theirs = _pair(model, dense)
    difference = ours - theirs
    value = float(difference.mean())
    if len(difference) < 2:
        return Estimate(value)
    if _is_binary(ours) and _is_binary(theirs):
        gained = float((difference > 0).sum()) + 0.5
        lost = float((difference < 0).sum()) + 0.5
        rows = len(difference) + 2.0
        centre = (gained - lost) / rows
        stderr = math.sqrt(gained + lost - (gained - lost) ** 2 / rows) / rows
        return Estimate(value, max(-1.0, centre - Z * stderr), min(1.0, centre + Z * stderr), stderr)
    estimate = bootstrap_ratio(difference, np.ones_like(difference))
    stderr = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return Estimate(value, estimate.low, estimate.high, stderr)


def flips(model: Sequence[float], dense: Sequence[float]) -> float:
    """Share of rows, in [0, 1], whose score changed in either direction: answers that went from right to wrong or back.

    A mean can stay put while answers trade places; this cannot (Dutta et al. 2024, Accuracy is Not All You Need).
    """
    ours, theirs = _pair(model, dense)
    return float((ours != theirs).mean())


def bootstrap_ratio(numerator: Sequence[float] | Floats, denominator: Sequence[float] | Floats) -> Estimate:
    """`sum(numerator) / sum(denominator)` with a percentile interval over resampled units (documents or rows).

    With per-document summed losses and token counts this is the mean loss a token. Fewer than two units give no
    interval. Raises ValueError when the lengths differ or there is no unit.
    """
    above, below = _pair(numerator, denominator)
    value = float(above.sum() / below.sum())
    units = len(above)
    if units < 2:
        return Estimate(value)
    generator = np.random.default_rng(_SEED)
    block = max(1, _DRAWS_AT_ONCE // units)
    ratios: list[Floats] = []
    for start in range(0, RESAMPLES, block):
        index = generator.integers(0, units, size=(min(block, RESAMPLES - start), units))
        ratios.append(above[index].sum(axis=1) / below[index].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def exponential(estimate: Estimate) -> Estimate:
    """The estimate on the scale of perplexities: exp of value and ends (exp keeps order, so it keeps the interval)."""
    return Estimate(
        math.exp(estimate.value),
        None if estimate.low is None else math.exp(estimate.low),
        None if estimate.high is None else math.exp(estimate.high),
    )


def mean_difference(differences: Iterable[Estimate]) -> Estimate:
    """Unweighted mean of the differences of independent tasks; the interval from their standard errors.

    No interval when one of them has no standard error. Raises ValueError when there is none.
    """
    all_of_them = list(differences)
    if not all_of_them:
        raise ValueError("mean_difference needs at least one difference")
    value = sum(d.value for d in all_of_them) / len(all_of_them)
    errors = [d.stderr for d in all_of_them if d.stderr is not None]
    if len(errors) < len(all_of_them):
        return Estimate(value)
    stderr = math.sqrt(sum(error**2 for error in errors)) / len(all_of_them)
    return Estimate(value, value - Z * stderr, value + Z * stderr, stderr)


def above_chance(value: float, stderr: float | None, chance: float | None) -> bool:
    """Whether a score is at least two standard errors above what guessing scores (unknown chance counts as 0)."""
    return value - (chance or 0.0) >= STANDARD_ERRORS_ABOVE_CHANCE * (stderr or 0.0) and value > (chance or 0.0)


def _pair(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or not len(left):
        raise ValueError(f"expected two equally long, non-empty rows of numbers, found {left.shape} and {right.shape}")
    return left, right


def _is_binary(scores: Floats) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())
