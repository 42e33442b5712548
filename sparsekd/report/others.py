"""This result among the others that the project knows, and the price list of its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsekd.report import formatting as f
from sparsekd.report import price_picture, tradeoff
from sparsekd.report.context import Context, comparable, same_model
from sparsekd.report.details import Table
from sparsekd.report.drawing import Picture
from sparsekd.report.summary import Summary
from sparsekd.report.tradeoff import Result

THIS = "this run"


def among_others(summary: Summary, context: Context) -> list[Result]:
    """This result and those that compare with it, the largest first; empty where there is none.

    A result with the very figures of this one is the same model, measured again.
    """
    known = {
        name: other
        for name, other in context.runs.items()
        if comparable(summary, other) and not same_model(summary, other)
    }
    return tradeoff.results({**known, THIS: summary}) if known else []


def draw_others(summary: Summary, context: Context, out: Path) -> dict[str, Picture]:
    """Write trade_off.png and preview.png into `out`, and give them by name; what is not known is not drawn."""
    drawings = [tradeoff.picture(among_others(summary, context), THIS)]
    drawings += [price_picture.drawing(context.prices)] if context.prices else []
    return {drawing.name: drawing.write(out) for drawing in drawings if drawing}


def results_table(found: Sequence[Result], caption: str) -> Table:
    """A row a result, a column that none of them has a figure for left out."""
    rows = tradeoff.rows(found)
    kept = [place for place in range(len(tradeoff.COLUMNS)) if any(row[place].strip(f.NOTHING) for row in rows)]
    names = [tradeoff.COLUMNS[place] or ("run" if place == 0 else "dominated") for place in kept]
    return Table(caption, tuple(names), tuple(tuple(row[place] for place in kept) for row in rows))


def price_table(context: Context) -> Table | None:
    """Width, size and KL of each offer of the price list."""
    if context.prices is None:
        return None
    columns = ("Neurons kept", "Width", "Parameters", "Removed", "KL, mean")
    rows = tuple(
        (
            f"{100 * offer.share:.0f} %",
            f"{offer.width:,}",
            f"{offer.parameters['total'] / 1e6:.1f} M",
            f"{100 * offer.reduction['total']:.1f} %",
            f"{offer.mean_kl:.3f}",
        )
        for offer in context.prices.offers
    )
    return Table("Price list: pruned in one shot, before distillation, on validation text", columns, rows)
