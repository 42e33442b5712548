"""The picture of confidence against being right."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sparsekd.report import formatting as f
from sparsekd.report.drawing import FAINT, SERIES, Drawing, Picture
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.spread import Reliability, pooled


def draw_reliability(inputs: ReportInputs, out: Path) -> dict[str, Picture]:
    """Write reliability.png into `out` and give the picture by its name; nothing where it was not measured."""
    found = {name: pooled(variant.tokens.reliability) for name, variant in inputs.variants.items()}
    drawing = reliability({name: bins for name, bins in found.items() if bins})
    return {drawing.name: drawing.write(out)} if drawing else {}


def reliability(found: dict[str, Reliability]) -> Drawing | None:
    """Accuracy over confidence, a line a variant."""
    if not found:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, linestyle=(0, (3, 3)))
        for name, bins in found.items():
            colour, marker = SERIES[name]
            label = f"{name}, ECE {100 * bins.error:.1f}"
            axes.plot(bins.confidence, bins.accuracy, f"-{marker}", color=colour, markersize=4.5, label=label)
        axes.set_xlabel("confidence")
        axes.set_ylabel("right")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.grid()
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)

    told = f.listing([f"{100 * bins.error:.1f} percentage points for {name}" for name, bins in found.items()])
    alt = f"How often a model's first choice was right, by its confidence. Expected calibration error: {told}."
    return Drawing("reliability", "Confidence", alt, 3.4, draw)
