"""The report: summary.json, metrics.json, pictures, an offline page and a model card. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sparsekd.artifacts import Artifact
from sparsekd.config import Gate
from sparsekd.report.context import Context
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import summarise
from sparsekd.report.summary import Summary, metrics, read_summary
from sparsekd.report.table import comparison

__all__ = ["Context", "ReportInputs", "Summary", "comparison", "metrics", "read_summary", "write_report"]


def write_report(
    artifacts: Mapping[str, Artifact],
    out: Path,
    name: str | None = None,
    limits: Gate | None = None,
    context: Context | None = None,
) -> Summary:
    """Write every file of data/report into the directory `out` and return the summary.

    `artifacts` are named as below data/ (see ReportInputs.read); `name` is the compressed model's, `limits` are those
    of the gate, `context` is what the page tells beside its own run. Equal inputs give equal bytes. Raises
    ArtifactError for a part that is missing or damaged.
    """
    # Here, because matplotlib takes a second to load and the command line only reads summary.json
    from sparsekd.report.card import model_card
    from sparsekd.report.others import draw_others
    from sparsekd.report.page import page
    from sparsekd.report.plots import draw_all
    from sparsekd.report.quantised_picture import draw_quantised
    from sparsekd.report.spread_picture import draw_reliability

    inputs, context = ReportInputs.read(artifacts), context or Context()
    summary = summarise(inputs, name, limits)
    divergence = inputs.settings.get("distill", {}).get("divergence", "forward_kl")
    pictures = {
        **draw_all(summary, inputs.curve, inputs.layers, out, divergence),
        **draw_reliability(inputs, out),
        **draw_quantised(summary, out),
        **draw_others(summary, context, out),
    }
    (out / "summary.json").write_text(summary.to_json())
    (out / "metrics.json").write_text(json.dumps(metrics(summary), indent=2) + "\n")
    (out / "index.html").write_text(page(summary, inputs, pictures, context))
    (out / "README.md").write_text(model_card(summary, inputs))
    return summary
