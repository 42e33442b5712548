"""`sparsekd compress`: settle params.yaml, see what is stale, check, run the flow, show what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.checks import preflight
from flows.checks.estimate import Estimate, compressed, estimate, remember_timings
from flows.checks.staleness import Staleness, staleness
from flows.commands.display import Display, duration, make_console, roughly
from flows.commands.summary import show_results
from flows.prices import targeting
from flows.prices.targeting import Target
from flows.settings import params, versions
from flows.settings.params import Change
from flows.workspaces import history, workspace
from flows.workspaces.lock import run_lock
from flows.workspaces.workspace import Workspace
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError
from sparsekd.pruning.budget import describe_reduction
from tasks import environment
from tasks.graph import read_graph
from tasks.repair import repair


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    preset: str | None = None
    model: str | None = None
    revision: str | None = None
    texts: Sequence[str] = ()
    settings: Sequence[str] = ()
    device: str | None = None
    dry_run: bool = False
    yes: bool = False
    wait: bool = False
    isolated: bool = False
    at: str | None = None
    name: str | None = None
    target: str | None = None


def compress(request: Request) -> None:
    """Do it. Raises SparseKDError for what the user can mend; params.yaml is written only after every check."""
    console = make_console()
    asked_in = Path.cwd()
    root = params.find_root()
    preflight.check_repository(root)
    apart = request.isolated or request.at is not None
    if apart:
        request = replace(request, yes=True)  # no hand edit of the checkout can be lost
    target = targeting.parse(request.target) if request.target else None
    if target:
        request = aimed_at(target, root, request, asked_in, console)
    if not apart:
        _compress(Place(root), request, asked_in, console)
        show_target(root, target, request, console)
        return
    config = settle(root, params.load_at(root, request.at), request, asked_in)
    space = workspace.create(root, request.name or history.new_name(root, config), request.at)
    console.print(f"run {space.name}, in a workspace of its own", markup=False)
    try:
        _compress(Place(root, space), request, asked_in, console)
        show_target(space.path, target, request, console)
    finally:
        os.chdir(root)
        workspace.remove(space)


def aimed_at(target: Target, root: Path, request: Request, asked_in: Path, console: Console) -> Request:
    """`request` with the width for its target, which is said. Raises SparseKDError where there is none."""
    targeting.check_alone(request.settings)
    os.chdir(root)  # relative paths in params.yaml start here
    config, _ = preflight.resolve_sources(settle(root, params.load_at(root, request.at), request, asked_in), root)
    preflight.check_settings(root, config, preflight.dense_config(root, config))
    settings, choice = targeting.settings(root, config, target)
    if choice:
        line = f"target {target}: width {choice.width}, expected KL {choice.kl:.3f} ({choice.ground})"
        console.print(line, markup=False, soft_wrap=True)
    return replace(request, settings=(*request.settings, *settings))


def show_target(root: Path, target: Target | None, request: Request, console: Console) -> None:
    """Say that the result under `root` has the KL that was asked for; a share of parameters was settled before the run.

    Raises TargetMissedError where it does not.
    """
    if target and target.needs_prices and not request.dry_run:
        console.print(targeting.verify(root, target), markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Place:
    """Where a run works: the checkout at `home`, or its workspace `space`."""

    home: Path
    space: Workspace | None = None

    @property
    def root(self) -> Path:
        return self.home if self.space is None else self.space.path


def _compress(place: Place, request: Request, asked_in: Path, console: Console) -> None:
    root = place.root
    os.chdir(root)  # stages, DVC and relative paths in params.yaml all start from here
    with run_lock(root, wait=request.wait, on_wait=console.print):
        for line in repair(root):
            console.print(line, markup=False)
        asked = settle(root, params.load(root), request, asked_in)
        if place.space:
            versions.bring(root, place.home, asked)
            asked = params.seen_from(root, asked, place.home)
        wanted, source = preflight.resolve_sources(asked, root)
        for line in versions.newer(root, wanted):
            console.print(line, markup=False, soft_wrap=True)
        changes = params.changes_of_file(root, wanted)
        describe_preset(root, wanted, console)
        model = preflight.dense_config(root, wanted)
        preflight.check_settings(root, wanted, model)
        if source.terms:
            console.print(source.terms, markup=False)
        found = staleness(root, params.edited_values(root, changes))
        if request.dry_run:
            list_changes("params.yaml would change:", changes, console)
            plan(root, wanted, model, found, console)
        elif found.nothing_to_do:
            write(root, changes, console)
            console.print("Nothing has changed: no stage to run, no server started. This is the stored result.")
            show_results(root, console)
        elif not found.stages:
            write(root, changes, console)
            console.print("No stage to run, but the last run still has to be logged to MLflow.")
            log_run(root, console)
            show_results(root, console)
        else:
            run(place, wanted, model, changes, found, console)


def settle(root: Path, current: RunConfig, request: Request, asked_in: Path) -> RunConfig:
    """The configuration that is asked for. Raises ConfigError where hand edits would be lost without --yes."""
    wanted = params.with_preset(current, request.preset, root) if request.preset else current
    options = []
    if request.model is not None:
        options.append(f"model.source={params.from_root(request.model, asked_in, root)}")
    if request.revision is not None:
        options.append(f"model.revision={request.revision}")
    if request.device is not None:
        options.append(f"runtime.device={request.device}")
    wanted = params.with_settings(wanted, options, "your command line")
    if request.texts:
        sources = [params.from_root(text, asked_in, root) for text in request.texts]
        wanted = params.with_texts(wanted, sources, versions.newest(root))
    wanted = params.with_settings(wanted, list(request.settings), "your -S options")
    if request.preset and not request.yes:
        named = {setting.partition("=")[0].strip() for setting in request.settings}
        lost = [change for change in params.lost_edits(current, wanted, root) if change.key not in named]
        if lost:
            kept = next((change for change in lost if change.before is not None), lost[0])
            raise ConfigError(
                f"params.yaml has changes from preset {current.preset} that --preset {request.preset} would lose: "
                f"{'; '.join(map(str, lost))}. "
                f"Add --yes to lose them, or keep them with -S {kept.key}={params.show(kept.before)}."
            )
    return wanted


def describe_preset(root: Path, config: RunConfig, console: Console) -> None:
    """One line: which preset this is, and what is otherwise than in it."""
    others = params.changes_from_preset(config, root)
    text = "as it stands" if not others else "with " + ", ".join(f"{c.key}={params.show(c.after)}" for c in others)
    console.print(f"preset {config.preset} {text}", markup=False, soft_wrap=True)


def write(root: Path, changes: list[Change], console: Console) -> None:
    """Write the changes to params.yaml and print them."""
    params.write(root, changes)
    list_changes("changed in params.yaml:", changes, console)


def list_changes(heading: str, changes: list[Change], console: Console) -> None:
    """The diff of params.yaml, a line a setting."""
    for line in [heading, *(f"  {change}" for change in changes)] if changes else []:
        console.print(line, markup=False, soft_wrap=True)


def plan(root: Path, config: RunConfig, model: dict[str, Any], found: Staleness, console: Console) -> None:
    """What --dry-run prints."""
    graph = read_graph(root)
    needed = estimate(root, config, model, list(found.stages))
    for name in graph:
        why = found.reasons.get(name, "what it reads will change")
        text = f"run     ~ {roughly(needed.seconds[name]):<10} {why}" if name in found.stages else "cached"
        console.print(f"{name:<19} {text}", markup=False, soft_wrap=True)
    show_plan(config, model, needed, console)
    preflight.check_resources(root, config, needed)


def show_plan(config: RunConfig, model: dict[str, Any], needed: Estimate, console: Console) -> None:
    """Time, disk, memory, and the model that will come of it."""
    made = compressed(config, model)
    gb = preflight.gigabytes
    budget, value = config.prune.budget
    for line in (
        "",
        f"time         about {roughly(sum(needed.seconds.values()))} on this machine",
        f"disk         about {gb(needed.disk)}",
        f"memory       about {gb(needed.memory)} at the peak",
        f"parameters   {made.dense['total']:,} to {made.pruned['total']:,}",
        f"weights      {made.dense_bytes / 1e6:,.1f} MB to {made.pruned_bytes / 1e6:,.1f} MB, at the same dtype",
        f"neurons      {made.old_width} to {made.new_width} a layer, by prune.{budget}={params.show(value)}",
        f"removed      {describe_reduction(made.reduction)}",
    ):
        console.print(line, markup=False, soft_wrap=True)


def run(
    place: Place,
    config: RunConfig,
    model: dict[str, Any],
    changes: list[Change],
    found: Staleness,
    console: Console,
) -> None:
    """Check disk and memory, write params.yaml, run the flow with a display, show the results."""
    root = place.root
    graph = read_graph(root)
    needed = estimate(root, config, model, list(found.stages), measure=False)
    preflight.check_resources(root, config, needed)
    write(root, changes, console)
    time_needed = roughly(sum(needed.seconds.values()))
    console.print(f"{len(found.stages)} of {len(graph)} stages to run, about {time_needed}. Ctrl-C loses nothing.")
    from flows.commands.launch import launch  # Prefect comes with it

    started = time.monotonic()
    with Display(root, graph, console, needed.seconds):
        launch(place.home, quiet=True, space=place.space)
    remember_timings(root, config, model, list(found.stages))
    console.print(f"Done in {duration(time.monotonic() - started)}.")
    show_results(root, console, kept_as=place.space.name if place.space else None)


def log_run(root: Path, console: Console) -> None:
    """Log the finished run that waits for it; where that fails it goes on waiting, and the next run tries again."""
    environment.apply(root)
    from tasks.track import track

    try:
        result = track(root)
        text = result.warning or f"Logged as MLflow run {result.run_name}."
    except Exception as error:  # a compression that is done does not fail for its record
        text = f"warning: MLflow: {error}"
    console.print(text, markup=False, soft_wrap=True)
