"""A user's own corpora: versions that never change, each named by the sha256 of its documents.

Where the versions are recorded and who fetches their bytes is the caller's business: here they are plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsekd.artifacts import hash_file
from sparsekd.errors import SourceError

SHORT = 12
"""Digits of a revision that people are shown, and may type after `NAME@`."""


@dataclass(frozen=True)
class CorpusVersion:
    """One version: JSON lines of `bytes` bytes whose sha256 is `revision`.

    They lie at the first of `places` that is there; `remedy` says what to do where none is.
    """

    revision: str
    bytes: int
    places: tuple[Path, ...]
    remedy: str

    @property
    def place(self) -> Path | None:
        """Where its bytes are on this machine, or None."""
        return next((path for path in self.places if path.is_file()), None)


Corpora = Mapping[str, Sequence[CorpusVersion]]
"""Name → versions, the newest first."""


def find_version(name: str, wanted: str | None, corpora: Corpora, place: str) -> CorpusVersion:
    """The version of corpus `name` whose revision is or begins with `wanted`, the newest where that is None.

    Raises SourceError, with the versions there are, when none or several match.
    """
    versions = corpora[name]
    found = [version for version in versions if version.revision.startswith(wanted or "")]
    if wanted is None or len(found) == 1:
        return found[0]
    what = "stands for several" if found else "is not recorded here"
    known = ", ".join(version.revision[:SHORT] for version in versions[:5])
    raise SourceError(
        f"{place} asks for version {wanted[:SHORT]} of {name}, which {what}: it has {known}, newest first. Name one "
        "(`sparsekd texts` lists all), get the commit that recorded it, or set texts.revisions to null for the newest."
    )


def verified(name: str, version: CorpusVersion) -> Path:
    """Where the bytes of this version lie. Raises SourceError unless they are here and are what its hash says."""
    path = version.place
    if path is None:
        raise SourceError(
            f"Version {version.revision[:SHORT]} of {name} is recorded, but its bytes are not on this machine; "
            f"{version.remedy}."
        )
    digest = hash_file(path)
    if digest != version.revision:
        raise SourceError(
            f"Version {version.revision[:SHORT]} of {name} is damaged: the sha256 of {path} is {digest}, not "
            f"{version.revision}. Remove that file, then {version.remedy}."
        )
    return path
