"""The bootstrap over documents against a slow one, and its coverage where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsekd.evaluation.intervals import bootstrap_ratios, ratio_interval


def test_each_ratio_is_that_of_documents_drawn_with_replacement() -> None:
    numerator, denominator = np.array([3.0, 10.0, 2.0, 8.0]), np.array([1.0, 4.0, 2.0, 5.0])
    counts = np.random.default_rng(7).multinomial(4, np.full(4, 0.25), size=50)
    slow = []
    for draw in counts:
        drawn = [document for document, times in enumerate(draw) for _ in range(times)]
        assert len(drawn) == 4
        slow.append(sum(numerator[d] for d in drawn) / sum(denominator[d] for d in drawn))
    assert bootstrap_ratios(numerator, denominator, seed=7, resamples=50) == pytest.approx(slow)


def test_the_value_is_the_ratio_of_sums_not_the_mean_of_ratios() -> None:
    interval = ratio_interval(np.array([1.0, 100.0]), np.array([1.0, 1000.0]), seed=0)
    assert interval.value == pytest.approx(101 / 1001)
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(1.0)


def test_the_transform_applies_to_value_and_ends() -> None:
    numerator, denominator = np.array([2.0, 5.0, 9.0]), np.array([2.0, 3.0, 4.0])
    plain = ratio_interval(numerator, denominator, seed=1)
    exponential = ratio_interval(numerator, denominator, seed=1, transform=math.exp)
    for end in ("value", "low", "high"):
        assert getattr(exponential, end) == pytest.approx(math.exp(getattr(plain, end)))


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    draw = np.random.default_rng(11)
    held = 0
    for repeat in range(300):
        tokens = draw.integers(50, 200, 60).astype(float)
        losses = tokens * (3.0 + 0.5 * draw.standard_normal(60))
        interval = ratio_interval(losses, tokens, seed=repeat)
        held += interval.low <= 3.0 <= interval.high
    assert 0.90 <= held / 300 <= 0.98


def test_a_document_without_scored_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="positive denominator"):
        ratio_interval(np.array([1.0, 0.0]), np.array([3.0, 0.0]), seed=0)
    with pytest.raises(ValueError, match="positive denominator"):
        ratio_interval(np.array([]), np.array([]), seed=0)
