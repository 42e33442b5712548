"""README.md: the model card that the registry and exports ship, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from sparsekd.report import formatting as f
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.page import machine, training
from sparsekd.report.rendering import template
from sparsekd.report.settings import pruning, resolved
from sparsekd.report.summary import Source, Summary
from sparsekd.report.table import comparison
from sparsekd.report.verdict import verdict

HUB_LICENCES = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "unlicense"}
    | {"cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "openrail", "bigcode-openrail-m"}
    | {"bigscience-bloom-rail-1.0", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "other", "unknown"}
)
"""Licence identifiers that the hub knows; any other licence goes in as `other` with its name."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Metric:
    """One figure of the model-index."""

    kind: str
    name: str
    value: float


def model_card(summary: Summary, inputs: ReportInputs) -> str:
    """The card's Markdown with its YAML front matter."""
    source = summary.model.source
    return template("card.md.jinja", autoescape=False).render(
        summary=summary,
        name=summary.model.name,
        base_model=base_model(source),
        licence=hub_licence(source.licence),
        licence_slug=licence_slug,
        datasets=_datasets(summary),
        results=_results(summary),
        verdict=verdict(summary),
        groups=comparison(summary),
        config=resolved(inputs.settings),
        machine=machine(inputs),
        training=training(inputs),
        pruning=pruning(resolved(inputs.settings)),
        command=inputs.variants["distilled"].evaluation.command,
        yaml=_yaml,
        cell=_cell,
        f=f,
    )


def base_model(source: Source) -> str | None:
    """The model on the hub that this one comes from; None for a local checkpoint of unknown origin."""
    name = source.base_model or (source.name if source.kind == "hub" else "")
    return name if _HUB_ID.fullmatch(name) else None


def hub_licence(licence: str | None) -> str | None:
    """`Apache-2.0` → `apache-2.0`; `other` for a licence that the hub has no identifier for; None when unknown."""
    if not licence:
        return None
    return licence.lower() if licence.lower() in HUB_LICENCES else "other"


def licence_slug(licence: str) -> str:
    """A licence's name in the characters that the hub takes."""
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")


def _datasets(summary: Summary) -> list[str]:
    """Calibration corpora that are data sets on the hub."""
    sources = (corpus.source or "" for corpus in summary.corpora.values() if corpus.role == "calibration")
    return [name for name in (s.removeprefix("hf:") for s in sources) if _HUB_ID.fullmatch(name)]


def _results(summary: Summary) -> dict[str, list[Metric]]:
    """The model-index: figures of the distilled model by task or corpus."""
    model = summary.variants.distilled
    results: dict[str, list[Metric]] = {}
    for task, found in model.tasks.items():
        results[task] = [Metric(found.metric, f"{found.metric}, {found.n} rows", found.value)]
    for corpus, perplexity in model.perplexity.items():
        results.setdefault(corpus, []).append(Metric("perplexity", "token perplexity, test part", perplexity.value))
    for corpus, agreement in model.agreement.items():
        kl, top1 = agreement.kl.value, agreement.top1.value
        results.setdefault(corpus, []).append(Metric("kl_divergence", "KL to the dense model, nats a token", kl))
        results[corpus].append(Metric("top1_agreement", "same top token as the dense model", top1))
    return results


def _yaml(value: Any) -> str:
    """A scalar for the front matter: JSON strings and numbers are YAML too, whatever characters they hold."""
    return json.dumps(round(value, 6) if isinstance(value, float) else value, ensure_ascii=False)


def _cell(text: str) -> str:
    """Text that cannot break out of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
