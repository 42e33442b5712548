"""Recompute every hash of the chain, from the registry down to the code, and stop at the first that differs."""

from __future__ import annotations

import importlib.metadata
import re
import tempfile
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsekd.artifacts import Manifest
from sparsekd.progress import Progress, silent
from tasks.lineage.cached import check_outputs
from tasks.lineage.chain import DISTILLED, REQUIREMENTS, Lineage
from tasks.lineage.describe import libraries
from tasks.lineage.hashing import Difference, Differs, Reader
from tasks.lineage.registered import check_registered
from tasks.lineage.repository import CommitTree
from tasks.lineage.store import Store

_PIN = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*==\s*([^\s;,\\]+)")


@dataclass(frozen=True)
class Verification:
    """What came of it: the first difference, or None where every link holds, and how much was hashed for that."""

    difference: Difference | None
    files: int
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.difference is None

    def as_json(self) -> dict[str, Any]:
        difference = {"kind": self.difference.kind, **asdict(self.difference)} if self.difference else None
        return {**asdict(self), "ok": self.ok, "difference": difference}


def verify(chain: Lineage, store: Store | None, progress: Progress = silent) -> Verification:
    """Go down the chain and recompute. `progress` is told of bytes."""
    reader = Reader(_total(chain), progress)
    notes: list[str] = []
    try:
        _verify(chain, store, reader, notes)
    except Differs as found:
        return Verification(found.difference, reader.files, reader.bytes, reader.seconds, tuple(notes))
    return Verification(None, reader.files, reader.bytes, reader.seconds, tuple(notes))


def _verify(chain: Lineage, store: Store | None, reader: Reader, notes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        registered = check_registered(chain, store, reader, Path(folder), notes)
    _check_origin(chain, notes)
    _check_lock(chain, reader)
    proven = check_outputs(chain, reader)
    registered.check_against(chain, {out: found.manifest for out, found in proven.items()})
    tree = _check_code(chain, reader)
    _check_libraries(chain, {out: found.manifest for out, found in proven.items()}, tree, notes)


def _total(chain: Lineage) -> int:
    """About how many bytes there are to hash."""
    outs = chain.lock.outs()
    once = {entry["md5"]: entry["size"] for entry in outs.values()}
    return int(sum(once.values()) + (outs[DISTILLED]["size"] if chain.version and DISTILLED in outs else 0))


def _check_origin(chain: Lineage, notes: list[str]) -> None:
    origin = chain.origin
    if origin.experiment and origin.experiment_commit is None:
        if origin.dirty or not origin.commit_here:
            raise Differs(
                "experiment and commit",
                f"experiment {origin.experiment}",
                f"started from commit {origin.commit}" + (" with uncommitted changes" if origin.dirty else ""),
                None,
                "The experiment is no longer in this repository, and with it the code that ran. `dvc exp pull REMOTE "
                f"{origin.experiment}` brings it from where it was pushed to.",
            )
        notes.append(f"The experiment {origin.experiment} is gone; its code is that of commit {origin.commit}.")
    elif origin.code is None:
        raise Differs(
            "experiment and commit",
            f"commit {origin.commit}" if origin.commit else "the run's commit",
            "the code of the run",
            None,
            "The commit is not in this repository: `git fetch` it, or verify in the clone where the run was made."
            if origin.commit
            else "The run recorded no commit, so its code cannot be verified.",
        )


def _check_lock(chain: Lineage, reader: Reader) -> None:
    lock = chain.lock
    if lock.text is None:
        meaning = "Without it nothing says which bytes the run made. A copy in a commit or experiment would do."
        raise Differs("dvc.lock", lock.place or "dvc.lock", f"sha256 {lock.recorded}", None, meaning)
    found = reader.text(lock.text)
    if lock.recorded not in (None, found):
        commit = chain.origin.experiment_commit
        at = f"The run's own is in its experiment: `git show {commit}:dvc.lock`." if commit else ""
        raise Differs(
            "dvc.lock",
            lock.place,
            f"sha256 {lock.recorded}, the run's tag",
            f"sha256 {found}",
            f"The stored file was changed after the run, or the tag was: what it names is not what was made. {at}",
        )
    if not lock.stages:
        raise Differs("dvc.lock", lock.place, "stages with their hashes", "none that can be read", "It is no dvc.lock.")


def _check_code(chain: Lineage, reader: Reader) -> CommitTree:
    """The code and requirements.lock of dvc.lock against the files of the commit."""
    commit = chain.origin.code
    assert commit is not None
    tree = CommitTree(chain.root, commit)
    for dependency in chain.lock.code():
        found = tree.hash(dependency.path)
        if found is not None:
            reader.took(found.files, found.bytes)
        if found is None or found.md5 != dependency.md5:
            raise Differs(
                "libraries" if dependency.path == REQUIREMENTS else "code",
                f"{dependency.path} in commit {commit}",
                f"md5 {dependency.md5}, read by {', '.join(dependency.stages)}",
                f"md5 {found.md5}" if found else None,
                _other_code(chain),
            )
    return tree


def _other_code(chain: Lineage) -> str:
    if chain.origin.dirty and chain.origin.experiment_commit is None:
        return (
            "The run was made from uncommitted changes, and nothing has kept them: its code cannot be had again. "
            "`sparsekd compress --isolated` keeps them."
        )
    return (
        "The commit does not have the code that ran: a file that git does not know was there, or the commit was "
        "rewritten. `git diff` it with the code you have; a run of the commit makes another model."
    )


def _check_libraries(chain: Lineage, manifests: dict[str, Manifest], tree: CommitTree, notes: list[str]) -> None:
    """The versions that the stages ran with against those that the commit pins; what is installed is only noted."""
    pins = _pins(tree)
    for name, versions in libraries(manifests).items():
        wanted = pins.get(_normal(name))
        if wanted is None:
            notes.append(f"{name} is not pinned in the commit.")
            continue
        for version, stages in versions.items():
            if version.partition("+")[0] not in wanted:
                raise Differs(
                    "libraries",
                    f"{name}, as the manifests of {', '.join(stages)} have it",
                    f"{version}, which ran",
                    f"{' or '.join(sorted(wanted))}, which commit {chain.origin.code} pins",
                    "The run's environment was not the one of its commit, so a fresh one gives other numbers. `make "
                    "setup` in the commit makes the environment that is pinned.",
                )
    others = [text for name, versions in libraries(manifests).items() if (text := _otherwise(name, set(versions)))]
    if others:
        notes.append(f"Installed here is otherwise: {', '.join(others)}. It takes nothing from the proof.")


def _otherwise(name: str, ran: set[str]) -> str | None:
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        installed = "none"
    return None if ran == {installed} else f"{name} {installed} (ran with {', '.join(sorted(ran))})"


def _pins(tree: CommitTree) -> dict[str, set[str]]:
    """Version of each pinned library: of requirements.lock (two for one that differs by Python), of pyproject.toml."""
    lines = (tree.read(REQUIREMENTS) or b"").decode(errors="replace").splitlines()
    project = tomllib.loads((tree.read("pyproject.toml") or b"").decode(errors="replace")).get("project", {})
    found: dict[str, set[str]] = {}
    for lines_of in (lines, project.get("dependencies", [])):
        here: dict[str, set[str]] = {}
        for line in lines_of:
            if match := _PIN.match(line):
                here.setdefault(_normal(match[1]), set()).add(match[2].partition("+")[0])
        found = here | found  # the lock goes before the project, which alone has torch
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
