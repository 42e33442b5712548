"""`sparsekd preview`: the price list of a model as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.checks import preflight
from flows.commands import job, steps
from flows.commands.display import make_console
from flows.prices import price_lists
from flows.prices.expected import expected
from flows.settings import params
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError
from sparsekd.evaluation.expectation import Expectation
from sparsekd.evaluation.offers import WIDTHS, Offer, PriceList
from sparsekd.runtime import prepare_process
from tasks.corpora import own_corpora
from tasks.environment import checkout_root
from tasks.quick import importing


def preview(request: job.Request, widths: str | None, as_json: bool, out: Path | None) -> None:
    """Make the list and show it. Raises SparseKDError before anything loads where the request cannot be met."""
    if out is not None:
        out = out.absolute()
        steps.check_out(out)
    wanted = widths_of(widths)
    config = settle(request)
    found = price(config, wanted)
    root = checkout_root()
    curve = expected(root, config, found) if _is_checkout(root) else None
    if as_json:
        print(to_json(found, curve), end="")
    else:
        show(found, curve, make_console())
    if out is not None:
        from sparsekd.report.price_picture import drawing

        out.mkdir(parents=True, exist_ok=True)
        (out / "preview.json").write_text(to_json(found, curve))
        drawing(found).write_png(out)


def price(config: RunConfig, widths: Sequence[float]) -> PriceList:
    """The price list of a settled configuration: the one that the checkout has kept, or a new one, which it keeps."""
    root = checkout_root()
    if (found := price_lists.kept(root, config, widths)) is not None:
        return found
    prepare_process(config.runtime)
    with steps.working("preview") as progress:
        with importing():
            from sparsekd import api

        made = api.preview(config.model.source, widths, config=config, corpora=own_corpora(root), progress=progress)
    if _is_checkout(root):
        price_lists.keep(root, config, widths, made)
    return made


def _is_checkout(root: Path) -> bool:
    return (root / ".dvc").is_dir()


def settle(request: job.Request) -> RunConfig:
    """What a run of `request` would be made from: params.yaml, outside a checkout the preset default, and the options.

    Sources are resolved, and what can be checked before anything loads is. Raises SparseKDError.
    """
    root, asked_in = checkout_root(), Path.cwd()
    os.chdir(root)  # relative paths in params.yaml start here
    base = params.load(root) if (root / "params.yaml").is_file() else params.load_preset("default")
    config, _ = preflight.resolve_sources(job.settle(root, base, replace(request, yes=True), asked_in), root)
    source, model = config.model.source, preflight.dense_config(root, config)
    preflight.check_layout(source, model)
    preflight.check_lengths(source, model, {"calibrate.sequence_length": config.calibrate.sequence_length})
    preflight.check_device(config)
    return config


def widths_of(given: str | None) -> Sequence[float]:
    if given is None:
        return WIDTHS
    try:
        widths = [float(one) for one in given.split(",")]
    except ValueError:
        widths = []
    if not widths or min(widths) <= 0:
        raise ConfigError(f"--widths is {given!r}; give numbers above 0 with commas between them, as 0.9,0.75,640.")
    return widths


def to_json(found: PriceList, curve: Expectation | None) -> str:
    """All figures; `expectation` is null where no earlier runs support one."""
    values = found.model_dump(mode="json")
    values["expectation"] = curve and {
        "runs": curve.runs,
        "error": curve.error,
        "kl": {offer.width: curve.kl(offer.mean_kl) for offer in found.offers},
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def as_markdown(found: dict[str, Any]) -> str:
    """The table of what `to_json` gives."""
    prices, expected = PriceList.model_validate(found), found["expectation"]
    headings = (*_HEADINGS, *(["KL distilled, expected"] if expected else []))
    lines = [f"| {' | '.join(headings)} |", f"|{'---:|' * len(headings)}"]
    for offer in (prices.dense, *prices.offers):
        kl = expected and expected["kl"].get(str(offer.width))
        cells = [*_row(offer), *([f"{kl:.3f}" if kl else ""] if expected else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_HEADINGS = ("width", "of neurons", "parameters", "MB", "removed", "KL", "perplexity", "prefill", "decode")


def show(found: PriceList, curve: Expectation | None, console: Console) -> None:
    """The table, dense first, and how to read it."""
    table = Table(title=f"{found.model}: pruned in one shot, not distilled", title_justify="left")
    for heading in (*_HEADINGS, *(["KL distilled, expected"] if curve else [])):
        table.add_column(heading, justify="right")
    for offer in (found.dense, *found.offers):
        expected = [""] if offer is found.dense else [f"{curve.kl(offer.mean_kl):.3f}"] if curve else []
        table.add_row(*_row(offer), *(expected if curve else []))
    console.print(table)
    console.print(
        f"Statistics of {found.tokens:,} tokens, scores on {found.held_out_tokens:,} validation tokens of "
        f"{', '.join(found.dense.perplexity)}. KL to the dense model in nats a token, mean of the corpora; speeds as "
        "FLOPs (prefill) and bytes (decode) promise. A run's sequential compensation and distillation come on top.",
        markup=False,
    )
    if curve:
        console.print(
            f"Expected: an estimate from {curve.runs} runs of this model, these texts and this recipe; each of them, "
            f"left out, would have been missed by {curve.error:.0%} at the most.",
            markup=False,
        )


def _row(offer: Offer) -> list[str]:
    return [
        f"{offer.width:,}",
        f"{offer.share:.0%}",
        f"{offer.parameters['total'] / 1e6:.1f} M",
        f"{offer.bytes / 1e6:.0f}",
        f"{offer.reduction['total']:.1%}",
        f"{offer.mean_kl:.3f}",
        " / ".join(f"{one.value:.1f}" for one in offer.perplexity.values()),
        *(f"× {offer.speed_up[phase]:.2f}" for phase in ("prefill", "decode")),
    ]
