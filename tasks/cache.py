"""Where DVC keeps the bytes of a workspace, read from its files: asking DVC itself takes a second."""

from __future__ import annotations

import configparser
import contextlib
import json
from pathlib import Path

import yaml


def dvc_objects(root: Path, out: str, lock: str | None = None) -> dict[str, Path]:
    """File below the directory `out` → its object in DVC's cache, as dvc.lock has it; only those that exist.

    `lock` is the text of another dvc.lock than that of `root`.
    """
    try:
        stages = yaml.safe_load((root / "dvc.lock").read_text() if lock is None else lock)["stages"].values()
        digest = next(o["md5"] for stage in stages for o in stage.get("outs", []) if o["path"] == out)
        objects = {name: cached_object(root, md5) for name, md5 in listed(root, digest).items()}
    except (OSError, ValueError, KeyError, TypeError, StopIteration, yaml.YAMLError):
        return {}  # no DVC here, or a cache that we do not know: the caller copies
    return {name: path for name, path in objects.items() if path.is_file()}


def listed(root: Path, digest: str) -> dict[str, str]:
    """The files of the directory with this hash, by relative path: their hashes. Raises OSError, ValueError."""
    return {entry["relpath"]: entry["md5"] for entry in json.loads(cached_object(root, digest).read_text())}


def cached_object(root: Path, digest: str) -> Path:
    """Where the object with this hash lies in the cache, if it is there."""
    return objects_directory(root) / digest[:2] / digest[2:]


def objects_directory(root: Path) -> Path:
    """Where the objects lie in the cache: two digits of the hash a folder, the rest the file's name."""
    return cache_directory(root) / "files" / "md5"


def cache_directory(root: Path) -> Path:
    """DVC's cache: `cache.dir` of the workspace's configuration, else .dvc/cache. (Asking DVC itself takes 1 s.)"""
    for name in ("config.local", "config"):
        config = configparser.ConfigParser(interpolation=None, strict=False)
        with contextlib.suppress(configparser.Error):
            config.read(root / ".dvc" / name)
            if directory := config.get("cache", "dir", fallback=""):
                return root / ".dvc" / directory.strip("'\"")
    return root / ".dvc" / "cache"
