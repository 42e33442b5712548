"""What git holds of a run: experiments, commits, and DVC's hashes of the files of a commit, without a checkout."""

from __future__ import annotations

import functools
import hashlib
import json
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsekd.errors import StageError
from tasks.git import git_output

_NO_EXPERIMENTS = {"exec", "apply", "running", "celery"}  # DVC's own refs beside those of experiments
_IGNORED = ".dvcignore"


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment: the commit that it started from, and its own."""

    name: str
    base: str
    commit: str


@dataclass(frozen=True)
class Hashed:
    """DVC's hash of a file or directory, and what was read for it."""

    md5: str
    files: int
    bytes: int


def experiments(root: Path) -> list[Experiment]:
    """Every experiment; two that started from different commits may have one name.

    Raises StageError where git cannot tell: that there are none must not be concluded from a fault.
    """
    found = []
    listing = git_output(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
    if listing is None:
        raise StageError(f"git cannot list the experiments in {root}; it must be a git repository.")
    for line in listing.decode().splitlines():
        ref, _, commit = line.rpartition(" ")
        parts = ref.split("/")  # refs/exps/<2 digits>/<38 digits>/<name>
        if len(parts) == 5 and parts[2] not in _NO_EXPERIMENTS:
            found.append(Experiment(parts[4], parts[2] + parts[3], commit))
    return found


def has_commit(root: Path, commit: str) -> bool:
    """Whether the commit is in this repository."""
    return git_output(root, "cat-file", "-e", f"{commit}^{{commit}}") is not None


class CommitTree:
    """The files of a commit."""

    def __init__(self, root: Path, commit: str) -> None:
        self.root = root
        self.commit = commit

    def read(self, path: str) -> bytes | None:
        """The bytes of a file, None where the commit has none."""
        return self._bytes([path])[0] if path in self._files else None

    def hash(self, path: str) -> Hashed | None:
        """What DVC has in dvc.lock for this path, or None where the commit has neither file nor directory of it.

        Of a file the md5 of its bytes; of a directory that of the list of its files, without those that .dvcignore
        names (dvc_data.hashfile.tree).
        """
        if path in self._files:
            content = self._bytes([path])[0]
            return Hashed(_md5(content), 1, len(content))
        names = [name for name in self._files if name.startswith(f"{path}/") and not self._ignored(name)]
        if not names:
            return None
        contents = self._bytes(names)
        listing = [
            {"md5": _md5(content), "relpath": posixpath.relpath(name, path)}
            for name, content in zip(names, contents, strict=True)
        ]
        listing.sort(key=lambda entry: entry["relpath"])
        digest = _md5(json.dumps(listing, sort_keys=True).encode())
        return Hashed(f"{digest}.dir", len(names), sum(map(len, contents)))

    @functools.cached_property
    def _files(self) -> dict[str, str]:
        """Every file of the commit: its object in git."""
        listing = git_output(self.root, "ls-tree", "-r", "-z", "--full-tree", self.commit) or b""
        entries = (entry.partition("\t") for entry in listing.decode(errors="surrogateescape").split("\0") if entry)
        return {path: about.split()[2] for about, _, path in entries if about.split()[1] == "blob"}

    @functools.cached_property
    def _patterns(self) -> list[Any]:
        """The .dvcignore files of the commit, as DVC reads them."""
        from dvc.ignore import DvcIgnorePatterns, PatternInfo

        found: list[Any] = []
        for path in self._files:
            if posixpath.basename(path) == _IGNORED:
                lines = map(str.strip, self._bytes([path])[0].decode(errors="replace").splitlines())
                wanted = [PatternInfo(line, path) for line in lines if line and not line.startswith("#")]
                found.append(DvcIgnorePatterns(wanted, posixpath.join("/", posixpath.dirname(path)), "/"))
        return found

    def _ignored(self, path: str) -> bool:
        folder, name = posixpath.split(f"/{path}")
        return any(patterns.matches(folder, name) for patterns in self._patterns)

    def _bytes(self, paths: list[str]) -> list[bytes]:
        """The bytes of files of the commit, by one call of git."""
        objects = "".join(f"{self._files[path]}\n" for path in paths)
        out = git_output(self.root, "cat-file", "--batch", text=objects.encode())
        if out is None:
            raise OSError(f"git cannot read the files of commit {self.commit}")
        contents, at = [], 0
        for _ in paths:  # each: "<object> blob <size>\n<bytes>\n"
            end = out.index(b"\n", at)
            size = int(out[at:end].split()[2])
            contents.append(out[end + 1 : end + 1 + size])
            at = end + size + 2
        return contents


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
