"""Artifacts: a directory with a manifest that says how it was made and what is in it.

A manifest holds nothing that changes between two equal runs (no time, no host, no commit): DVC would otherwise rerun
everything downstream. A directory is written under a partial name and renamed last, so a manifest means complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sparsekd.errors import ArtifactError, ResourceError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_ABANDONED_SECONDS = 7 * 24 * 3600.0
_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy", "lm_eval")


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """How an artifact was made and what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, FileEntry]
    facts: dict[str, Any] = {}
    versions: dict[str, str] = {}

    def sha256(self) -> str:
        """The hash that stands for the whole artifact: the manifest names every file's hash."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Artifact:
    """A complete directory and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage recorded beside its files, such as the model's source."""
        return self.manifest.facts

    @classmethod
    def read(cls, path: Path, verify: bool = True) -> Artifact:
        """Open the artifact at `path`; with `verify`, hash every file.

        Raises ArtifactError when it is absent, incomplete, of another schema version, or not what its manifest says.
        """
        try:
            text = (path / MANIFEST).read_text()
        except OSError:
            found = "is not there" if not path.exists() else f"has no {MANIFEST}, so it was not finished"
            raise ArtifactError(f"{path} {found}; run the stage that makes it: `sparsekd compress`.") from None
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError:
            raise ArtifactError(f"{path / MANIFEST} is no manifest of ours; delete {path} and run again.") from None
        if manifest.schema_version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path} has schema version {manifest.schema_version}; this version reads {SCHEMA_VERSION}. Run again."
            )
        if verify:
            for name, entry in manifest.files.items():
                _verify(path, name, entry)
        return cls(path, manifest)


@dataclass
class Draft:
    """An artifact being written: put files into `path`, facts into `facts`."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def writing(out: Path, stage: str, config: dict[str, Any], inputs: dict[str, str]) -> Iterator[Draft]:
    """Yield a Draft at `<out>.partial`; on success write its manifest and put it in the place of `out`.

    On an error the partial directory is removed and an earlier `out` stays untouched.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        draft = Draft(partial)
        yield draft
        manifest = Manifest(
            stage=stage,
            config=config,
            inputs=inputs,
            files=dict(_list_files(partial)),
            facts=draft.facts,
            versions=library_versions(),
        )
        (partial / MANIFEST).write_text(manifest.to_json())
        _open_modes(partial)
        replace_directory(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_directory(new: Path, old: Path) -> None:
    """Move directory `new` to `old`; what stood there goes only after `new` is in place."""
    aside = old.with_name(old.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        os.replace(old, aside)
    os.replace(new, old)
    shutil.rmtree(aside, ignore_errors=True)


def require_disk(directory: Path, needed: int, demand: str) -> None:
    """Make `directory` and raise ResourceError where fewer than `needed` bytes are free; `demand` says what for."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ResourceError(f"{directory} has {free / 1e9:.1f} GB free; {demand}. Free some space and run again.")


def forget_work(directory: Path) -> None:
    """Delete the resumable work of a run whose output is whole, and beside it what nobody went on with for a week."""
    shutil.rmtree(directory, ignore_errors=True)
    for other in directory.parent.iterdir():
        if other.is_dir() and time.time() - other.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_directory(path: Path) -> str:
    """sha256 over the names and hashes of all files below `path`."""
    lines = [f"{name} {entry.sha256}" for name, entry in _list_files(path)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _open_modes(directory: Path) -> None:
    """Give every file the mode that the user's umask gives: safetensors writes files that only their owner can read."""
    mode = (directory / MANIFEST).stat().st_mode & 0o777
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _list_files(directory: Path) -> list[tuple[str, FileEntry]]:
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    return [
        (p.relative_to(directory).as_posix(), FileEntry(sha256=hash_file(p), bytes=p.stat().st_size)) for p in paths
    ]


def _verify(directory: Path, name: str, entry: FileEntry) -> None:
    path = directory / name
    if not path.is_file():
        raise ArtifactError(
            f"{path} is missing although {directory / MANIFEST} lists it; delete {directory}, run again."
        )
    if path.stat().st_size != entry.bytes or hash_file(path) != entry.sha256:
        raise ArtifactError(
            f"{path} is not what {directory / MANIFEST} says (sha256 {entry.sha256[:12]}…); "
            f"delete {directory}, run again."
        )
