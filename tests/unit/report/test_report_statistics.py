"""Intervals against hand-made and slow references, and against what they promise: coverage."""

import math

import numpy as np
import pytest

from sparsekd.report import statistics as s


def test_difference_of_answers_is_the_agresti_min_interval():
    # 2 gained, 5 lost, 3 the same of 10 rows: half a row added to each cell makes 2.5 and 5.5 of 12
    dense = [1, 1, 1, 1, 1, 0, 0, 1, 0, 1]
    model = [0, 0, 0, 0, 0, 1, 1, 1, 0, 1]
    found = s.paired_difference(model, dense)
    error = math.sqrt((2.5 + 5.5) - (2.5 - 5.5) ** 2 / 12) / 12
    assert found.value == pytest.approx(-0.3)
    assert found.stderr == pytest.approx(error)
    assert found.low == pytest.approx(-0.25 - 1.959964 * error)
    assert found.high == pytest.approx(-0.25 + 1.959964 * error)


def test_no_flipped_answer_still_has_a_width():
    found = s.paired_difference([1.0] * 50, [1.0] * 50)
    assert found.value == 0.0
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.15


def test_answers_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    truth, covered = -0.05, 0
    for _ in range(400):
        change = rng.random(100)
        model = np.where(change < 0.15, 0.0, 1.0)
        dense = np.where((change >= 0.15) & (change < 0.25), 0.0, 1.0)
        found = s.paired_difference(model, dense)
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 400 <= 0.99


def test_other_scores_are_bootstrapped():
    rng = np.random.default_rng(1)
    dense = rng.normal(0.5, 0.1, 80)
    model = dense + rng.normal(-0.04, 0.05, 80)
    found = s.paired_difference(model, dense)
    difference = model - dense
    error = difference.std(ddof=1) / math.sqrt(80)
    assert found.value == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.25 * error)


def test_ratio_weighs_documents_by_their_tokens():
    assert s.bootstrap_ratio([10.0, 1.0], [100, 1]).value == pytest.approx(11 / 101)


def test_ratio_interval_against_a_slow_reference():
    rng = np.random.default_rng(2)
    tokens = rng.integers(50, 500, 15)
    losses = tokens * rng.normal(0.3, 0.1, 15)
    draws = np.random.default_rng(9)
    slow = []
    for _ in range(4000):
        chosen = [int(draws.integers(15)) for _ in range(15)]
        slow.append(sum(losses[i] for i in chosen) / sum(tokens[i] for i in chosen))
    found = s.bootstrap_ratio(losses, tokens)
    width = np.quantile(slow, 0.975) - np.quantile(slow, 0.025)
    assert found.low == pytest.approx(np.quantile(slow, 0.025), abs=0.05 * width)
    assert found.high == pytest.approx(np.quantile(slow, 0.975), abs=0.05 * width)


def test_a_long_row_is_resampled_in_blocks(monkeypatch):
    values = np.random.default_rng(3).normal(size=400)
    whole = s.bootstrap_ratio(values, np.ones(400))
    monkeypatch.setattr(s, "_DRAWS_AT_ONCE", 1000)
    blocks = s.bootstrap_ratio(values, np.ones(400))
    assert blocks.value == whole.value
    assert blocks.low == pytest.approx(whole.low, abs=0.01)


def test_equal_inputs_give_equal_intervals():
    assert s.bootstrap_ratio([1.0, 2.0, 4.0], [1, 2, 3]) == s.bootstrap_ratio([1.0, 2.0, 4.0], [1, 2, 3])


@pytest.mark.parametrize("estimate", [s.paired_difference([1], [0]), s.bootstrap_ratio([2.0], [4])])
def test_one_unit_has_no_interval(estimate):
    assert (estimate.low, estimate.high) == (None, None)


@pytest.mark.parametrize(("model", "dense"), [([], []), ([1, 0], [1]), ([[1]], [[1]])])
def test_rows_that_do_not_pair_are_refused(model, dense):
    with pytest.raises(ValueError, match="equally long"):
        s.paired_difference(model, dense)


def test_flips_count_both_directions():
    assert s.flips([1, 0, 1, 0], [0, 1, 1, 0]) == 0.5  # the mean is the same, two answers are not


def test_mean_difference_of_independent_tasks():
    found = s.mean_difference([s.Estimate(0.02, stderr=0.03), s.Estimate(-0.04, stderr=0.04)])
    assert found.value == pytest.approx(-0.01)
    assert found.stderr == pytest.approx(0.025)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * 0.025)


def test_mean_difference_needs_every_error():
    assert s.mean_difference([s.Estimate(0.02, stderr=0.03), s.Estimate(0.0)]).low is None
    with pytest.raises(ValueError, match="at least one"):
        s.mean_difference([])


@pytest.mark.parametrize(
    ("value", "stderr", "chance", "clear"),
    [
        (0.52, 0.035, 0.25, True),
        (0.515, 0.035, 0.5, False),
        (0.75, 0.125, 0.5, True),  # exactly two standard errors
        (0.40, 0.01, 0.5, False),  # clearly below
        (0.0, None, None, False),  # an exact match that never matches
        (0.1, None, None, True),
    ],
)
def test_above_chance(value, stderr, chance, clear):
    assert s.above_chance(value, stderr, chance) is clear


def test_exponential_keeps_the_interval():
    found = s.exponential(s.Estimate(0.0, -0.1, 0.2))
    assert (found.value, found.low, found.high) == pytest.approx((1.0, math.exp(-0.1), math.exp(0.2)))
    assert s.exponential(s.Estimate(0.3)).low is None
