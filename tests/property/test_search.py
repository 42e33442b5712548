"""The search for a width: whatever the guesses, it ends at the smallest width that keeps to the limit."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from flows.sweeps.bisecting import MOST_RUNS, search

WIDTHS = range(640, 1409, 128)


@given(
    st.lists(st.floats(0.01, 1), min_size=7, max_size=7, unique=True),
    st.floats(0.005, 1.1),
    st.lists(st.sampled_from([None, *WIDTHS, 64]), min_size=1, max_size=4),
    st.sets(st.sampled_from(WIDTHS), max_size=2),
)
def test_the_smallest_width_that_keeps_to_the_limit_is_found(
    falling: list[float], limit: float, guesses: list[int | None], known: set[int]
) -> None:
    kl = dict(zip(WIDTHS, sorted(falling, reverse=True), strict=True))
    runs: list[Sequence[int]] = []

    def run(widths: Sequence[int]) -> dict[int, float]:
        runs.append(widths)
        return {width: kl[width] for width in widths}

    def suggest(wanted: float) -> int | None:
        return guesses[len(runs) % len(guesses)]

    tried = search(WIDTHS, limit, suggest, run, {width: kl[width] for width in known})
    enough = [width for width in WIDTHS if kl[width] <= limit]
    left = {
        w for w in WIDTHS if w < min(enough, default=9999) and w > max((n for n in tried if kl[n] > limit), default=0)
    }
    assert len(tried) <= MOST_RUNS + 1 + len(known)
    assert not left or len(tried) >= MOST_RUNS, "it stops early only where nothing is left to know"
    if not left and enough:
        assert min(enough) in tried
    assert all(len(set(widths)) == len(widths) for widths in runs), "none is run twice in a step"


def test_good_guesses_need_few_runs() -> None:
    kl = {width: (2000 - width) / 4000 for width in WIDTHS}

    def suggest(limit: float) -> int | None:
        return next((width for width in WIDTHS if kl[width] <= limit), None)

    tried = search(WIDTHS, kl[1024], suggest, lambda widths: {width: kl[width] for width in widths}, {})
    assert min(width for width in tried if kl[width] <= kl[1024]) == 1024
    assert 896 in tried, "the next smaller one is known not to do"
    assert len(tried) <= 3
