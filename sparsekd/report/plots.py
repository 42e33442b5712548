"""The report's pictures: each function returns a drawing, or None where its numbers were not measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from sparsekd.report import formatting as f
from sparsekd.report.drawing import DENSE, DISTILLED, FAINT, INK, OPERATORS, PAPER, PRUNED, SERIES, Drawing, Picture
from sparsekd.report.inputs import Columns
from sparsekd.report.statistics import Floats, Z
from sparsekd.report.summary import Interval, Summary, TaskScore

MOST_TASKS = 20
"""A picture of more is a wall; the table has them all."""


WIDE = 5.0
"""A perplexity this many times dense's makes the axis logarithmic."""


_DIVERGENCES = {"forward_kl": "KL", "reverse_kl": "reverse KL", "jsd": "Jensen-Shannon divergence"}
"""What the curve's column `kl` holds, by `distill.divergence`."""


def draw_all(
    summary: Summary, curve: Columns, layers: Columns, out: Path, divergence: str = "forward_kl"
) -> dict[str, Picture]:
    """Write NAME.png into `out` for all that was measured; the pictures by name. `divergence` is the one trained."""
    candidates = [
        loss_curve(curve, _DIVERGENCES[divergence]),
        layer_error(layers),
        perplexity(summary),
        agreement(summary),
        task_scores(summary),
        speed(summary),
        profile(summary),
    ]
    return {drawing.name: drawing.write(out) for drawing in candidates if drawing}


def loss_curve(curve: Columns, divergence: str) -> Drawing | None:
    """KL and CE over the tokens seen: each step faint, a running mean, validation as points."""
    if "tokens" not in curve or not {"kl", "ce"} & curve.keys():
        return None
    parts = [part for part in ("kl", "ce") if part in curve]

    def draw(figure: Figure) -> None:
        titles = {"kl": f"{divergence} to dense", "ce": "cross-entropy"}
        for axes, part in zip(np.atleast_1d(figure.subplots(1, len(parts))), parts, strict=True):
            _curve(axes, curve, part)
            axes.set_title(titles[part])
        figure.supxlabel("tokens seen (losses in nats a token)", fontsize=10, color=FAINT)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3)

    last = {part: curve[part][~np.isnan(curve[part])] for part in parts}
    names = {"kl": divergence, "ce": "CE"}
    told = [f"{names[part]} from {v[0]:.3f} to {_smooth(v)[-1]:.3f}" for part, v in last.items() if len(v)]
    alt = f"Training curve of distillation over {int(curve['tokens'][-1]):,} tokens: {f.listing(told)} nats a token."
    return Drawing("loss_curve", "Distillation", alt, 2.75, draw)


def _curve(axes: Axes, curve: Columns, part: str) -> None:
    values, tokens = curve[part], curve["tokens"]
    measured = ~np.isnan(values)
    axes.plot(tokens[measured], values[measured], color=DISTILLED, alpha=0.25, linewidth=0.8, label="each step")
    axes.plot(tokens[measured], _smooth(values[measured]), color=DISTILLED, label="running mean")
    validation = curve.get(f"validation_{part}")
    if validation is not None and not np.isnan(validation).all():
        seen = ~np.isnan(validation)
        axes.plot(tokens[seen], validation[seen], "o", color=INK, markersize=4.5, label="validation")
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g} k" if x else "0"))


def _smooth(values: Floats) -> Floats:
    """Centred running mean over a twentieth of the steps; shorter windows at the ends."""
    window = max(1, len(values) // 20)
    kernel = np.ones(2 * window + 1)
    smooth: Floats = np.convolve(values, kernel, "same")[: len(values)]
    weight = np.convolve(np.ones(len(values)), kernel, "same")[: len(values)]
    return smooth / weight


def layer_error(layers: Columns) -> Drawing | None:
    """Relative squared output error of each feed-forward layer, before and after compensation."""
    if not {"layer", "error_before", "error_after"} <= layers.keys():
        return None
    before, after = layers["error_before"], layers["error_after"]
    if not np.isfinite([before, after]).all():
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(layers["layer"], before, "-s", color=PRUNED, markersize=4, label="neurons cut")
        axes.plot(layers["layer"], after, "-D", color=DISTILLED, markersize=4, label="compensated")
        axes.set_xlabel("layer")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=2)

    alt = (
        f"Relative output error of {len(before)} feed-forward layers: mean {f.percent(float(before.mean()))} with "
        f"the neurons cut, {f.percent(float(after.mean()))} after compensation; the largest after compensation is "
        f"{f.percent(float(after.max()))} in layer {int(layers['layer'][int(after.argmax())])}."
    )
    return Drawing("layer_error", "Error by layer", alt, 2.75, draw)


