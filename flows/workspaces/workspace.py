"""A run by itself: a git worktree that shares the checkout's DVC cache, so that runs never disturb each other.

It ends as a DVC experiment, which holds parameters, dvc.lock and code; the bytes stay in the shared cache. The worktree
itself goes when the run has ended.
"""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.workspaces.commands import dvc, git, try_git
from flows.workspaces.lock import current_holder
from sparsekd.errors import ConfigError
from tasks.cache import cache_directory
from tasks.graph import read_graph
from tasks.lineage import repository
from tasks.state import FOLDER

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FOLDER = "workspaces"
_MEASURED = ("timings.json", "machine.json")  # what the estimates of a run start from


@dataclass(frozen=True)
class Workspace:
    """The workspace of the run `name` of the checkout at `home`."""

    home: Path
    name: str

    def __post_init__(self) -> None:
        check_name(self.name)  # it becomes a path, and it may come from a form

    @property
    def path(self) -> Path:
        """Where its files are: a project root like the checkout's."""
        return self.home / FOLDER / _FOLDER / self.name


@dataclass(frozen=True)
class Revision:
    """A commit to start from, and the tree whose files are put over it: an experiment's, or uncommitted changes."""

    commit: str
    overlay: str | None = None

    @property
    def tree(self) -> str:
        """The commit that has the files as they shall be."""
        return self.overlay or self.commit


def check_name(name: str) -> None:
    """Raise ConfigError for what can be no name of a run: it names a folder, a git ref and an experiment."""
    if not _NAME.fullmatch(name) or ".." in name or name.endswith((".", ".lock")):
        raise ConfigError(f"{name!r} is no name for a run; use letters, digits, '.', '_' and '-', at most 100.")


def create(home: Path, name: str, at: str | Revision | None = None, *, again: bool = False) -> Workspace:
    """A new workspace: the commit, tag or experiment `at`, or the checkout as it stands, with uncommitted changes.

    Files that git does not know are not in it. Raises ConfigError for an unknown `at` and a name that is taken; with
    `again` an experiment of that name is made anew.
    """
    space = Workspace(home, name)
    if space.path.exists():
        raise ConfigError(f"A run {name} is going on or was interrupted; choose another name, or `sparsekd gc`.")
    if name in experiments(home) and not again:
        raise ConfigError(
            f"There is a run {name} already; choose another name, or give it up: `sparsekd gc --drop {name} --yes`."
        )
    revision = at if isinstance(at, Revision) else revision_of(home, at)
    space.path.parent.mkdir(parents=True, exist_ok=True)
    git(home, "worktree", "add", "--quiet", "--detach", str(space.path), revision.commit)
    try:
        if revision.overlay is not None:
            # into the index too: a file that the commit does not have would be left out of the experiment
            git(space.path, "restore", f"--source={revision.overlay}", "--staged", "--worktree", "--", ".")
        _leave_outputs_to_dvc(space)
        _share_cache(space)
    except BaseException:
        remove(space)
        raise
    return space


def revision_of(home: Path, at: str | None) -> Revision:
    """What `at` names, or the checkout as it stands."""
    return find_revision(home, at) if at is not None else _as_it_stands(home)


