"""The KL after distillation that runs suggest: a power law is found again; the error is that of one left out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekd.evaluation.expectation import Known, expectation, kl_at
from sparsekd.evaluation.intervals import Interval
from sparsekd.evaluation.offers import Offer, PriceList

SHARES = (0.9, 0.75, 0.6, 0.5, 0.4)


def offer(share: float, kl: float) -> Offer:
    at = Interval(value=kl, low=kl, high=kl)
    return Offer(
        width=round(100 * share), share=share, parameters={"total": 1}, reduction={}, bytes=1, kl={"wiki": at},
        perplexity={}, speed_up={},
    )  # fmt: skip


def prices(kl: dict[float, float]) -> PriceList:
    offers = tuple(offer(share, value) for share, value in kl.items())
    return PriceList(model="m", tokens=1, held_out_tokens=1, dense=offer(1.0, 0.001), offers=offers)


ONE_SHOT = prices({share: math.exp(6 * (1 - share)) - 1 for share in SHARES})


@given(st.floats(0.2, 2), st.floats(0.5, 1.5), st.lists(st.sampled_from(SHARES), min_size=3, unique=True))
def test_a_power_law_is_found_again(factor: float, slope: float, shares: list[float]) -> None:
    known = [Known(str(s), s, factor * (kl_at(ONE_SHOT, s) or 0) ** slope) for s in shares]
    curve = expectation(ONE_SHOT, known)
    assert curve is not None
    assert curve.runs == len(shares)
    for run in known:
        assert curve.kl(kl_at(ONE_SHOT, run.share) or 0) == pytest.approx(run.kl, rel=1e-6)
    if len(shares) > 3:
        assert curve.error < 1e-6


def test_the_error_is_that_of_a_run_that_was_left_out() -> None:
    low, high = (kl_at(ONE_SHOT, share) or 0 for share in (0.9, 0.5))
    curve = expectation(ONE_SHOT, [Known("a", 0.9, 0.8 * low), Known("b", 0.5, 0.4 * high)])
    assert curve is not None
    assert curve.error == pytest.approx(1.0), "a says 0.8 where b has 0.4"
    assert curve.kl(high) == pytest.approx(high * math.sqrt(0.8 * 0.4))


def test_one_run_or_runs_outside_of_the_list_support_nothing() -> None:
    assert expectation(ONE_SHOT, []) is None
    assert expectation(ONE_SHOT, [Known("a", 0.75, 0.1), Known("b", 0.75, 0.1)]) is None, "one width"
    assert expectation(ONE_SHOT, [Known("a", 0.75, 0.1), Known("b", 0.3, 0.1)]) is None, "0.3 was not priced"
