"""`sparsekd lineage`: where a model comes from, link by link, and whether every link still holds."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from flows.commands.display import StepProgress, duration, make_console
from flows.settings import params
from sparsekd.progress import Progress
from tasks.lineage.chain import BENCHMARKS, REQUIREMENTS, TEXTS
from tasks.lineage.describe import describe
from tasks.lineage.store import opened
from tasks.lineage.trace import manifest_name, trace
from tasks.lineage.verify import Verification, verify
from tasks.tracking.record import EXPORT

Rows = list[tuple[str, str]]
_WIDTH = 12
_QUIET_SECONDS = 1.0
_NO_MANIFEST = "not known: neither MLflow nor DVC's cache has its manifest; `dvc pull` brings it"


def show(asked: str, check: bool = False, as_json: bool = False) -> bool:
    """Print the chain of the model or run `asked`, with `check` verify it; whether all that was verified holds.

    Raises LineageError when there is none of that name, StoreError when MLflow does not answer.
    """
    root = params.find_root()
    console, found = make_console(), None
    with opened(root) as store:
        chain = trace(root, asked, store)
        values = describe(chain)
        if not as_json:
            _print(console, values)
        if check:
            with _later("verify") as progress:
                found = verify(chain, store, progress)
    if as_json:
        verification = {"verification": found.as_json()} if found else {}
        typer.echo(json.dumps({**values, **verification}, indent=2, ensure_ascii=False))
    elif found:
        _print_verification(console, found)
    return found is None or found.ok


@contextlib.contextmanager
def _later(name: str) -> Iterator[Progress]:
    """Progress that shows nothing in its first second."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        bar: StepProgress | None = None

        def report(done: float, total: float, unit: str, **values: float) -> None:
            nonlocal bar
            if bar is None and time.monotonic() - begun > _QUIET_SECONDS:
                bar = stack.enter_context(StepProgress(name))
            if bar is not None:
                bar(done, total, unit, **values)

        yield report


def _print(console: Console, values: dict[str, Any]) -> None:
    """One block a link, from the registry down."""
    for title, rows in _blocks(values):
        _print_block(console, title, rows)
    for note in values["notes"]:
        _line(console, f"note: {note}")


def _print_block(console: Console, title: str, rows: Rows, style: str = "bold") -> None:
    width = max(_WIDTH, *(len(label) for label, _ in rows))
    console.print(Text(title, style))
    for label, text in rows:
        _line(console, f"  {label:<{width}}  {text}")
    _line(console, "")


def _line(console: Console, text: str) -> None:
    """A line as it is: names may hold square brackets, which are no markup."""
    console.print(text, markup=False, soft_wrap=True)


