"""The user's corpora as this project keeps them: one DVC file a version, `data/corpora/NAME/VERSION.jsonl.dvc`.

The file is all there is of a version in git: DVC's hash of the bytes, and under `meta` what was found in them. So every
version that a commit knows is one that DVC pushes, pulls and keeps, and two branches that add versions never conflict.
"""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsekd.errors import ConfigError
from sparsekd.sources.corpora import SHORT, CorpusVersion
from tasks.cache import cached_object
from tasks.environment import checkout_root

FOLDER = Path("data") / "corpora"
META = "sparsekd"
"""Our part of `meta` in a DVC file."""
STAMP = "%Y-%m-%dT%H:%M:%SZ"
"""How the time of a version is written: UTC."""
_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Recorded:
    """A version that is recorded: `added` in ISO format (UTC), DVC's hash of it, and what was found when it was added.

    `facts` are what `flows/commands/adding.py` writes: files, documents, characters, copies, languages, overlap and
    others.
    """

    name: str
    revision: str
    added: str
    md5: str
    bytes: int
    facts: dict[str, Any]

    @property
    def seconds(self) -> float:
        """When it was added, in seconds since the epoch."""
        return float(calendar.timegm(time.strptime(self.added, STAMP)))

    @property
    def short(self) -> str:
        """The revision as people are shown it."""
        return self.revision[:SHORT]

    @property
    def file(self) -> Path:
        """Where its documents are checked out, relative to the checkout."""
        return documents_path(self.name, self.revision)

    @property
    def record(self) -> Path:
        """The DVC file, relative to the checkout."""
        return record_path(self.file)

    def places(self, root: Path) -> tuple[Path, ...]:
        """Where its bytes may lie: in DVC's cache, checked out in `root`, or in the checkout that `root` belongs to."""
        return (cached_object(root, self.md5), root / self.file, checkout_root() / self.file)


def documents_path(name: str, revision: str) -> Path:
    """Where the documents of a version lie, relative to the checkout."""
    return FOLDER / name / f"{revision[:SHORT]}{_SUFFIX}"


def record_path(documents: Path) -> Path:
    """The DVC file beside the documents."""
    return documents.with_name(f"{documents.name}.dvc")


def recorded(root: Path) -> dict[str, list[Recorded]]:
    """Every corpus by name with its versions, the newest first. Raises ConfigError for a record that is damaged.

    A DVC file of something else, or one that a killed `sparsekd texts add` has left, is passed over.
    """
    found: dict[str, list[Recorded]] = {}
    for path in sorted((root / FOLDER).glob(f"*/*{_SUFFIX}.dvc")):
        if (version := read_record(path.read_text(), path.parent.name, path)) is not None:
            found.setdefault(version.name, []).append(version)
    return {
        name: sorted(versions, key=lambda version: (version.added, version.revision), reverse=True)
        for name, versions in found.items()
    }


def read_record(text: str, name: str, path: Path) -> Recorded | None:
    """The version that a DVC file with this `text` records, or None. `path` is for the error's message."""
    try:
        values = yaml.safe_load(text)
        facts = (values.get("meta") or {}).get(META)
        if facts is None:
            return None
        [out] = values["outs"]
        revision, added = str(facts["revision"]), str(facts["added"])
        time.strptime(added, STAMP)
        rest = {key: value for key, value in facts.items() if key not in ("revision", "added")}
        return Recorded(name, revision, added, str(out["md5"]), int(out["size"]), rest)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{path} is no record of a corpus that can be read; get it back with `git checkout -- {path.name}` in its "
            "folder, or remove it to give the version up."
        ) from None


def own_corpora(root: Path) -> dict[str, tuple[CorpusVersion, ...]]:
    """The recorded versions as the library takes them."""
    return {
        name: tuple(
            CorpusVersion(v.revision, v.bytes, v.places(root), f"fetch them with `dvc pull {v.record}`")
            for v in versions
        )
        for name, versions in recorded(root).items()
    }
