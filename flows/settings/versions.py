"""Versions of the user's corpora in a run: which one is meant, and that the run's own tree records it."""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.workspaces.commands import git
from sparsekd.config import RunConfig
from tasks.corpora import FOLDER, Recorded, recorded


def newest(root: Path) -> dict[str, str]:
    """Name → revision of the newest version."""
    return {name: versions[0].revision for name, versions in recorded(root).items()}


def newer(root: Path, config: RunConfig) -> list[str]:
    """A line for each corpus of `config` (resolved) that has a newer version than the one that it is pinned to."""
    lines = []
    for name, revision in zip(config.texts.sources, config.texts.revisions or (), strict=False):
        versions = recorded(root).get(name, [])
        if versions and versions[0].revision != revision:
            used = next((version.short for version in versions if version.revision == revision), revision)
            lines.append(
                f"{name}: version {used} is used, as params.yaml says; {versions[0].short} is newer, and "
                f"`--texts {name}` takes it."
            )
    return lines


def bring(root: Path, home: Path, config: RunConfig) -> None:
    """Record in the workspace at `root` the versions that `config` uses and only the checkout at `home` has.

    So the tree of a run always says where the bytes are that it was made from. Where both have a corpus, the
    workspace's newest version is the newest.
    """
    here, there = recorded(root), recorded(home)
    pinned = config.texts.revisions or [""] * len(config.texts.sources)
    for source, revision in zip(config.texts.sources, pinned, strict=True):
        name, _, asked = source.partition("@")
        wanted = revision or asked
        if not any(version.revision.startswith(wanted) for version in here.get(name, [])):
            matching = [version for version in there.get(name, []) if version.revision.startswith(wanted)]
            for version in matching[:1]:
                _copy(version, home, root)


def bring_recorded(home: Path, commit: str) -> None:
    """Record in the checkout the versions that `commit` records and the checkout lacks."""
    paths = git(home, "ls-tree", "-r", "-z", "--name-only", commit, "--", FOLDER.as_posix()).split("\0")
    missing = [path for path in paths if path.endswith(".dvc") and not (home / path).exists()]
    if missing:
        git(home, "restore", f"--source={commit}", "--staged", "--worktree", "--", *missing)


def _copy(version: Recorded, home: Path, root: Path) -> None:
    target = root / version.record
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(home / version.record, target)
    git(root, "add", "--", version.record.as_posix())
