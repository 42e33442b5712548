"""The price list as a picture: KL to dense against the parameters that are left."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sparsekd.evaluation.offers import PriceList
from sparsekd.report import formatting as f
from sparsekd.report.drawing import PRUNED, Drawing


def drawing(found: PriceList) -> Drawing:
    """A line over the widths, with the interval of each corpus' mean left out: corpora differ more than it."""
    offers = (found.dense, *found.offers)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        sizes = [offer.parameters["total"] / 1e6 for offer in offers]
        for corpus in found.dense.kl:
            axes.plot(sizes, [offer.kl[corpus].value for offer in offers], color=PRUNED, alpha=0.3, linewidth=1)
        axes.plot(sizes, [offer.mean_kl for offer in offers], "s-", color=PRUNED, markersize=5)
        for size, offer in zip(sizes, offers, strict=True):
            axes.annotate(f"{offer.share:.0%}", (size, offer.mean_kl), (4, 5), textcoords="offset points", fontsize=9.5)
        axes.set(xlabel="parameters", ylabel="KL to dense, nats", ylim=(0, None))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} M"))
        axes.margins(x=0.08)
        axes.grid(axis="both")

    told = [
        f"{o.share:.0%} of the neurons: {f.count(o.parameters['total'])} parameters, KL {o.mean_kl:.3f}" for o in offers
    ]
    alt = f"KL to the dense model of {found.model}, pruned in one shot. {'; '.join(told)}."
    return Drawing("preview", "What each width costs, before distillation", alt, 3.0, draw)