def _blocks(values: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    commit = values["experiment"]["experiment_commit"] or values["experiment"]["commit"] or "COMMIT"
    yield "registry version", _version(values["registry_version"])
    yield "MLflow run", _run(values["mlflow_run"], values["mlflow"])
    yield "experiment and commit", _experiment(values["experiment"])
    yield "dvc.lock", _lock(values["dvc_lock"], values["mlflow_run"])
    if values["exports"]:
        yield "exports", [*values["exports"].items(), ("look further", _manifest(EXPORT))]
    yield "source model", _model(values["model"])
    yield "texts", _parts(values["texts"], TEXTS)
    yield "benchmarks", _parts(values["benchmarks"], BENCHMARKS)
    yield "code", _code(values["code"], len(values["dvc_lock"]["stages"]), commit)
    yield "libraries", _libraries(values, commit)


def _version(version: dict[str, Any] | None) -> Rows:
    if version is None:
        return [("model", "none: no version of the registry belongs to it")]
    aliases = f", alias {', '.join(version['aliases'])}" if version["aliases"] else ""
    name, number = version["name"], version["version"]
    return [
        ("model", f"{name}, version {number}{aliases}"),
        ("sha256", version["sha256"] or "none recorded"),
        ("registered", f"{version['created']}, by run {version['run_id']}"),
        ("files", version["source"]),
        ("look further", f"models:/{name}/{number}; `sparsekd serve`, then #/models/{name}/versions/{number}"),
    ]


def _run(run: dict[str, Any] | None, uri: str | None) -> Rows:
    if run is None:
        return [("run", "none: MLflow knows no run of it")]
    same = f", the same outputs as run {run['same_as']}" if run["same_as"] else ""
    return [
        ("run", f"{run['name']}, {run['status']}{same}"),
        ("id", f"{run['id']}, at {uri}"),
        ("when", f"{run['started']} to {run['ended']}"),
        ("flow run", run["flow_run_id"] or "none: it was not made by a flow"),
        ("look further", f"`sparsekd serve`, then #/experiments/{run['experiment_id']}/runs/{run['id']}"),
    ]


def _experiment(found: dict[str, Any]) -> Rows:
    rows: Rows = []
    look = []
    if found["name"]:
        kept = f"commit {found['experiment_commit']}" if found["in_repository"] else "not in this repository any more"
        rows.append(("experiment", f"{found['name']}, {kept}"))
        look += [f"`sparsekd restore {found['name']}`", "`dvc exp show`"] if found["in_repository"] else []
    else:
        rows.append(("experiment", "none: the run worked in the checkout"))
    if found["commit"]:
        here = "in this repository" if found["commit_in_repository"] else "not in this repository: `git fetch`"
        dirty = {True: ", with uncommitted changes", False: ", clean", None: ""}[found["dirty"]]
        rows.append(("started from", f"commit {found['commit']}{dirty}; {here}"))
        look.append(f"`git show {found['experiment_commit'] or found['commit']}`")
    else:
        rows.append(("started from", "no commit was recorded"))
    return [*rows, ("look further", ", ".join(look) or "the clone where the run was made")]


def _lock(lock: dict[str, Any], run: dict[str, Any] | None) -> Rows:
    if lock["sha256"] is None:
        return [("dvc.lock", "not to be found: neither in MLflow nor in the experiment or commit")]
    other = lock["recorded_sha256"] not in (None, lock["sha256"])
    said = f" (NOT the recorded {lock['recorded_sha256']}: see --verify)" if other else ""
    download = f"mlflow artifacts download --run-id {run['id']} --artifact-path dvc.lock" if run else ""
    return [
        ("sha256", lock["sha256"] + said),
        ("stages", ", ".join(lock["stages"]) or "none that can be read"),
        ("look further", f"{lock['place']}" + (f"; `{download}`" if download else "")),
    ]


def _model(model: dict[str, Any] | None) -> Rows:
    if model is None:
        return [("source", _NO_MANIFEST)]
    facts = [str(model[key]) for key in ("kind", "label", "licence") if model.get(key)]
    rows = [
        ("source", f"{model.get('name') or model.get('source')} ({', '.join(facts)})"),
        ("revision", str(model.get("revision"))),
        ("sha256", f"{model['sha256']}, of its manifest"),
    ]
    rows += [(f"  {name}", sha256) for name, sha256 in model["files"].items()]
    return [*rows, ("look further", _manifest(model["path"]))]


def _parts(parts: list[dict[str, Any]], path: str) -> Rows:
    if not parts:
        return [("all", _NO_MANIFEST)]
    rows: Rows = []
    for part in parts:
        counts = [f"{part[key]:,} {key}" for key in ("documents", "rows") if isinstance(part.get(key), int)]
        facts = [part.get("source"), part.get("role"), *counts, part.get("licence")]
        rows.append((part["name"], ", ".join(str(fact) for fact in facts if fact)))
        if part.get("revision"):
            rows.append(("  revision", part["revision"]))
        rows.append(("  sha256", part["sha256"] or "none: its rows are no artifact of the run"))
    return [*rows, ("look further", _manifest(path))]


def _manifest(out: str) -> str:
    return f"{out}/manifest.json, in MLflow the run's artifact {manifest_name(out)}"


def _code(code: list[dict[str, Any]], stages: int, commit: str) -> Rows:
    if not code:
        return [("all", "not known without dvc.lock")]
    rows = [(entry["path"], f"md5 {entry['md5']:<36}  {_stages(entry['stages'], stages)}") for entry in code]
    return [*rows, ("look further", f"`git show {commit}:PATH`")]


def _stages(names: list[str], of: int) -> str:
    if len(names) == of:
        return "all stages"
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} stages"


def _libraries(values: dict[str, Any], commit: str) -> Rows:
    rows: Rows = []
    for entry in values["requirements"]:
        rows.append(
            (REQUIREMENTS, f"md5 {entry['md5']}, {_stages(entry['stages'], len(values['dvc_lock']['stages']))}")
        )
    for name, versions in values["libraries"].items():
        several = len(versions) > 1
        texts = [f"{version} ({', '.join(stages)})" if several else version for version, stages in versions.items()]
        rows.append((name, "; ".join(texts)))
    return [*rows, ("look further", f"`git show {commit}:{REQUIREMENTS}`")]


def _print_verification(console: Console, found: Verification) -> None:
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if found.bytes >= u or n == "kB")
    hashed = f"{found.files:,} files, {found.bytes / unit:.1f} {name} hashed in {duration(found.seconds)}"
    for note in found.notes:
        _line(console, f"note: {note}")
    if found.difference is None:
        _line(console, f"verified: every link holds ({hashed})")
        return
    first = found.difference
    rows = [("place", first.place), ("recorded", first.recorded), ("found", first.found or "nothing: it is missing")]
    rows += [("meaning", first.meaning), ("before it", f"{hashed}; nothing below was looked at")]
    _print_block(console, f"NOT VERIFIED, first at link: {first.link} ({first.kind})", rows, "bold red")
