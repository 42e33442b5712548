"""Texts: what a source resolves to, and every corpus as one JSON record a line."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsekd.artifacts import hash_file
from sparsekd.errors import SourceError
from sparsekd.progress import Progress, silent
from sparsekd.sources import hub, readers
from sparsekd.sources.catalogue import catalogue
from sparsekd.sources.corpora import Corpora, find_version, verified
from sparsekd.sources.documents import SPLITS
from sparsekd.sources.download import pinned_file
from sparsekd.sources.reference import Kind, Reference, is_commit, parse_source, wanted_revision
from sparsekd.sources.storage import (
    cache_root,
    clone_or_copy,
    content_hash,
    disk_errors,
    locked,
    partial_file,
    require_space,
)

PLACE = "texts.sources"
CHAT = "chat"
"""The corpus that the stage calibrate makes from the dense model's answers."""
MOST_CHARACTERS = 64_000_000
"""Of one corpus: about 16 million tokens. A hub data set may hold a hundred thousand times that."""

NO_CORPORA: Corpora = {}

Say = Callable[[str], None]


@dataclass(frozen=True)
class ResolvedText:
    """A text source pinned to a commit (hub) or content hash (file, catalogue, corpus); no `@revision` in `source`."""

    source: str
    revision: str
    kind: Kind


def resolve_text(
    source: str, revision: str | None = None, column: str | None = None, own: Corpora = NO_CORPORA
) -> ResolvedText:
    """Pin a text source and check, as far as the disk alone tells, that it holds text.

    Follows the same rules as `resolve_model`. A local file is read up to its first record, so that a missing path, a
    binary file, or a table without a text column (`column`, else text, else messages) is an error here, before a run.
    A corpus of the user's `own` stays at the version that `revision` names, else it is the newest; its bytes need not
    be here. Raises SourceError, ConfigError.
    """
    reference = _parse(source, own)
    wanted = wanted_revision(reference, revision, PLACE)
    if reference.kind == "corpus":
        return ResolvedText(reference.source, find_version(reference.name, wanted, own, PLACE).revision, "corpus")
    if reference.kind == "catalogue":
        return ResolvedText(reference.source, catalogue().texts[reference.name].file.sha256, "catalogue")
    if reference.kind == "hub":
        commit = (
            wanted if wanted and is_commit(wanted) else hub.resolve_commit(reference.name, wanted, "dataset", PLACE)
        )
        return ResolvedText(reference.source, commit, "hub")
    if next(readers.usable(readers.read_file(reference.path, column, PLACE)), None) is None:
        raise SourceError(f"{PLACE} names {reference.name!r}, which holds no text; name a file that does.")
    return ResolvedText(reference.source, content_hash({"text": reference.path}), "local")


def corpus_names(sources: Sequence[str], own: Corpora = NO_CORPORA) -> tuple[str, ...]:
    """The corpus that each source becomes: the catalogue's or the user's name, or a file's or data set's made safe.

    Names that another source, a held-out corpus or `chat` has already get a number.
    """
    references = [_parse(source, own) for source in sources]
    taken = {CHAT, *catalogue().texts, *(reference.name for reference in references if reference.kind == "corpus")}
    names: list[str] = []
    for reference in references:
        if reference.kind in ("catalogue", "corpus"):
            names.append(reference.name)
            continue
        stem = reference.path.stem if reference.kind == "local" else reference.name.rpartition("/")[2]
        plain = re.sub(r"[^a-z0-9]+", "-", f"{stem} {reference.config or ''}".lower()).strip("-") or "texts"
        numbered = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        names.append(next(name for name in numbered if name not in taken))
        taken.add(names[-1])
    return tuple(names)


def fetch_texts(
    sources: Sequence[str],
    revisions: Sequence[str] | None,
    column: str | None,
    out: Path,
    progress: Progress = silent,
    say: Say = lambda line: None,
    own: Corpora = NO_CORPORA,
) -> dict[str, dict[str, Any]]:
    """Write `<corpus>.jsonl` for each source and for the held-out corpora of the catalogue; return the corpora's facts.

    A line is {"text": …} or {"messages": […]}; the bytes depend on the sources alone. A held-out corpus that is also a
    source is calibrated on and no longer held out. `own` are the user's corpora. Raises SourceError for a source
    that is absent, no text, without a text column, empty, or no longer what its revision says.
    """
    pinned: Sequence[str | None] = revisions or [None] * len(sources)
    corpora: dict[str, dict[str, Any]] = {}
    for name, source, revision in zip(corpus_names(sources, own), sources, pinned, strict=True):
        target = out / f"{name}.jsonl"
        corpora[name] = {"role": "calibration", **_fetch(source, revision, column, target, progress, say, own)}
    for name in catalogue().held_out:
        if name not in corpora:
            target = out / f"{name}.jsonl"
            corpora[name] = {"role": "held_out", **_fetch(name, None, None, target, progress, say, NO_CORPORA)}
    for name, facts in corpora.items():
        say(f"{name}: {facts['documents']:,} documents, {facts['characters']:,} characters ({facts['role']}).")
    return corpora


