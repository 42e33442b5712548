"""The gate: may this result replace the champion? Limits against dense, held against whole intervals on validation.

Within the limit by its whole interval is *passed*; a value beyond the limit is *not passed*; what comes from too
little, or a value within the limit whose interval is not, is *not enough evidence*: more of it would tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sparsekd.config import Gate as Limits
from sparsekd.report import formatting as f
from sparsekd.report import statistics
from sparsekd.report.inputs import Compared, ReportInputs
from sparsekd.report.samples import shared_rows
from sparsekd.report.statistics import Estimate
from sparsekd.report.summary import Gate, GateCheck, GateState, Interval, Speed
from sparsekd.report.verdict import ROUNDS_FOR_A_CLAIM

_WORST_FIRST: tuple[GateState, ...] = ("not passed", "not enough evidence", "passed")


@dataclass(frozen=True)
class _Limit:
    """One limit: `bound` on the scale of what is measured, largest or smallest; how to show it; how much is enough."""

    name: str
    setting: float
    bound: float
    largest: bool
    show: Callable[[float], str]
    units: str
    enough: int

    def check(self, part: str, found: Estimate | None, units: int, missing: str = "") -> GateCheck:
        """Hold `found`, from so many `units`, against it; `missing` says why there is nothing."""
        if found is None:
            return self._checked(part, None, units, "not enough evidence", missing or "it was not measured")
        sign = 1 if self.largest else -1
        worse_end = found.high if self.largest else found.low
        word = "above" if self.largest else "below"
        said = f"{self.show(found.value)}{self._between(found)}"
        against = f"the limit {self.show(self.bound)}"
        if units < self.enough or worse_end is None:
            state: GateState = "not enough evidence"
            reason = f"{said} comes from {units} {self.units}, {self.enough} are needed"
        elif sign * (found.value - self.bound) >= 0:
            state = "not passed"
            reason = f"{said} is not {'below' if self.largest else 'above'} {against}"
        elif sign * (worse_end - self.bound) >= 0:
            state = "not enough evidence"
            reason = f"{said}: its interval reaches {word} {against}; more {self.units} would tell"
        else:
            state, reason = "passed", f"{said} keeps to {against}"
        return self._checked(part, found, units, state, reason)

    def _checked(self, part: str, found: Estimate | None, units: int, state: GateState, reason: str) -> GateCheck:
        measured = Interval(value=found.value, low=found.low, high=found.high) if found else None
        return GateCheck(
            limit=self.name,
            part=part,
            bound=self.setting,
            found=measured,
            units=units,
            state=state,
            reason=f"gate.{self.name}, {part}: {reason}.",
        )

    def _between(self, found: Estimate) -> str:
        if found.low is None or found.high is None:
            return ""
        return f" ({self.show(found.low)} to {self.show(found.high)})"


def judge(limits: Limits, inputs: ReportInputs, speed: Speed) -> Gate:
    """Hold what was measured of the distilled model against every limit that is set.

    Texts and tasks are those of validation; `speed` is the distilled model's.
    """
    checks = (*_texts(limits, inputs), *_tasks(limits, inputs), *_speeds(limits, speed))
    if not checks:
        return Gate()
    states = {check.state for check in checks}
    return Gate(state=next(state for state in _WORST_FIRST if state in states), checks=checks)


def _texts(limits: Limits, inputs: ReportInputs) -> Iterator[GateCheck]:
    ours, dense = (inputs.variants[name].validation.documents for name in ("distilled", "dense"))
    for name, bound, show, measure in (
        ("kl", limits.kl, _nats, _kl),
        ("perplexity_ratio", limits.perplexity_ratio, f.ratio, _perplexity_ratio),
    ):
        if bound is None:
            continue
        limit = _Limit(name, bound, bound, True, show, "documents", limits.minimum_documents)
        for corpus in limits.corpora or tuple(ours) or ("validation",):
            found = ours.get(corpus)
            if found is None:
                scored = f"scored were {f.listing(list(ours))}" if ours else "no validation text was scored"
                yield limit.check(corpus, None, 0, f"{scored}; see gate.corpora")
            else:
                yield limit.check(corpus, measure(found, dense.get(corpus)), len(found.tokens))


def _kl(found: Compared, dense: Compared | None) -> Estimate | None:
    return statistics.bootstrap_ratio(found.kl, found.tokens) if found.kl else None


def _perplexity_ratio(found: Compared, dense: Compared | None) -> Estimate | None:
    if dense is None or found.tokens != dense.tokens:
        return None
    excess = [a - b for a, b in zip(found.nll, dense.nll, strict=True)]
    return statistics.exponential(statistics.bootstrap_ratio(excess, found.tokens))


def _tasks(limits: Limits, inputs: ReportInputs) -> Iterator[GateCheck]:
    if limits.task_margin is None:
        return
    ours, dense = (inputs.variants[name].validation for name in ("distilled", "dense"))
    reported = inputs.variants["distilled"].evaluation.tasks
    bound = -limits.task_margin / 100
    limit = _Limit("task_margin", limits.task_margin, bound, False, _points, "rows", limits.minimum_rows)
    if not ours.tasks:
        yield limit.check("tasks", None, 0, "no row was scored for it; set evaluate.validation_rows")
        return
    for task in (name for name in reported if name not in ours.tasks):
        yield limit.check(task, None, 0, "it has no rows beyond those of the test; lower evaluate.rows")
    for task, result in ours.tasks.items():
        mine, theirs, base = ours.scores.get(task), dense.scores.get(task), dense.tasks.get(task)
        rows, base_rows = shared_rows(mine, theirs) if mine and theirs else ([], [])
        if not rows or base is None or not result.climbs:
            yield limit.check(task, None, 0, "its answers cannot be compared row by row; take it out of evaluate.tasks")
        elif not statistics.above_chance(base.value, base.stderr, base.chance):
            yield limit.check(task, None, len(rows), "dense itself is not above chance on it, so it says nothing")
        else:
            yield limit.check(task, statistics.paired_difference(rows, base_rows), len(rows))


def _speeds(limits: Limits, speed: Speed) -> Iterator[GateCheck]:
    for name, bound in (("prefill", limits.prefill_speed), ("decode", limits.decode_speed)):
        if bound is None:
            continue
        ratio = getattr(speed.ratio, name, None)
        found = Estimate(ratio.value, ratio.low, ratio.high) if ratio else None
        limit = _Limit(f"{name}_speed", bound, bound, False, f.ratio, "rounds", ROUNDS_FOR_A_CLAIM)
        yield limit.check("speed", found, speed.rounds)


def _nats(value: float) -> str:
    return f"{value:.3f} nats"


def _points(difference: float) -> str:
    return f"{f.points(difference)} points"
