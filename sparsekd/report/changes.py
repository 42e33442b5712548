"""What changed from one result to the next, in numbers with their intervals.

The two may come from other texts or another model, so nothing is paired: a figure has changed where its two intervals
do not overlap, which is a strict test; else the difference is within the noise of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sparsekd.report import formatting as f
from sparsekd.report.statistics import Z
from sparsekd.report.summary import Interval, SpeedRatio, Summary, TaskScore


@dataclass(frozen=True)
class Change:
    """One figure of the distilled model, before and after. `differs` is None where an interval is missing."""

    figure: str
    before: Interval
    after: Interval
    show: Callable[[float], str]

    @property
    def differs(self) -> bool | None:
        """Whether the intervals lie apart."""
        ends = (self.before.low, self.before.high, self.after.low, self.after.high)
        if any(end is None for end in ends):
            return None
        low, high, new_low, new_high = (float(end) for end in ends if end is not None)
        return new_low > high or new_high < low

    def row(self) -> tuple[str, str, str, str]:
        """Figure, before, after, and what that says."""
        says = {None: "no interval", False: "within the noise", True: "changed"}[self.differs]
        if self.before == self.after:
            says = "the same"
        return self.figure, self._text(self.before), self._text(self.after), says

    def _text(self, found: Interval) -> str:
        if found.low is None or found.high is None or found.low == found.high:
            return self.show(found.value)
        return f"{self.show(found.value)} ({self.show(found.low)} to {self.show(found.high)})"


def changes(before: Summary, after: Summary) -> list[Change]:
    """Every figure that both results have: size, perplexity, KL, tasks, speed."""
    return [*_size(before, after), *_texts(before, after), *_tasks(before, after), *_speed(before, after)]


def _size(before: Summary, after: Summary) -> Iterator[Change]:
    counts = [Interval(value=s.variants.distilled.parameters.total) for s in (before, after)]
    yield Change("parameters", counts[0], counts[1], lambda value: f.count(round(value)))


def _texts(before: Summary, after: Summary) -> Iterator[Change]:
    old, new = before.variants.distilled, after.variants.distilled
    for corpus in (name for name in new.perplexity if name in old.perplexity):
        yield Change(f"perplexity {corpus}", old.perplexity[corpus], new.perplexity[corpus], f.decimals)
        ratios = old.perplexity[corpus].ratio, new.perplexity[corpus].ratio
        if ratios[0] and ratios[1]:
            yield Change(f"perplexity against dense {corpus}", ratios[0], ratios[1], f.ratio)
    for corpus in (name for name in new.agreement if name in old.agreement):
        yield Change(f"KL {corpus}", old.agreement[corpus].kl, new.agreement[corpus].kl, lambda value: f"{value:.3f}")


def _tasks(before: Summary, after: Summary) -> Iterator[Change]:
    old, new = before.variants.distilled.tasks, after.variants.distilled.tasks
    for task in (name for name in new if name in old):
        if old[task].metric == new[task].metric:
            yield Change(f"{task} ({new[task].metric})", _score(old[task]), _score(new[task]), f.percent)


def _score(task: TaskScore) -> Interval:
    if task.stderr is None:
        return Interval(value=task.value)
    return Interval(value=task.value, low=task.value - Z * task.stderr, high=task.value + Z * task.stderr)


def _speed(before: Summary, after: Summary) -> Iterator[Change]:
    old, new = (s.variants.distilled.speed.ratio or SpeedRatio() for s in (before, after))
    for phase in ("prefill", "decode"):
        found = getattr(old, phase), getattr(new, phase)
        if found[0] and found[1]:
            yield Change(f"{phase} speed against dense (range of rounds)", found[0], found[1], f.ratio)


def markdown(found: list[Change], before: str, after: str) -> str:
    """The changes as a Markdown table with `before` and `after` as headings."""
    lines = [("", before, after, ""), ("---", "---:", "---:", "---"), *(change.row() for change in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
