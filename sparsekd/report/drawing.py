"""One drawing, written twice: as a PNG file, and as SVG whose colours follow the page's light or dark theme.

No global state: no pyplot, the reader's own matplotlibrc is ignored, no date and no random id gets into a file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH = 4.7
"""Inches: small, so that type stays legible when a phone scales the picture down."""
INK, FAINT, GRID, PAPER = "#1f2430", "#5b6472", "#dfe3ea", "#ffffff"
DENSE, PRUNED, DISTILLED = "#6b7484", "#c2620a", "#1d5fd1"
SERIES = {"dense": (DENSE, "o"), "pruned": (PRUNED, "s"), "distilled": (DISTILLED, "D")}
OPERATORS = {"ffn": "#1d5fd0", "attention": "#a8418f", "lm_head": "#0e8074", "rest": "#9aa3b0"}
THEME = {
    INK: "--ink",
    FAINT: "--faint",
    GRID: "--grid",
    PAPER: "--paper",
    DENSE: "--dense",
    PRUNED: "--pruned",
    DISTILLED: "--distilled",
    **{colour: f"--op-{name.replace('_', '-')}" for name, colour in OPERATORS.items()},
}
"""Which custom property of the page's style sheet stands for which colour of the pictures."""
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sparsekd",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.5,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}


@dataclass(frozen=True)
class Picture:
    """One picture: its file name without ending, what it shows in words, and its SVG for the page."""

    name: str
    title: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Drawing:
    """A picture that is yet to be drawn: `draw` gets a figure of `height` inches."""

    name: str
    title: str
    alt: str
    height: float
    draw: Callable[[Figure], None]

    def write_png(self, out: Path) -> Path:
        """The PNG file alone, in half the time."""
        with self._drawn() as figure:
            return self._png(figure, out)

    def write(self, out: Path) -> Picture:
        with self._drawn() as figure:
            self._png(figure, out)
            stream = io.StringIO()
            empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
            figure.savefig(stream, format="svg", transparent=True, metadata=empty)
        return Picture(self.name, self.title, self.alt, _for_page(stream.getvalue(), self.name))

    @contextmanager
    def _drawn(self) -> Iterator[Figure]:
        with _style():
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            FigureCanvasAgg(figure)
            self.draw(figure)
            yield figure

    def _png(self, figure: Figure, out: Path) -> Path:
        path = out / f"{self.name}.png"
        figure.savefig(path, dpi=200, metadata={"Software": None})
        return path


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _for_page(svg: str, name: str) -> str:
    """The <svg> element alone: ids unique in the page, colours as custom properties, the page's width and font."""
    body = svg[svg.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    for colour, variable in THEME.items():
        body = re.sub(colour, f"var({variable})", body, flags=re.IGNORECASE)
    body = re.sub(r"<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true">', body, count=1)
    return re.sub(r"\n\s*\n+", "\n", body)
