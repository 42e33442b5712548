"""Several results against each other: what each costs and what it keeps, and which ones another beats in both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sparsekd.report import formatting as f
from sparsekd.report.drawing import DENSE, DISTILLED, INK, Drawing
from sparsekd.report.summary import Interval, SpeedRatio, Summary, Variant

_LONGEST = 24
_LABELLED = 6
"""Most results of which each gets its label."""
_LOSSES = {"kl": "KL to dense, nats", "excess_loss": "loss over dense, nats"}


@dataclass(frozen=True)
class Result:
    """One point: test KL(dense || model) and loss over dense, means over the corpora in nats a token; speeds to dense.

    `dominated_by` names a result with no more parameters and no larger KL and loss, one of them better.
    """

    label: str
    parameters: int
    reduction: float
    kl: float | None
    excess_loss: float | None
    tasks: Interval | None = None
    prefill: Interval | None = None
    decode: Interval | None = None
    gate: str | None = None
    dominated_by: str | None = None


def results(summaries: Mapping[str, Summary]) -> list[Result]:
    """The distilled models of `summaries`, by label, the largest first; whoever is dominated knows by whom."""
    found = [_of_run(label, summary) for label, summary in summaries.items()]
    found.sort(key=lambda result: -result.parameters)
    return [_marked(result, found) for result in found]


def variants(summary: Summary) -> list[Result]:
    """The pruned and the distilled model of one run, as points of the same picture."""
    found = summary.variants
    return [_result("pruned", found.pruned, found.dense), _result("distilled", found.distilled, found.dense)]


def _of_run(label: str, summary: Summary) -> Result:
    state = summary.gate.state
    result = _result(label, summary.variants.distilled, summary.variants.dense)
    return replace(result, gate=None if state == "no limits" else state)


def _result(label: str, model: Variant, dense: Variant) -> Result:
    ratio, mean = model.speed.ratio or SpeedRatio(), model.task_mean
    return Result(
        label=label,
        parameters=model.parameters.total,
        reduction=1 - model.parameters.total / dense.parameters.total,
        kl=_mean([found.kl.value for found in model.agreement.values()]),
        excess_loss=_mean([found.excess_loss.value for found in model.perplexity.values() if found.excess_loss]),
        tasks=mean.difference if mean else None,
        prefill=ratio.prefill,
        decode=ratio.decode,
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _marked(result: Result, others: Sequence[Result]) -> Result:
    """With the name of the first of `others` that is no worse in cost and quality and better in one of them."""

    def figures(of: Result) -> tuple[float, float, float] | None:
        return None if of.kl is None or of.excess_loss is None else (of.parameters, of.kl, of.excess_loss)

    ours = figures(result)
    for other in others:
        theirs = figures(other)
        if ours and theirs and theirs != ours and all(a <= b for a, b in zip(theirs, ours, strict=True)):
            return replace(result, dominated_by=other.label)
    return result


COLUMNS = ("", "parameters", "removed", "KL", "loss over dense", "tasks, points", "prefill", "decode", "gate", "")


def rows(found: Sequence[Result]) -> list[tuple[str, ...]]:
    """The table, a tuple as long as COLUMNS each: intervals of tasks are 95 %, of speeds the range of the rounds."""
    return [
        (
            result.label,
            f.count(result.parameters),
            f.percent(result.reduction),
            f.NOTHING if result.kl is None else f"{result.kl:.3f}",
            f.NOTHING if result.excess_loss is None else f.signed(result.excess_loss, 3),
            _between(result.tasks, f.points, "points"),
            _between(result.prefill, f.ratio, "ratio"),
            _between(result.decode, f.ratio, "ratio"),
            result.gate or "",
            f"dominated by {result.dominated_by}" if result.dominated_by else "",
        )
        for result in found
    ]


def _between(found: Interval | None, show: Callable[[float], str], style: str) -> str:
    if found is None:
        return f.NOTHING
    span = f.span(found, style)
    return f"{show(found.value)} ({span})" if span else show(found.value)


def markdown(found: Sequence[Result]) -> str:
    """The table as Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows(found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_json(found: Sequence[Result]) -> list[dict[str, Any]]:
    """Every figure, a mapping a result."""
    return [{**asdict(result), **_intervals(result)} for result in found]


def _intervals(result: Result) -> dict[str, Any]:
    named = {"tasks": result.tasks, "prefill": result.prefill, "decode": result.decode}
    return {name: interval.model_dump() if interval else None for name, interval in named.items()}


def picture(found: Sequence[Result], marked: str | None = None) -> Drawing | None:
    """KL and loss against parameters and against measured speed; dominated results hollow. None below two points.

    The result labelled `marked` gets a ring and its label in bold. Of many results only those that no other dominates
    are labelled.
    """
    measured = [result for result in found if result.kl is not None and result.excess_loss is not None]
    if len(measured) < 2:
        return None

    def draw(figure: Figure) -> None:
        for row, (quality, title) in zip(figure.subplots(2, 2, width_ratios=(3, 2)), _LOSSES.items(), strict=True):
            _against_parameters(row[0], measured, quality, marked)
            _against_speed(row[1], measured, quality, marked)
            row[0].set_title(title)
        figure.axes[2].set_xlabel("parameters")
        figure.axes[3].set_xlabel("speed against dense")
        if any(result.prefill or result.decode for result in measured):
            figure.axes[3].legend(loc="best")

    told = [f"{r.label}: {f.count(r.parameters)} parameters, KL {r.kl:.3f}" for r in measured]
    alt = f"KL and loss on test texts against parameters and speed of {len(measured)} results. {'; '.join(told)}."
    return Drawing("trade_off", "Quality against cost", alt, 5.2, draw)


def _against_parameters(axes: Axes, found: Sequence[Result], quality: str, marked: str | None) -> None:
    crowded, sizes = len(found) > _LABELLED, [result.parameters / 1e6 for result in found]
    middle = (min(sizes) + max(sizes)) / 2
    for result in found:
        place, mine = (result.parameters / 1e6, getattr(result, quality)), result.label == marked
        _point(axes, *place, "D", DISTILLED, hollow=result.dominated_by is not None)
        if mine:
            _ring(axes, *place)
        if mine or not crowded or result.dominated_by is None:
            weight = "bold" if mine else "normal"
            side, shift = ("right", -5) if place[0] > middle else ("left", 5)  # never over the picture beside this one
            label = axes.annotate(_short(result.label), place, (shift, 5), textcoords="offset points", fontsize=9.5)
            label.set(fontweight=weight, ha=side, in_layout=False)  # a long name takes no room from the axes
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} M"))
    _frame(axes)


