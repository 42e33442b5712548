"""The tables under the pictures: every figure that a picture shows, with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from sparsekd.report import formatting as f
from sparsekd.report.summary import Interval, OperatorTime, Quantised, Summary, TaskScore
from sparsekd.report.table import corpus_role, rows_of, score
from sparsekd.report.verdict import paces_of


@dataclass(frozen=True)
class Table:
    """A caption, column headings, and rows whose first cell is the row's heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


COMPRESSED = ("pruned", "distilled")
NO_MEAN = "\N{NO-BREAK SPACE}*"
"""Marks a task that leaves the means."""


def detail_tables(summary: Summary) -> dict[str, Table]:
    """By section of the page; a section without figures has none."""
    tables = {
        "perplexity": _perplexity_table(summary),
        "agreement": _agreement_table(summary),
        "tasks": _task_table(summary),
        "paired": _paired_table(summary),
        "speed": _speed_table(summary),
        "profile": _profile_table(summary),
        "gate": _gate_table(summary),
        "quantised": _quantised_table(summary),
    }
    return {name: table for name, table in tables.items() if table}


def _between(interval: Interval | None, show: str) -> str:
    return (f.span(interval, show) or f.NOTHING) if interval else f.NOTHING


def _perplexity_table(summary: Summary) -> Table | None:
    rows = []
    for corpus in summary.corpus_names():
        for name in COMPRESSED:
            found = summary.variants.named()[name].perplexity.get(corpus)
            if found is None:
                continue
            rows.append(
                (
                    f"{corpus}, {name}",
                    f.ratio(found.ratio.value) if found.ratio else f.NOTHING,
                    _between(found.ratio, "ratio"),
                    f"{f.signed(found.excess_loss.value, 3)} nats" if found.excess_loss else f.NOTHING,
                    f"{found.documents:,}" if found.documents else f.NOTHING,
                    f"{found.tokens:,}" if found.tokens else f.NOTHING,
                    corpus_role(summary, corpus) or f.NOTHING,
                )
            )
    columns = ("Corpus, model", "Ratio to dense", "95 % interval", "Excess loss", "Documents", "Tokens", "Text")
    return Table("Perplexity against dense on the same documents", columns, tuple(rows)) if rows else None


def _agreement_table(summary: Summary) -> Table | None:
    rows = [
        (
            f"{corpus}, {name}",
            f"{found.kl.value:.4f}",
            _between(found.kl, "kl"),
            f.percent(found.top1.value),
            _between(found.top1, "percent"),
        )
        for corpus in summary.corpus_names()
        for name, variant in summary.variants.named().items()
        if (found := variant.agreement.get(corpus))
    ]
    columns = ("Corpus, model", "KL, nats a token", "95 % interval", "Same top token", "95 % interval")
    return Table("Agreement with the dense model", columns, tuple(rows)) if rows else None


def _task_table(summary: Summary) -> Table | None:
    rows = []
    for task in summary.variants.dense.tasks:
        for name in COMPRESSED:
            found = summary.variants.named()[name].tasks.get(task)
            if found is None:
                continue
            rows.append(
                (
                    f"{task}, {name}{'' if found.in_mean else NO_MEAN}",
                    score(found),
                    _points(found, found.difference.value) if found.difference else f.NOTHING,
                    _between(found.difference, "points" if _is_share(found) else "decimals"),
                    f.percent(found.flips) if found.flips is not None else f.NOTHING,
                    f.percent(found.recovery) if found.recovery is not None else f.NOTHING,
                    "unknown" if found.chance is None else f"{100 * found.chance:.0f}",
                    rows_of(found.n, found.n_total),
                )
            )
    columns = ("Task, model", "Score", "Against dense", "95 % interval", "Flipped", "Recovery", "Chance", "Rows")
    return Table("Task scores against dense on the same rows, in points", columns, tuple(rows)) if rows else None


def _paired_table(summary: Summary) -> Table | None:
    """The distilled model alone, for reading beside the picture."""
    rows = [
        (
            f"{task}{'' if found.in_mean else NO_MEAN}",
            _points(found, found.difference.value),
            _between(found.difference, "points" if _is_share(found) else "decimals"),
            f.percent(found.flips) if found.flips is not None else f.NOTHING,
        )
        for task, found in summary.variants.distilled.tasks.items()
        if found.difference
    ]
    columns = ("Task", "Against dense", "95 % interval", "Flipped")
    return Table("Distilled against dense on the same rows, in points", columns, tuple(rows)) if rows else None