def _parse(source: str, own: Corpora) -> Reference:
    return parse_source(source, PLACE, catalogue().texts, readers.SUFFIXES, own)


def _fetch(
    source: str,
    revision: str | None,
    column: str | None,
    target: Path,
    progress: Progress,
    say: Say,
    own: Corpora,
) -> dict[str, Any]:
    resolved = resolve_text(source, revision, column, own)
    reference = _parse(source, own)
    wanted = wanted_revision(reference, revision, PLACE)
    if reference.kind in ("catalogue", "local") and wanted not in (None, resolved.revision):
        raise SourceError(
            f"texts.revisions has {wanted} for {source}, whose content hash is {resolved.revision}: the source or "
            "its file changed since. Run `sparsekd compress`, which resolves it again, or set texts.revisions to null."
        )
    if reference.kind == "catalogue":
        entry = catalogue().texts[reference.name]
        text = pinned_file(entry.file, progress).read_text(encoding="utf-8")
        counts = _write(({"text": document} for document in SPLITS[entry.split](text)), target, source)
        licence: str | None = entry.licence
    elif reference.kind == "corpus":
        path = verified(reference.name, find_version(reference.name, resolved.revision, own, PLACE))
        counts, licence = _write(readers.read_lines(path, None, readers.Seen()), target, source, say), None
    elif reference.kind == "hub":
        counts, licence = _fetch_hub(reference, resolved.revision, column, target, say), None
    else:
        counts, licence = _write(readers.read_file(reference.path, column, PLACE), target, source, say), None
        if content_hash({"text": reference.path}) != resolved.revision:
            raise SourceError(f"{source} changed while it was read; run again when nothing writes there.")
    return {**counts, "licence": licence, "source": resolved.source, "revision": resolved.revision}


def _fetch_hub(reference: Reference, commit: str, column: str | None, target: Path, say: Say) -> dict[str, int]:
    """Stream the data set once; what was taken of it stays in the user's cache, so a second run needs no network."""
    asked = json.dumps([reference.name, reference.config, commit, column, MOST_CHARACTERS])
    cached = cache_root() / "texts" / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.jsonl"
    note = cached.with_suffix(".json")
    with locked(cached), disk_errors(cached):
        facts = _cached_facts(cached, note)
        if facts is None:
            say(f"Data set {reference.name} at commit {commit} from the hub.")
            with hub.hub_errors(reference.name, commit, PLACE):
                rows = readers.read_hub(reference.name, reference.config, commit, column)
                counts = _write(rows, cached, reference.source, say)
            facts = {**counts, "sha256": hash_file(cached)}
            with partial_file(note) as partial:
                partial.write_text(json.dumps(facts))
        clone_or_copy(cached, target)
    return {key: facts[key] for key in ("documents", "characters")}


def _cached_facts(cached: Path, note: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(note.read_text())
        return facts if hash_file(cached) == facts["sha256"] else None
    except (OSError, ValueError, KeyError):
        return None


def _write(
    records: Iterable[readers.Record], target: Path, source: str, say: Say = lambda line: None
) -> dict[str, int]:
    """Write the records of a corpus, at most MOST_CHARACTERS of them; return documents and characters."""
    documents = characters = 0
    require_space(target.parent, MOST_CHARACTERS, f"The text {source}")
    # errors="replace": JSON may hold lone surrogates, which no UTF-8 file can.
    with (
        disk_errors(target),
        partial_file(target) as partial,
        partial.open("w", encoding="utf-8", errors="replace") as out,
    ):
        for record in readers.usable(records):
            if characters >= MOST_CHARACTERS:
                say(f"{source}: only its first {documents:,} documents are used ({characters:,} characters).")
                break
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            documents += 1
            characters += sum(map(len, readers.texts_of(record)))
    if not documents:
        target.unlink()
        raise SourceError(f"{PLACE} names {source!r}, which holds no text; name one that does.")
    return {"documents": documents, "characters": characters}