def find_revision(home: Path, name: str) -> Revision:
    """The experiment called `name`, else the commit that it names. Raises ConfigError when it is neither."""
    if (found := experiments(home).get(name)) is not None:
        return found
    commit = try_git(home, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if not commit:
        raise ConfigError(
            f"{name!r} is no commit, tag, branch or experiment of this repository; `sparsekd runs` lists the "
            "experiments, `git log --all` the rest."
        )
    return Revision(commit)


def experiments(home: Path) -> dict[str, Revision]:
    """Every DVC experiment by name: the commit that it started from, and its own. StageError where git cannot tell."""
    return {found.name: Revision(found.base, found.commit) for found in repository.experiments(home)}


def save(space: Workspace, tag: bool = False) -> None:
    """Keep what the run made as the DVC experiment of its name; with `tag`, tag it champion/NAME in git too.

    Raises StageError with DVC's reason.
    """
    # DVC works with the stash and with refs that all worktrees share: two at once would mix their files
    with _one_at_a_time(space.home):
        # The stages alone: data that is tracked by itself, such as corpora, need not be in the workspace
        dvc(space.path, "exp", "save", "--force", "--name", space.name, "dvc.yaml")
        if tag:
            git(space.home, "tag", "--force", f"champion/{space.name}", experiments(space.home)[space.name].tree)


@contextlib.contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Of the processes of this checkout, for what git allows only one of."""
    path = home / FOLDER / "git.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def remove(space: Workspace) -> None:
    """Remove the worktree and what git knows of it; the cache and the experiment stay."""
    try_git(space.home, "worktree", "remove", "--force", str(space.path))
    shutil.rmtree(space.path, ignore_errors=True)
    try_git(space.home, "worktree", "prune")


def workspaces(home: Path) -> list[Workspace]:
    """Every workspace of the checkout, whether its run goes on or was killed."""
    return [Workspace(home, path.name) for path in sorted((home / FOLDER / _FOLDER).glob("*"))]


def left_behind(home: Path) -> list[Workspace]:
    """Workspaces in which nothing runs: of runs that were killed."""
    return [space for space in workspaces(home) if current_holder(space.path) is None]


def _as_it_stands(home: Path) -> Revision:
    commit = try_git(home, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        raise ConfigError(f"{home} has no commit yet; a run in a workspace of its own starts from one: `git commit`.")
    with _one_at_a_time(home):  # both refresh the index
        if not git(home, "status", "--porcelain", "--untracked-files=no"):
            return Revision(commit)
        return Revision(commit, git(home, "stash", "create") or None)


def _name_remotes_absolutely(config: configparser.ConfigParser, home: Path) -> None:
    """Folders are named from the folder of the file that names them, which is another one in a workspace."""
    committed = configparser.ConfigParser(interpolation=None, strict=False)
    committed.read(home / ".dvc" / "config")
    for source in (committed, config):  # DVC lets config.local win
        for section in source.sections():
            url = source.get(section, "url", fallback="").strip("'\"")
            if "remote" in section and url and "://" not in url:
                if not config.has_section(section):
                    config.add_section(section)
                if source is config or not config.has_option(section, "url"):
                    config.set(section, "url", str((home / ".dvc" / url).resolve()))


def _leave_outputs_to_dvc(space: Workspace) -> None:
    """Take files inside outputs out of git: `dvc exp save` commits metrics and plots; no stage may overwrite them."""
    if not (space.path / "dvc.yaml").is_file():
        return
    outputs = [spec.out for spec in read_graph(space.path).values()]
    git(space.path, "rm", "-r", "--force", "--quiet", "--ignore-unmatch", "--", *map(str, outputs))


def _share_cache(space: Workspace) -> None:
    """Local DVC configuration: that of the checkout (remotes, credentials), its cache, locks of its own.

    Written by hand: three `dvc config` calls take seconds.
    """
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read(space.home / ".dvc" / "config.local")
    for section in ("core", "cache"):
        if not config.has_section(section):
            config.add_section(section)
    _name_remotes_absolutely(config, space.home)
    config.set("core", "site_cache_dir", str(space.path / ".dvc" / "tmp" / "site"))
    config.set("cache", "dir", str(cache_directory(space.home).resolve()))
    if not config.has_option("cache", "type"):
        # As root an append to a hard-linked output would go through to the cache
        config.set("cache", "type", "reflink,copy" if os.geteuid() == 0 else "reflink,hardlink,symlink,copy")
    target = space.path / ".dvc" / "config.local"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it may hold a remote's password
    with os.fdopen(descriptor, "w") as stream:
        config.write(stream)
    for name in _MEASURED:
        with contextlib.suppress(OSError):
            (space.path / FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(space.home / FOLDER / name, space.path / FOLDER / name)
