"""`sparsekd doctor`: what this machine and checkout have, and what is missing."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from flows.checks import machine
from flows.commands.display import make_console
from flows.settings import params
from flows.workspaces.lock import current_holder
from sparsekd.errors import ConfigError, SparseKDError
from sparsekd.sources import cache_root
from tasks import remote

Verdict = Literal["ok", "note", "missing"]
_LIBRARIES = ("torch", "transformers", "datasets", "lm_eval", "dvc", "prefect", "mlflow", "pydantic", "typer")
_NEEDED_DISK = 8e9
_NEEDED_MEMORY = 6e9


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def show() -> bool:
    """Print every check; whether `sparsekd compress` can run here."""
    console = make_console()
    found = list(checks())
    for check in found:
        sign = {"ok": "ok", "note": "note", "missing": "MISSING"}[check.verdict]
        text = check.found + (f": {check.advice}" if check.advice else "")
        console.print(f"{sign:<8} {check.name:<15} {text}", markup=False, soft_wrap=True)
    missing = [check.name for check in found if check.verdict == "missing"]
    console.print(f"\nMissing: {', '.join(missing)}." if missing else "\nNothing is missing.")
    return not missing


def checks() -> Iterator[Check]:
    """All checks; none loads torch, and only the DVC remote, where there is one, is asked over the network."""
    yield from _software()
    yield from _machine()
    yield from _checkout()


def _software() -> Iterator[Check]:
    version = platform.python_version()
    fine = sys.version_info >= (3, 11)
    yield Check("python", "ok" if fine else "missing", version, "" if fine else "3.11 or newer is needed")
    for name in _LIBRARIES:
        try:
            yield Check(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, "missing", "not installed", "run `make setup`")
    git = shutil.which("git")
    yield Check("git", "ok", _git_version()) if git else Check("git", "missing", "not installed", "DVC needs it")
    compiler = machine.compiler()
    if compiler:
        yield Check("compiler", "ok", compiler)
    else:
        yield Check("compiler", "note", "none", "distillation runs uncompiled, 1.2 times slower; install g++")
    browser = machine.browser()
    yield (
        Check("browser", "ok", browser)
        if browser
        else Check("browser", "note", "none", "the report opens elsewhere; tests that drive a browser are skipped")
    )


def _machine() -> Iterator[Check]:
    yield Check("cores", "ok", str(machine.cores()), "" if machine.cores() > 1 else "expect twice the stated times")
    fault = machine.cuda_fault()
    if fault and machine.cores_have_bfloat16() is False:
        yield Check(
            "bfloat16",
            "note",
            "the cores have no units for it",
            "stages compute in float32; expect up to four times the stated times",
        )
    memory = machine.free_memory()
    enough = memory >= _NEEDED_MEMORY
    yield Check(
        "memory",
        "ok" if enough else "note",
        f"{memory / 1e9:.1f} GB free",
        "" if enough else f"the default run takes up to {_NEEDED_MEMORY / 1e9:.0f} GB",
    )
    yield Check("cuda", "ok", "a device") if fault is None else Check("cuda", "note", fault, "the CPU is used")
    home = cache_root()
    empty = "" if home.is_dir() else "nothing yet, the first run downloads 240 MB from the package index"
    yield Check("downloads", "ok", f"{home} ({machine.free_disk(home) / 1e9:.1f} GB free)", empty)


def _checkout() -> Iterator[Check]:
    try:
        root = params.find_root()
    except ConfigError:
        yield Check("project", "note", "none here", "compress and serve run in a clone; the single steps run anywhere")
        return
    yield Check("project", "ok", str(root))
    disk = machine.free_disk(root)
    yield Check(
        "disk",
        "ok" if disk >= _NEEDED_DISK else "note",
        f"{disk / 1e9:.1f} GB free",
        "" if disk >= _NEEDED_DISK else f"the default run takes up to {_NEEDED_DISK / 1e9:.0f} GB",
    )
    git = machine.git_root(root)
    yield (
        Check("git repository", "ok", str(git))
        if git
        else Check("git repository", "missing", "none", "clone the project, or run `git init`")
    )
    yield (
        Check("dvc repository", "ok", ".dvc")
        if (root / ".dvc").is_dir()
        else Check("dvc repository", "missing", "no .dvc directory", "`git checkout .dvc` or `dvc init`")
    )
    yield _remote(root)
    try:
        config = params.load(root)
        changes = params.changes_from_preset(config, root)
        yield Check("params.yaml", "ok", f"preset {config.preset}, {len(changes)} changes from it")
    except SparseKDError as error:
        yield Check("params.yaml", "missing", "invalid", str(error))
    holder = current_holder(root)
    yield Check("runs", "ok", f"{holder} is running" if holder else "none is running")
    if " " in str(root):
        yield Check("path", "note", "has a space", "stages are started through a link without one")


def _remote(root: Path) -> Check:
    configured = remote.default_remote(root)
    if configured is None:
        return Check("dvc remote", "ok", "none: results stay on this machine")
    fault = remote.check(root)
    advice = "runs go on without it" if fault else ""
    return Check("dvc remote", "note" if fault else "ok", f"{configured} {fault or 'answers'}".rstrip(), advice)


def _git_version() -> str:
    done = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().removeprefix("git version ")