def _against_speed(axes: Axes, found: Sequence[Result], quality: str, marked: str | None) -> None:
    for phase, marker, colour in (("prefill", "o", DENSE), ("decode", "D", DISTILLED)):
        label: str | None = phase
        for result in found:
            speed: Interval | None = getattr(result, phase)
            if speed is None:
                continue
            value = getattr(result, quality)
            if speed.low is not None and speed.high is not None:
                axes.plot([speed.low, speed.high], [value, value], color=colour, linewidth=1.2)
            _point(axes, speed.value, value, marker, colour, result.dominated_by is not None, label)
            if result.label == marked:
                _ring(axes, speed.value, value)
            label = None
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=":")
    medians = [speed.value for r in found for speed in (r.prefill, r.decode) if speed]
    if medians:  # one disturbed round would squeeze all the rest: long ranges run out of the picture
        room = max(0.3 * (max(medians) - min(medians)), 0.1)
        axes.set_xlim(min(*medians, 1.0) - room, max(*medians, 1.0) + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}{f.TIMES}"))
    _frame(axes)


def _point(
    axes: Axes, x: float, y: float, marker: str, colour: str, hollow: bool = False, label: str | None = None
) -> None:
    face = "none" if hollow else colour
    axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=5.5, linestyle="none", label=label)


def _short(label: str) -> str:
    """The end of a long name: what runs of one model differ in."""
    return label if len(label) <= _LONGEST else f"…{label[1 - _LONGEST :]}"


def _ring(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "o", color=INK, markerfacecolor="none", markersize=12, markeredgewidth=1.2, linestyle="none")


def _frame(axes: Axes) -> None:
    axes.margins(0.18)
    low, high = min(0.0, axes.dataLim.y0), max(0.0, axes.dataLim.y1)
    room = 0.18 * (high - low) or 1.0  # for the labels above the highest point
    axes.set_ylim(low - (room if low < 0 else 0), high + room)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.grid(axis="both")