def _is_share(found: TaskScore) -> bool:
    return 0 <= found.value <= 1


def _points(found: TaskScore, difference: float) -> str:
    return f.points(difference) if _is_share(found) else f.signed(difference, 2)


def _speed_table(summary: Summary) -> Table | None:
    rows = []
    for name in COMPRESSED:
        variant = summary.variants.named()[name]
        for part, said in paces_of(variant).items():
            measured: Interval | None = getattr(variant.speed.ratio, part) if variant.speed.ratio else None
            predicted: float | None = getattr(variant.speed.predicted, part) if variant.speed.predicted else None
            if measured is None:
                continue
            rows.append(
                (
                    f"{part}, {name}",
                    f.ratio(measured.value),
                    _between(measured, "ratio"),
                    f.ratio(predicted) if predicted is not None else f.NOTHING,
                    str(variant.speed.rounds),
                    {"open": "not shown", "unmeasured": f.NOTHING}.get(said, said),
                )
            )
    columns = ("Phase, model", "Median ratio", "Range", "Predicted", "Rounds", "Faster than dense?")
    return Table("Speed against dense in the same rounds", columns, tuple(rows)) if rows else None


def _profile_table(summary: Summary) -> Table | None:
    """A column for each profiled model, and for each of its phases where they were profiled apart."""
    columns = dict(summary.profile)
    for phase in dict.fromkeys(phase for phases in summary.profile_phases.values() for phase in phases):
        for name, phases in summary.profile_phases.items():
            if phase in phases:
                columns[f"{name}, {phase}"] = phases[phase]
    if not columns:
        return None
    kinds = dict.fromkeys(kind for times in columns.values() for kind in times)

    def cell(times: dict[str, OperatorTime], kind: str) -> str:
        time = times.get(kind)
        return f"{time.milliseconds:.1f} ms ({f.percent(time.share, 0)})" if time else f.NOTHING

    rows = [(f.sentence(f.code_name(kind))[:-1], *(cell(times, kind) for times in columns.values())) for kind in kinds]
    rows.append(("Sum", *(f"{sum(t.milliseconds for t in times.values()):.1f} ms" for times in columns.values())))
    return Table("Profiled time of one request by class of operators", ("Operators", *columns), tuple(rows))


def _gate_table(summary: Summary) -> Table | None:
    rows = tuple(
        (f"{check.limit}, {check.part}", check.state, check.reason.partition(": ")[2], str(check.units))
        for check in summary.gate.checks
    )
    columns = ("Limit, held against", "State", "Found", "Documents, rows or rounds")
    return Table("What validation says of the limits in gate", columns, rows) if rows else None


def _quantised_table(summary: Summary) -> Table | None:
    if not summary.quantised:
        return None
    files = sorted(summary.quantised, key=lambda found: -found.bytes)
    corpora, tasks = list(files[0].kl), list(files[0].tasks)
    seen = [name for name in corpora if (known := summary.corpora.get(name)) and known.role == "calibration"]
    texts = {"calibration": seen, "other": [name for name in corpora if name not in seen]}
    columns = ["File", "Size", "KL", *(f"{kind} text" for kind, names in texts.items() if names)]
    columns += ["Perplexity", *([f"{f.number_of(len(tasks), 'task')}"] if tasks else [])]
    columns += ["Prefill", "Decode", "Frontier"]

    def row(found: Quantised) -> tuple[str, ...]:
        speeds = (found.speed.prefill, found.speed.decode)
        return (
            f"{found.model}, {found.type.upper()}",
            f.size(found.bytes),
            f"{found.mean_kl:.3f}",
            *(f"{mean(found.kl[name].value for name in names):.3f}" for names in texts.values() if names),
            f"{found.perplexity[corpora[0]].value:.2f}",
            *([f.percent(mean(found.tasks[name].value for name in tasks))] if tasks else []),
            *(f.NOTHING if speed is None else f"{speed:.0f}" for speed in speeds),
            "no" if any(other.beats(found) for other in files) else "yes",
        )

    title = f"Both models in llama.cpp: mean KL to dense in nats a token, perplexity of {corpora[0]}, tokens a second"
    return Table(title, tuple(columns), tuple(map(row, files)))
