"""index.html: one file that opens offline, in light and dark, wide and narrow. Its one script sorts tables."""

from __future__ import annotations

from dataclasses import dataclass

from sparsekd.report import formatting as f
from sparsekd.report.context import Context
from sparsekd.report.details import Table, detail_tables
from sparsekd.report.drawing import Picture
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.others import among_others, price_table, results_table
from sparsekd.report.provenance import cost_table, repeat
from sparsekd.report.rendering import script, template
from sparsekd.report.settings import as_text, pruning, resolved
from sparsekd.report.spread import divergence_rows
from sparsekd.report.statistics import RESAMPLES
from sparsekd.report.summary import Summary
from sparsekd.report.table import comparison
from sparsekd.report.verdict import verdict


@dataclass(frozen=True)
class Answers:
    """One prompt and what each variant answered, None where it was not asked."""

    prompt: str
    answers: dict[str, str | None]


def page(summary: Summary, inputs: ReportInputs, pictures: dict[str, Picture], context: Context) -> str:
    """The page's HTML. Everything that came from models, texts or files is escaped."""
    headline, *sentences = verdict(summary)
    config = resolved(inputs.settings)
    sort, sort_hash = script("sort.js")
    return template("index.html.jinja", autoescape=True).render(
        summary=summary,
        headline=headline,
        sentences=sentences,
        groups=comparison(summary),
        pictures=pictures,
        tables=detail_tables(summary) | spread_tables(inputs) | context_tables(summary, context),
        passages=inputs.variants["distilled"].tokens.passages,
        answers=answers(inputs),
        settings=as_text(inputs.settings, config),
        versions=inputs.versions,
        window=config.calibrate.sequence_length if config and "calibrate" in inputs.settings else None,
        command=inputs.variants["distilled"].evaluation.command,
        machine=machine(inputs),
        commands=repeat(inputs.settings, config, context),
        context=context,
        weights=inputs.weights,
        training=training(inputs),
        pruning=pruning(config),
        resamples=RESAMPLES,
        sort=sort,
        sort_hash=sort_hash,
        f=f,
    )


def spread_tables(inputs: ReportInputs) -> dict[str, Table]:
    """How confidence and divergence spread over test tokens; what was not measured has no table."""
    tables = {}
    if rows := divergence_rows(inputs.variants["distilled"].tokens.divergence):
        caption = "Distilled: test tokens by KL, and their share of all of it"
        columns = ("KL in nats", "Tokens", "Divergence")
        tables["spread"] = Table(caption, columns, tuple(rows))
    found = {name: variant.tokens.reliability for name, variant in inputs.variants.items()}
    if corpora := list(found["distilled"]):
        caption = "Expected calibration error by corpus, in percentage points"
        errors = [[found[name].get(corpus) for name in found] for corpus in corpora]
        cells = [[f.NOTHING if e is None else f"{100 * e.error:.1f}" for e in row] for row in errors]
        rows_ = tuple((corpus, *row) for corpus, row in zip(corpora, cells, strict=True))
        tables["calibration"] = Table(caption, ("Corpus", *found), rows_)
    return tables


def context_tables(summary: Summary, context: Context) -> dict[str, Table]:
    """What is told beside the run itself."""
    found = among_others(summary, context)
    results = results_table(found, "Results of the project on the same test text") if found else None
    tables = {"others": results, "prices": price_table(context), "cost": cost_table(context)}
    return {name: table for name, table in tables.items() if table}


def answers(inputs: ReportInputs) -> list[Answers]:
    """The fixed prompts, in the order in which the distilled model was asked."""
    by_variant = {name: {p.prompt: p.answer for p in found.prompts} for name, found in inputs.variants.items()}
    return [
        Answers(asked.prompt, {name: found.get(asked.prompt) for name, found in by_variant.items()})
        for asked in inputs.variants["distilled"].prompts
    ]


def machine(inputs: ReportInputs) -> str:
    """Host and settings of the speed measurement, in a line; empty when there was none."""
    host, settings = inputs.benchmark.host, inputs.benchmark.settings
    counts = {"threads": "thread", "rounds": "round"}
    words = {
        "dtype": "{}",
        "batch_size": "batch of {}",
        "prefill_tokens": "prefill of {} tokens",
        "decode_tokens": "decode of {} tokens",
        "openmp_wait": "OpenMP waits {}ly",
        "device": "device {}",
    }
    named = [str(host[key]) for key in ("cpu", "gpu") if host.get(key)]
    named += [f.number_of(host["cores"], "core")] if host.get("cores") else []
    named += [f.number_of(settings[key], thing) for key, thing in counts.items() if settings.get(key)]
    named += [text.format(settings[key]) for key, text in words.items() if settings.get(key) is not None]
    return ", ".join(named)


def training(inputs: ReportInputs) -> str:
    """What distillation did, in a line."""
    facts = inputs.distillation
    parts = []
    if facts.get("steps"):
        parts.append(f"{facts['steps']:,} steps")
    if facts.get("tokens"):
        parts.append(f"{facts['tokens']:,} tokens")
    if facts.get("best_step") is not None and facts["best_step"] != facts.get("steps"):
        parts.append(f"weights of step {facts['best_step']:,} kept, the best on validation")
    if facts.get("device"):
        parts.append(f"on {facts['device']}")
    if facts.get("precision"):
        parts.append(str(facts["precision"]))
    if facts.get("compiled") is not None:
        parts.append("compiled" if facts["compiled"] else "not compiled")
    return ", ".join(parts)