def _points(axes: Axes, rows: list[str], values: dict[str, list[Interval | None]]) -> None:
    """One line a row, one marker with its interval a variant, the variants a little apart."""
    offsets = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
    for (name, intervals), offset in zip(values.items(), offsets, strict=True):
        colour, marker = SERIES[name]
        labelled = False
        for row, found in enumerate(intervals):
            if found is None:
                continue
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [row + offset] * 2, color=colour, linewidth=1.8)
            label = None if labelled else name
            axes.plot(found.value, row + offset, marker, color=colour, markersize=5.5, linestyle="none", label=label)
            labelled = True
    axes.set_yticks(range(len(rows)), rows, color=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def perplexity(summary: Summary) -> Drawing | None:
    """Perplexity of pruned and distilled relative to dense, by corpus, with paired intervals."""
    rows = [name for name, found in summary.variants.distilled.perplexity.items() if found.ratio]
    if not rows:
        return None
    values: dict[str, list[Interval | None]] = {}
    for name in ("pruned", "distilled"):
        found = summary.variants.named()[name].perplexity
        values[name] = [found[row].ratio if row in found else None for row in rows]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(1, color=DENSE, linewidth=1.4, label="dense")
        _points(axes, rows, values)
        axes.set_xlabel("test perplexity / dense's, with 95 % interval")
        if max(found.value for all_of in values.values() for found in all_of if found) > WIDE:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside upper left", ncols=3)

    told = [f"{row} {found.value:.2f}" for row, found in zip(rows, values["distilled"], strict=True) if found]
    alt = f"Perplexity of the distilled model relative to dense: {f.listing(told)}; 1 is as good as dense."
    return Drawing("perplexity", "Perplexity relative to dense", alt, 1.15 + 0.42 * len(rows), draw)


def agreement(summary: Summary) -> Drawing | None:
    """KL to dense and share of equal top tokens, by corpus."""
    rows = list(summary.variants.distilled.agreement)
    if not rows:
        return None
    parts = {"kl": "KL, nats a token", "top1": "same top token"}
    values: dict[str, dict[str, list[Interval | None]]] = {part: {} for part in parts}
    for name in ("pruned", "distilled"):
        found = summary.variants.named()[name].agreement
        for part in parts:
            values[part][name] = [getattr(found[row], part) if row in found else None for row in rows]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, part in ((left, "kl"), (right, "top1")):
            _points(axes, rows, values[part])
            axes.set_title(parts[part])
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        left.set_xlim(left=0)
        right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        right.tick_params(axis="y", labelleft=False)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)

    last = summary.variants.distilled.agreement
    told = [f"{row} KL {last[row].kl.value:.3f}, same top token {f.percent(last[row].top1.value)}" for row in rows]
    alt = f"Agreement of the distilled model with dense: {'; '.join(told)}."
    return Drawing("agreement", "Agreement with the dense model", alt, 1.25 + 0.42 * len(rows), draw)


