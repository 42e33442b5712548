"""`sparsekd sweep --target "kl<=X"`: the smallest width whose distilled model keeps to it, by few runs.

The price list says where to begin; every run that ends makes the next guess better, or halves what is left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from flows.checks import preflight
from flows.commands import sweeping
from flows.commands.display import make_console
from flows.commands.sweeping import Request
from flows.prices import price_lists, targeting
from flows.prices.expected import known_runs
from flows.prices.targeting import Target, TargetMissedError
from flows.settings import params
from flows.sweeps import grid
from flows.workspaces.workspace import find_revision
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError
from sparsekd.evaluation.expectation import candidates, expectation, suggested_width
from sparsekd.evaluation.offers import WIDTHS

MOST_RUNS = 6
Tried = Mapping[int, float]
"""Width → KL of the distilled model on validation text."""


def bisect(request: Request, target: Target) -> None:
    """Search, show the table after each step, and say which width it is.

    Raises ConfigError for a request that is none, TargetMissedError where no priced width keeps to the target.
    """
    if not target.needs_prices:
        raise ConfigError(f"--target is {target}, which is a budget and needs no search: sparsekd compress --target.")
    console, home = make_console(), params.find_root()
    preflight.check_repository(home)
    targeting.check_alone(request.settings)
    settings = sweeping.settings_of(request, Path.cwd(), home)
    os.chdir(home)  # relative paths in params.yaml start here
    base = grid.settled(home, settings, request.preset, request.at)
    preflight.check_settings(home, base, preflight.dense_config(home, base))
    found = price_lists.computed_apart(home, base, WIDTHS)
    widths = candidates(found, base.prune.multiple_of)
    if len(widths) < 2:
        raise ConfigError(
            f"Of the widths between {found.offers[-1].width} and {found.offers[0].width}, prune.multiple_of="
            f"{base.prune.multiple_of} leaves {len(widths)} to search; make it smaller."
        )
    known = known_runs(home, base)

    def measured() -> Tried:
        return {round(run.share * found.dense.width): run.kl for run in known}

    def suggest(limit: float) -> int | None:
        width = suggested_width(found, expectation(found, known), limit, base.prune.multiple_of)
        return width[0] if width else None

    def run(tried: Sequence[int]) -> Tried:
        nonlocal known
        chosen = f"prune.width={','.join(map(str, tried))}"
        sweeping.sweep(replace(request, name=name, model=None, texts=(), settings=(*settings, chosen)))
        known = known_runs(home, base)
        return {width: measured()[width] for width in tried}

    before = {width: kl for width, kl in measured().items() if width in widths}
    if request.dry_run:
        first = next_widths(widths, before, target.value, suggest)
        goes = f"goes on with {_listed(first)}" if first else "has nothing left to run"
        console.print(f"sweep for {target} among widths {_listed(widths)} {goes}", markup=False, soft_wrap=True)
        return
    name = request.name or _name(home, base, request.at, target)
    tried = search(widths, target.value, suggest, run, before)
    conclude(tried, widths, target, console)


def search(
    widths: Sequence[int],
    limit: float,
    suggest: Callable[[float], int | None],
    run: Callable[[Sequence[int]], Tried],
    known: Tried,
) -> Tried:
    """KL of the widths that were run until the smallest that keeps to `limit` is known, or MOST_RUNS more are done.

    `known` are those of earlier runs. `suggest` names the width that is expected to keep to a limit, None where none
    is; `run` takes all widths so far.
    """
    tried = known
    while len(tried) < MOST_RUNS + len(known) and (chosen := next_widths(widths, tried, limit, suggest)):
        tried = run([*tried, *chosen])
    return tried


def next_widths(widths: Sequence[int], tried: Tried, limit: float, suggest: Callable[[float], int | None]) -> list[int]:
    """What to run next, two at first; none where nothing is left between what keeps to the limit and what does not."""
    too_narrow = max((width for width, kl in tried.items() if kl > limit), default=min(widths) - 1)
    enough = min((width for width, kl in tried.items() if kl <= limit), default=max(widths) + 1)
    between = [width for width in widths if too_narrow < width < enough]
    if not between:
        return []
    guess = suggest(limit)
    first = guess if guess in between else between[len(between) // 2]
    if tried:
        return [first]
    # before any run the guess is that of pruning in one shot, and by how much distillation lowers it is not known
    second = suggest(2 * limit)
    return [first, second if second in between and second != first else _neighbour(between, first)][: len(between)]


def conclude(tried: Tried, widths: Sequence[int], target: Target, console: Console) -> None:
    """The smallest width that keeps to the target, and what the next smaller one that was tried has."""
    enough = {width: kl for width, kl in tried.items() if kl <= target.value}
    if not enough:
        widest = max(tried)
        raise TargetMissedError(
            f"No width up to {widest} keeps to {target}: {widest} has {tried[widest]:.4f} nats. Ask for less, or "
            "distil on more tokens (-S distill.tokens=N)."
        )
    best = min(enough)
    line = f"target {target}: width {best} keeps to it with {enough[best]:.4f} nats"
    if narrower := [width for width in tried if width < best]:
        line += f"; {max(narrower)} has {tried[max(narrower)]:.4f}"
    left = [width for width in widths if max(narrower, default=0) < width < best]
    console.print(f"{line}.{f' Not tried: {_listed(left)}.' if left else ''}", markup=False, soft_wrap=True)


def _name(home: Path, base: RunConfig, at: str | None, target: Target) -> str:
    commit = find_revision(home, at).tree if at is not None else None
    return f"target-kl{target.value:g}-{grid.digest([base], commit)}"


def _neighbour(widths: Sequence[int], width: int) -> int:
    place = widths.index(width)
    return widths[place - 1] if place else widths[min(1, len(widths) - 1)]


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths))
