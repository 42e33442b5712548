"""What a source names: an entry of the catalogue, a corpus of the user's, a repository on the hub, or a path here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparsekd.errors import ConfigError, SourceError

Kind = Literal["catalogue", "corpus", "hub", "local"]

_HUB = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
_CONTENT_HASH = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VERSION = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class Reference:
    """A source, parsed. `config` (of a hub data set) and `revision` are set only where the source names them.

    The revision of a corpus may be the beginning of one.
    """

    kind: Kind
    source: str
    name: str
    config: str | None = None
    revision: str | None = None

    @property
    def path(self) -> Path:
        """Where a local source lies."""
        assert self.kind == "local"
        return Path(self.name).expanduser()


def parse_source(
    source: str,
    place: str,
    known: Collection[str],
    suffixes: tuple[str, ...] = (),
    corpora: Collection[str] = (),
) -> Reference:
    """Tell what `source` (the setting `place`) names; touches the disk, never the network.

    In this order: `file:PATH` and `hf:OWNER/NAME[:CONFIG][@REVISION]` are explicit; a name in `corpora`, with or
    without `@REVISION`, is the user's corpus; one in `known` is the catalogue's; an existing path, one that looks
    like a path or one that ends in `suffixes` is local; `OWNER/NAME` is on the hub. Raises SourceError, with the
    nearest known name, when it is none of these.
    """
    if source.startswith("file:"):
        return Reference("local", source, source.removeprefix("file:").removeprefix("//"))
    if source.startswith("hf:"):
        return _hub(source, source.removeprefix("hf:").removeprefix("//"), place)
    name, _, revision = source.partition("@")
    if name in corpora:  # before the catalogue: a later release may have the name too, and runs are pinned to this
        return Reference("corpus", name, name, None, revision or None)
    if source in known:
        return Reference("catalogue", source, source)
    if source.startswith(("/", "./", "../", "~")) or source.endswith(suffixes or ("\0",)) or Path(source).exists():
        return Reference("local", source, source)
    if source.count("/") == 1 and _HUB.fullmatch(source):
        return _hub(source, source, place)
    near = difflib.get_close_matches(name, [*known, *corpora], n=1, cutoff=0.4)
    raise SourceError(
        f"{place} is {source!r}; it is no path here, no owner/name on the hub and no catalogue name. "
        + (f"Did you mean {near[0]}? " if near else "")
        + f"The catalogue has {', '.join(known)}."
        + (f" Your corpora are {', '.join(corpora)}." if corpora else "")
    )


def _hub(source: str, text: str, place: str) -> Reference:
    match = _HUB.fullmatch(text)
    if match is None or {".", ".."} & set(match["name"].split("/")):
        raise SourceError(
            f"{place} is {source!r}; a hub source is hf:owner/name or hf:owner/name@revision. Correct it."
        )
    # The revision goes into its own setting, so that a source is written one way only.
    plain = source.partition("@")[0]
    return Reference("hub", plain, match["name"], match["config"], match["revision"])


def wanted_revision(reference: Reference, revision: str | None, place: str) -> str | None:
    """The revision that is asked for, or None where the source's present state is to be looked up.

    `revision` is the setting `<place>'s section.revision`. A content hash there belongs to local and catalogue sources
    and to corpora, a commit to the hub: one left over from another kind of source is passed over. Raises ConfigError
    for two different revisions, and for a branch or tag of something that has none.
    """
    if reference.revision and reference.kind == "corpus":
        return _version(reference, revision, place)
    if reference.kind == "hub":
        given = None if revision is None or _CONTENT_HASH.fullmatch(revision) else revision
        if given and reference.revision and given != reference.revision:
            raise ConfigError(
                f"{place} asks for revision {reference.revision} and the revision setting beside it for {given}; "
                "keep one of them."
            )
        return given or reference.revision
    if revision is None or _COMMIT.fullmatch(revision):
        return None
    if not _CONTENT_HASH.fullmatch(revision):
        raise ConfigError(
            f"The revision of {place} is {revision!r}; {reference.source} is not on the hub and has no branches or "
            "tags. Remove the revision: its content hash is written there before a run."
        )
    return revision


def _version(reference: Reference, revision: str | None, place: str) -> str | None:
    """The beginning of a content hash that `NAME@REVISION` gives; the whole one where the setting has it."""
    asked = reference.revision or ""
    if not _VERSION.fullmatch(asked):
        raise ConfigError(
            f"{place} asks for version {asked!r} of {reference.name}; a version is the first 6 or more digits of its "
            "hash. `sparsekd texts` lists them."
        )
    if revision is None or not _CONTENT_HASH.fullmatch(revision):
        return asked
    if not revision.startswith(asked):
        raise ConfigError(
            f"{place} asks for version {asked} of {reference.name} and the revision setting beside it for {revision}; "
            "keep one of them."
        )
    return revision


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a full commit hash, which never moves."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None