def task_scores(summary: Summary) -> Drawing | None:
    """Task scores of the three variants with 95 % intervals; a bar marks the chance level."""
    dense = summary.variants.dense.tasks
    rows = [name for name, found in dense.items() if 0 <= found.value <= 1 and found.recovery is not None][:MOST_TASKS]
    if not rows:
        return None
    values: dict[str, list[Interval | None]] = {}
    for name, variant in summary.variants.named().items():
        values[name] = [_score_interval(variant.tasks[row]) if row in variant.tasks else None for row in rows]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        chances = [(dense[name].chance, row) for row, name in enumerate(rows)]
        for chance, row in chances:
            if chance is not None:
                axes.plot([chance] * 2, [row - 0.36, row + 0.36], color=FAINT, linewidth=1.2, linestyle=(0, (2, 1.5)))
        axes.plot([], [], color=FAINT, linewidth=1.2, linestyle=(0, (2, 1.5)), label="chance")
        _points(axes, [name if dense[name].in_mean else f"{name}\N{NO-BREAK SPACE}*" for name in rows], values)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_xlabel("score, with 95 % interval")
        figure.legend(loc="outside upper left", ncols=4)

    told = []
    for i, row in enumerate(rows):
        scores = [f"{name} {100 * found.value:.1f}" for name, all_of in values.items() if (found := all_of[i])]
        told.append(f"{row} {', '.join(scores)}")
    alt = f"Task scores in percent: {'; '.join(told)}."
    return Drawing("tasks", "Task scores", alt, 1.2 + 0.5 * len(rows), draw)


def _score_interval(task: TaskScore) -> Interval:
    value, stderr = task.value, task.stderr
    if stderr is None:
        return Interval(value=value)
    return Interval(value=value, low=max(0.0, value - Z * stderr), high=min(1.0, value + Z * stderr))


def speed(summary: Summary) -> Drawing | None:
    """Speed relative to dense: median and range over the rounds, with the predicted ratio beside it."""
    rows = ("prefill", "decode")
    values: dict[str, list[Interval | None]] = {}
    predictions: list[tuple[float, float]] = []
    for offset, name in ((-0.22, "pruned"), (0.22, "distilled")):
        found = summary.variants.named()[name].speed
        values[name] = [getattr(found.ratio, row) if found.ratio else None for row in rows]
        for row, part in enumerate(rows):
            predicted = getattr(found.predicted, part) if found.predicted else None
            if predicted is not None:
                predictions.append((predicted, row + offset))
    if not any(found for all_of in values.values() for found in all_of):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(1, color=DENSE, linewidth=1.4, label="dense")
        _points(axes, list(rows), values)
        if predictions:
            x, y = zip(*predictions, strict=True)
            axes.plot(x, y, "|", color=INK, markersize=11, markeredgewidth=1.6, label="predicted")
        axes.set_xlabel("speed / dense's: median and range of the rounds")
        figure.legend(loc="outside upper left", ncols=4)

    told = [
        f"{part} {found.value:.2f} (range {f.span(found, 'ratio')})" if f.span(found) else f"{part} {found.value:.2f}"
        for part, found in zip(rows, values["distilled"], strict=True)
        if found
    ]
    alt = f"Speed of the distilled model relative to dense: {f.listing(told)}."
    return Drawing("speed", "Speed relative to dense", alt, 2.1, draw)


def profile(summary: Summary) -> Drawing | None:
    """Where the time of one profiled request goes, by operator class."""
    profiles = summary.profile
    names = [name for name in SERIES if name in profiles]
    if not names:
        return None
    kinds = [kind for kind in OPERATORS if any(kind in profiles[name] for name in names)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, name in enumerate(names):
            left = 0.0
            for kind in kinds:
                time = profiles[name][kind].milliseconds if kind in profiles[name] else 0.0
                label = f.code_name(kind) if row == 0 else None
                axes.barh(row, time, left=left, height=0.55, color=OPERATORS[kind], edgecolor=PAPER, label=label)
                left += time
        axes.set_yticks(range(len(names)), names, color=INK)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel("milliseconds of one profiled request")
        figure.legend(loc="outside upper left", ncols=2)

    told = []
    for name in names:
        times = [f"{f.code_name(k)} {profiles[name][k].milliseconds:.1f} ms" for k in kinds if k in profiles[name]]
        told.append(f"{name}: {', '.join(times)}")
    return Drawing("profile", "Where the time goes", f"Time of one profiled request. {'. '.join(told)}.", 2.1, draw)
