"""The table dense / pruned / distilled as text cells, shared by the page, the model card and the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsekd.report import formatting as f
from sparsekd.report.summary import Interval, Summary, TaskScore, Variant


@dataclass(frozen=True)
class Cell:
    """A figure and the small print under it (interval, change to dense)."""

    text: str = f.NOTHING
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One quantity; `cells` in the order dense, pruned, distilled."""

    label: str
    cells: tuple[Cell, ...]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    title: str
    rows: tuple[Row, ...]


def comparison(summary: Summary) -> tuple[Group, ...]:
    """All groups that hold at least one measured figure."""
    groups = (_size(summary), _perplexity(summary), _agreement(summary), _tasks(summary), _speed(summary))
    return tuple(group for group in groups if group.rows)


def _row(summary: Summary, label: str, cell: Callable[[Variant], Cell], note: str = "") -> Row:
    return Row(label, tuple(cell(variant) for variant in summary.variants.named().values()), note)


def _size(summary: Summary) -> Group:
    dense = summary.variants.dense

    def share(value: int, base: int) -> str:
        return "" if value == base or not base else f"{f.points(value / base - 1)} %"

    def total(variant: Variant) -> Cell:
        return Cell(f.count(variant.parameters.total), share(variant.parameters.total, dense.parameters.total))

    def ffn(variant: Variant) -> Cell:
        return Cell(f.count(variant.parameters.ffn), share(variant.parameters.ffn, dense.parameters.ffn))

    def checkpoint(variant: Variant) -> Cell:
        return Cell(f.size(variant.bytes), share(variant.bytes, dense.bytes))

    stored = dense.checkpoint_dtype
    rows = [
        _row(summary, "Parameters", total),
        _row(summary, "of which FFN", ffn),
        _row(summary, "Checkpoint", checkpoint, f"{stored} safetensors" if stored else "safetensors"),
    ]
    return Group("Size", tuple(rows))


def corpus_role(summary: Summary, corpus: str) -> str:
    """What a reader must know of a corpus to weigh a figure on it."""
    known = summary.corpora.get(corpus)
    if corpus == "chat":
        return "dense's own answers"
    return {"calibration": "same source as calibration", "held_out": "never trained on"}.get(
        (known.role if known else None) or "", ""
    )


def _perplexity(summary: Summary) -> Group:
    def row(corpus: str) -> Row:
        def cell(variant: Variant) -> Cell:
            found = variant.perplexity.get(corpus)
            return Cell(f.decimals(found.value), f.span(found)) if found else Cell()

        return _row(summary, corpus, cell, corpus_role(summary, corpus))

    names = [name for name in summary.corpus_names() if name in summary.variants.dense.perplexity]
    return Group("Test perplexity, lower is better", tuple(row(name) for name in names))


def _agreement(summary: Summary) -> Group:
    def agreement(corpus: str) -> Callable[[Variant], Cell]:
        def cell(variant: Variant) -> Cell:
            found = variant.agreement.get(corpus)
            return Cell(f"{found.kl.value:.3f}", f.percent(found.top1.value)) if found else Cell()

        return cell

    def repetition(corpus: str) -> Callable[[Variant], Cell]:
        def cell(variant: Variant) -> Cell:
            share = variant.repetition.get(corpus)
            return Cell() if share is None else Cell(f.percent(share))

        return cell

    names = [name for name in summary.corpus_names() if name in summary.variants.distilled.agreement]
    rows = [_row(summary, name, agreement(name)) for name in names]
    for corpus in summary.variants.distilled.repetition:
        rows.append(_row(summary, "Repetition", repetition(corpus), f"degenerate {corpus} answers"))
    return Group("KL to dense in nats a token, with the share of equal top tokens", tuple(rows))


def _tasks(summary: Summary) -> Group:
    rows = []
    for task, dense in summary.variants.dense.tasks.items():

        def cell(variant: Variant, task: str = task) -> Cell:
            found = variant.tasks.get(task)
            if found is None:
                return Cell()
            return Cell(score(found), "" if found.stderr is None else f"±{score(found, found.stderr)}")

        mark = "" if dense.in_mean else ", not in the mean"
        rows.append(_row(summary, f"{task} ({dense.metric})", cell, f"{rows_of(dense.n, dense.n_total)}{mark}"))
    for group in summary.variants.dense.groups:
        rows.append(_group_row(summary, group))
    if summary.variants.dense.task_mean:
        rows.append(_row(summary, f"Mean of {len(summary.variants.dense.task_mean.tasks)}", _mean_cell))
    return Group("Task scores in percent, with standard errors", tuple(rows))


def _group_row(summary: Summary, group: str) -> Row:
    def cell(variant: Variant) -> Cell:
        found = variant.groups.get(group)
        return Cell(score(found)) if found else Cell()

    dense = summary.variants.dense.groups[group]
    return _row(summary, f"{group} ({dense.metric})", cell, "group of tasks")


def score(found: TaskScore, value: float | None = None) -> str:
    """The score (or another `value` of its kind) in percent; as it stands for metrics that are no share."""
    value = found.value if value is None else value
    return f"{100 * value:.1f}" if 0 <= found.value <= 1 else f.decimals(value)


def rows_of(n: int, total: int | None) -> str:
    """`200 of 570 rows`."""
    return f"{n:,} of {total:,} rows" if total and total != n else f"{n:,} rows"


def _mean_cell(variant: Variant) -> Cell:
    mean = variant.task_mean
    if mean is None:
        return Cell()
    change = mean.difference.value if mean.difference else None
    return Cell(f"{100 * mean.value:.1f}", f"{f.points(change)} points" if change else "")


def _speed(summary: Summary) -> Group:
    def cells(part: str) -> Callable[[Variant], Cell]:
        def cell(variant: Variant) -> Cell:
            value: float | None = getattr(variant.speed, f"{part}_tokens_per_second")
            found: Interval | None = getattr(variant.speed.ratio, part) if variant.speed.ratio else None
            if value is None:
                return Cell()
            compared = found is not None and variant is not summary.variants.dense
            return Cell(f.speed(value), f.ratio(found.value) if found and compared else "")

        return cell

    def memory(variant: Variant) -> Cell:
        return Cell() if variant.speed.peak_memory_bytes is None else Cell(f.size(variant.speed.peak_memory_bytes))

    rows = [
        _row(summary, "Prefill", cells("prefill"), "tokens/s"),
        _row(summary, "Decode", cells("decode"), "tokens/s"),
        _row(summary, "Peak memory", memory),
    ]
    return Group("Speed on the machine below, median", tuple(r for r in rows if any(c != Cell() for c in r.cells)))
