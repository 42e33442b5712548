"""One page that compares several results: what each costs and keeps, and what each said of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sparsekd.report import formatting as f
from sparsekd.report import tradeoff
from sparsekd.report.context import groups
from sparsekd.report.details import Table
from sparsekd.report.drawing import Picture
from sparsekd.report.others import results_table
from sparsekd.report.rendering import script, template
from sparsekd.report.summary import Summary, Variant
from sparsekd.report.tradeoff import Result


@dataclass(frozen=True)
class Group:
    """Results of one dense model on the same test text: only these compare."""

    title: str
    tokens: int
    corpora: tuple[str, ...]
    headline: str
    picture: Picture | None
    tables: tuple[Table, ...]
    summaries: dict[str, Summary]


def write_comparison(summaries: Mapping[str, Summary], out: Path) -> Path:
    """Write index.html and its pictures into the directory `out`, and return the page's path.

    `summaries` are by name; those that were not measured on the same text of the same model are told apart.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = [_group(number, group, out) for number, group in enumerate(groups(summaries))]
    sort, sort_hash = script("sort.js")
    page = template("comparison.html.jinja", autoescape=True).render(
        groups=found, count=len(summaries), sort=sort, sort_hash=sort_hash
    )
    target = out / "index.html"
    target.write_text(page)
    return target


def _group(number: int, summaries: dict[str, Summary], out: Path) -> Group:
    first = next(iter(summaries.values()))
    results = tradeoff.results(summaries)
    drawing = tradeoff.picture(results)
    dense = first.variants.dense.perplexity
    return Group(
        title=first.model.label,
        tokens=sum(found.tokens or 0 for found in dense.values()),
        corpora=tuple(first.corpus_names()),
        headline=headline(results),
        picture=replace(drawing, name=f"{drawing.name}_{number}").write(out) if drawing else None,
        tables=(results_table(results, "Size, quality and speed"), *_by_part(summaries)),
        summaries=summaries,
    )


def headline(results: list[Result]) -> str:
    """Which results no other dominates, from the largest to the smallest."""
    best = [result for result in results if result.dominated_by is None and result.kl is not None]
    told = f.listing([f"{result.label} ({f.percent(result.reduction)} smaller, KL {result.kl:.3f})" for result in best])
    if len(best) == len(results):
        return f"Each is the best of its size: {told}." if len(best) > 1 else f"{told}."
    return f"{len(best)} of {len(results)} {'is' if len(best) == 1 else 'are'} dominated by no other: {told}."


def _by_part(summaries: dict[str, Summary]) -> list[Table]:
    """KL, perplexity and scores, a column a corpus or task; what no result has is left out."""
    makers: dict[str, Callable[[Variant], dict[str, str]]] = {
        "KL to dense by corpus, nats a token": lambda model: {
            name: f"{found.kl.value:.3f}" for name, found in model.agreement.items()
        },
        "Same top token as dense": lambda model: {
            name: f.percent(found.top1.value) for name, found in model.agreement.items()
        },
        "Perplexity as a multiple of dense's": lambda model: {
            name: f.ratio(found.ratio.value) for name, found in model.perplexity.items() if found.ratio
        },
        "Task scores": lambda model: {name: f.percent(found.value) for name, found in model.tasks.items()},
    }
    tables = []
    for caption, cells_of in makers.items():
        rows = {name: cells_of(summary.variants.distilled) for name, summary in summaries.items()}
        if columns := tuple(dict.fromkeys(part for cells in rows.values() for part in cells)):
            lines = tuple((name, *(cells.get(part, f.NOTHING) for part in columns)) for name, cells in rows.items())
            tables.append(Table(caption, ("Run", *columns), lines))
    return tables
