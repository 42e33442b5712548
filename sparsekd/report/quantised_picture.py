"""The picture of quantisation beside pruning: KL against the size of the file."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sparsekd.report import formatting as f
from sparsekd.report.drawing import SERIES, Drawing, Picture
from sparsekd.report.summary import Quantised, Summary


def draw_quantised(summary: Summary, out: Path) -> dict[str, Picture]:
    """Write quantised.png into `out` and give the picture by its name; nothing where nothing was compared."""
    return {drawing.name: drawing.write(out)} if (drawing := quantised(summary.quantised)) else {}


def quantised(found: tuple[Quantised, ...]) -> Drawing | None:
    """A point a file, a line a model."""
    if not found:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for model in dict.fromkeys(one.model for one in found):
            colour, marker = SERIES[model]
            mine = sorted((one for one in found if one.model == model), key=lambda one: one.bytes)
            sizes, kls = [one.bytes / 1e6 for one in mine], [one.mean_kl for one in mine]
            axes.plot(sizes, kls, f"-{marker}", color=colour, markersize=5, label=model)
            for one, size, kl in zip(mine, sizes, kls, strict=True):
                axes.annotate(one.type.upper(), (size, kl), (5, 5), textcoords="offset points", fontsize=9.5)
        axes.set(xlabel="size of the file", ylabel="KL to dense, nats", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} MB"))
        axes.margins(x=0.12, y=0.15)
        axes.grid(axis="both")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)

    told = f.listing([f"{one.model} {one.type.upper()} {f.size(one.bytes)}, KL {one.mean_kl:.3f}" for one in found])
    alt = f"KL to the dense model against the size of the file, in llama.cpp: {told}."
    return Drawing("quantised", "Pruned and quantised", alt, 3.2, draw)
