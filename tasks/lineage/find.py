"""What a person means by MODEL_OR_RUN: a registered model, a run of MLflow, or an experiment."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from tasks.lineage.chain import LineageError, TrackedRun, Version
from tasks.lineage.repository import Experiment, experiments
from tasks.lineage.store import Store
from tasks.state import FOLDER, read_json
from tasks.track import MODEL_TAG, VERSION_TAG
from tasks.tracking.record import EXPERIMENT_TAG
from tasks.tracking.store import shown

_PREFIX = re.compile(r"[0-9a-f]{6,32}")
_VERSION = re.compile(r"(?:models:/)?(?P<name>[^/:@]+)/(?P<number>\d+|latest)")
_ALIAS = re.compile(r"(?:models:/)?(?P<name>[^/:@]+)@(?P<alias>[\w.-]+)")
_FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS, a model's or run's name, or a run's id"


@dataclass(frozen=True)
class Found:
    """Where the chain begins; what follows is found from there. `notes` say what else could have been meant."""

    version: Version | None = None
    run: TrackedRun | None = None
    experiment: str | None = None
    notes: tuple[str, ...] = ()


def find(root: Path, asked: str, store: Store | None) -> Found:
    """The model, run or experiment that is called `asked`, exactly, else by the first digits of a run's id.

    A registered model goes before a run of the same name. Raises LineageError with the nearest names.
    """
    known = experiments(root)
    if store is not None and (found := _by_reference(asked, store) or _by_run(asked, store)):
        return found
    if asked in {experiment.name for experiment in known}:
        where = f"no run of MLflow at {shown(store.uri)} has this name" if store else "there is no MLflow database here"
        return Found(experiment=asked, notes=(f"The chain begins at the experiment: {where}.",))
    if store is not None and (found := _by_prefix(asked, store)):
        return found
    raise LineageError(_unknown(root, asked, store, known))


def version_of(run: TrackedRun, store: Store) -> Version | None:
    """The registry version that a run names as its model, or None."""
    name, number = run.tags.get(MODEL_TAG), run.tags.get(VERSION_TAG)
    return store.version(name, number) if name and number else None


def _maker(version: Version, store: Store) -> TrackedRun | None:
    return store.run(version.run_id) if version.run_id else None


def _by_reference(asked: str, store: Store) -> Found | None:
    version = _version(asked, store)
    return Found(version, _maker(version, store)) if version else None


def _version(asked: str, store: Store) -> Version | None:
    """The version that is named as MLflow names versions, or a model's newest one."""
    if match := _VERSION.fullmatch(asked):
        name, number = match["name"], match["number"]
        numbers = store.numbers(name)
        if numbers and number != "latest" and number not in numbers:
            raise LineageError(f"Registered model {name} has no version {number}; it has {', '.join(numbers)}.")
        return store.version(name, numbers[0] if number == "latest" else number) if numbers else None
    if match := _ALIAS.fullmatch(asked):
        version = store.aliased(match["name"], match["alias"])
        if version is None and store.numbers(match["name"]):
            raise LineageError(
                f"No version of registered model {match['name']} has the alias {match['alias']!r}; name a version: "
                f"{match['name']}/{store.numbers(match['name'])[0]} is its newest."
            )
        return version
    name = asked.removeprefix("models:/")
    numbers = store.numbers(name)
    return store.version(name, numbers[0]) if numbers else None


def _by_run(asked: str, store: Store) -> Found | None:
    if re.fullmatch(r"[0-9a-f]{32}", asked) and (run := store.run(asked)):
        return Found(version_of(run, store), run)
    for key in ("attributes.run_name", f"tags.`{EXPERIMENT_TAG}`", "tags.`prefect.flow_run_id`"):
        if runs := store.runs(key, "=", asked):
            return _newest(asked, runs, store)
    return None


def _by_prefix(asked: str, store: Store) -> Found | None:
    if not _PREFIX.fullmatch(asked):
        return None
    runs = store.runs("attributes.run_id", "LIKE", f"{asked}%")
    if len(runs) > 1:
        raise LineageError(f"{asked!r} begins the ids of {len(runs)} runs: {', '.join(run.id for run in runs)}.")
    return Found(version_of(runs[0], store), runs[0]) if runs else None


def _newest(asked: str, runs: list[TrackedRun], store: Store) -> Found:
    """Of runs with one name the latest that ended well."""
    run = next((run for run in runs if run.status == "FINISHED"), runs[0])
    others = [other.id for other in runs if other is not run]
    notes = (f"{len(others)} other runs are called {asked!r}: {', '.join(others)}.",) if others else ()
    return Found(version_of(run, store), run, notes=notes)


def _unknown(root: Path, asked: str, store: Store | None, known: list[Experiment]) -> str:
    """What was looked for and where, and the nearest names."""
    record = read_json(root / FOLDER / "runs" / Path(asked).name / "run.json")
    if isinstance(record, dict) and record.get("state") in {"running", "failed", "stopped"}:
        reason = f" ({' '.join(str(record['reason']).split())[:200]})" if record.get("reason") else ""
        state = {"running": "still goes on"}.get(record["state"], f"{record['state']}{reason}")
        return f"Run {asked} {state}, so there is no model of it to trace; `sparsekd runs` lists the runs."
    names = {experiment.name for experiment in known}
    if store is not None:
        names |= set(store.models()) | {run.name for run in store.runs()}
    where = f"MLflow at {shown(store.uri)}" if store is not None else "MLflow (there is no database here yet)"
    near = difflib.get_close_matches(asked.removeprefix("models:/"), sorted(names), n=3, cutoff=0.4)
    nearest = f"The nearest names are {', '.join(near)}." if near else "`sparsekd runs` lists the isolated runs."
    return (
        f"{asked!r} is no registered model, version or run in {where}, and no experiment of this repository; give "
        f"{_FORMS}. {nearest}"
    )
