"""What paired statistics promise for any answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekd.report.statistics import bootstrap_ratio, flips, paired_difference

answers = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=60)


@given(answers)
def test_difference_lies_in_its_interval_and_changes_sign_with_its_sides(pairs):
    model, dense = zip(*pairs, strict=True)
    there, back = paired_difference(model, dense), paired_difference(dense, model)
    assert -1 <= there.low <= there.high <= 1
    assert there.low - 0.02 <= there.value <= there.high + 0.02  # the interval is centred a little nearer to 0
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high)
    assert there.high == pytest.approx(-back.low)


@given(answers)
def test_flips_bound_the_difference(pairs):
    model, dense = zip(*pairs, strict=True)
    assert abs(paired_difference(model, dense).value) <= flips(model, dense) + 1e-12
    assert flips(model, dense) == flips(dense, model)
    assert flips(model, model) == 0


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 500)), min_size=2, max_size=12), st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_ratio_scales_and_stays_between_the_extremes(documents, factor):
    losses = [loss * tokens for loss, tokens in documents]
    tokens = [count for _, count in documents]
    found = bootstrap_ratio(losses, tokens)
    rates = [loss for loss, _ in documents]
    assert min(rates) - 1e-9 <= found.low <= found.high <= max(rates) + 1e-9
    scaled = bootstrap_ratio([factor * loss for loss in losses], tokens)
    assert scaled.value == pytest.approx(factor * found.value)
    assert scaled.high == pytest.approx(factor * found.high)
