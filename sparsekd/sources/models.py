"""Models: what a source resolves to, its configuration without its weights, and the checkpoint itself."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsekd.artifacts import Artifact, writing
from sparsekd.errors import ArtifactError, SourceError
from sparsekd.families import standard_config
from sparsekd.progress import Progress, silent
from sparsekd.sources import checkpoint, hub
from sparsekd.sources.catalogue import CatalogueModel, catalogue
from sparsekd.sources.download import pinned_file
from sparsekd.sources.reference import Kind, Reference, is_commit, parse_source, wanted_revision
from sparsekd.sources.storage import cache_root, content_hash, disk_errors, locked, require_space

PLACE = "model.source"
_CONVERSION = 1  # raise it when convert.py writes other bytes

Say = Callable[[str], None]


@dataclass(frozen=True)
class ResolvedModel:
    """A model pinned to a commit (hub) or content hash (local, catalogue): what params.yaml gets before a run.

    `source` is as given, without an `@revision`. `label` is what people read. `parameters`, `bytes` (the checkpoint on
    disk) are None where only a download would tell. `terms` must be shown
    before use.
    """

    source: str
    revision: str
    kind: Kind
    label: str
    licence: str | None = None
    base_model: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    terms: str | None = None


def resolve_model(source: str, revision: str | None = None) -> ResolvedModel:
    """Pin a model source, cheaply: no weights are downloaded, neither torch nor transformers is imported.

    A hub source with a full commit needs no network; a branch, a tag or None is looked up. A local directory and a
    catalogue entry always resolve to what they hold *now*: a content hash given as `revision` may differ from the
    result, which then goes to params.yaml and makes DVC run again (`fetch_model` is strict instead). Raises
    SourceError for what is absent, unreadable, gated or no checkpoint, ConfigError for a revision that cannot be.
    """
    reference = parse_source(source, PLACE, catalogue().models)
    wanted = wanted_revision(reference, revision, PLACE)
    if reference.kind == "catalogue":
        entry = catalogue().models[reference.name]
        return ResolvedModel(
            source=reference.source,
            revision=entry.file.sha256,
            kind="catalogue",
            label=entry.label,
            licence=entry.licence,
            base_model=entry.base_model,
            parameters=entry.parameters,
            bytes=entry.checkpoint_bytes,
            terms=entry.terms,
        )
    if reference.kind == "hub":
        commit = wanted if wanted and is_commit(wanted) else hub.resolve_commit(reference.name, wanted, "model", PLACE)
        return ResolvedModel(reference.source, commit, "hub", reference.name, base_model=reference.name)
    return _resolve_local(reference)


def _resolve_local(reference: Reference) -> ResolvedModel:
    directory = reference.path
    with disk_errors(directory):
        checkpoint.check_checkpoint(directory, _what(reference))
        files = checkpoint.stock_files(directory, _what(reference))
        return ResolvedModel(
            source=reference.source,
            revision=content_hash(files),
            kind="local",
            label=directory.resolve().name,
            licence=checkpoint.licence_of(directory),
            parameters=checkpoint.count_parameters(directory, _what(reference)),
            bytes=sum(path.stat().st_size for path in files.values()),
        )


def model_config(source: str, revision: str | None = None) -> dict[str, Any]:
    """The values of config.json under standard names, without downloading weights (at most config.json, from the hub).

    For a catalogue model the part that matters for checks: sizes, layers, vocabulary, positions, ties, dtype.
    """
    resolved = resolve_model(source, revision)
    reference = parse_source(source, PLACE, catalogue().models)
    if reference.kind == "catalogue":
        return dict(catalogue().models[reference.name].config)
    if reference.kind == "hub":
        path = hub.config_file(reference.name, resolved.revision, PLACE)
        return standard_config(checkpoint.read_config(path.parent, _what(reference)))
    return standard_config(checkpoint.read_config(reference.path, _what(reference)))


def local_checkpoint(
    source: str, revision: str | None = None, progress: Progress = silent, say: Say = lambda line: None
) -> tuple[Path, dict[str, Any]]:
    """A directory on this disk that holds the model, and its `source` facts: downloaded and converted if need be.

    Read it, never write to it: it is the user's own directory, the hub's cache or ours. Raises SourceError when the
    model is not to be had, or when a local directory is no longer what `revision` says.
    """
    resolved = resolve_model(source, revision)
    reference = parse_source(source, PLACE, catalogue().models)
    if reference.kind == "catalogue":
        entry = catalogue().models[reference.name]
        if entry.terms:
            say(entry.terms)
        _require_revision(reference, revision, resolved.revision)
        return _converted(reference.name, entry, progress, say), _catalogue_facts(reference.name, entry)
    if reference.kind == "hub":
        say(f"Model {reference.name} at commit {resolved.revision} from the hub.")
        directory = hub.snapshot(reference.name, resolved.revision, checkpoint.HUB_PATTERNS, PLACE, progress)
        checkpoint.check_checkpoint(directory, _what(reference))
        facts = _facts(reference.name, "hub", resolved.revision, reference.name)
        return directory, {**facts, "licence": checkpoint.licence_of(directory), "base_model": reference.name}
    _require_revision(reference, revision, resolved.revision)
    facts = _facts(resolved.label, "local", resolved.revision, resolved.label)
    return reference.path, {**facts, "licence": resolved.licence}


def fetch_model(
    source: str, revision: str | None, out: Path, progress: Progress = silent, say: Say = lambda line: None
) -> dict[str, Any]:
    """Copy the model to `out` as a stock checkpoint (shards kept) and return its `source` facts.

    Raises what `local_checkpoint` raises, ResourceError when the disk will not hold the copy, and SourceError when a
    local directory changed while it was copied.
    """
    directory, facts = local_checkpoint(source, revision, progress, say)
    files = checkpoint.stock_files(directory, f"{PLACE} is {source!r}")
    require_space(out, sum(path.stat().st_size for path in files.values()), "The copy of the model")
    with disk_errors(out):
        copies = checkpoint.copy_files(files, out)
    if facts["kind"] == "local" and content_hash(copies) != facts["revision"]:
        raise SourceError(f"{directory} changed while it was copied; run again when nothing writes there.")
    return facts


def _what(reference: Reference) -> str:
    return f"{PLACE} is {reference.source!r}"


def _require_revision(reference: Reference, revision: str | None, found: str) -> None:
    """The stage must use what params.yaml says: a content hash that no longer holds is an error there."""
    wanted = wanted_revision(reference, revision, PLACE)
    if wanted not in (None, found):
        raise SourceError(
            f"model.revision is {wanted}, but the content hash of {reference.source} is {found}: the source or its "
            "files changed since. Run `sparsekd compress`, which resolves it again, or set model.revision to null."
        )


def _converted(name: str, entry: CatalogueModel, progress: Progress, say: Say) -> Path:
    """The converted checkpoint in the user's cache: made once for each version of the converting libraries."""
    versions = [importlib.metadata.version(library) for library in ("transformers", "tokenizers", "gguf")]
    key = "-".join([name, entry.file.sha256[:12], str(_CONVERSION), *versions])
    path = cache_root() / "models" / key
    with locked(path), disk_errors(path):
        try:
            return Artifact.read(path).path
        except ArtifactError:
            pass  # not there yet, or damaged: made anew
        say(f"Downloading {entry.file.name} and converting it to safetensors (once; kept in {cache_root()}).")
        require_space(path.parent, entry.checkpoint_bytes + entry.file.bytes, f"Converting {name}")
        gguf = pinned_file(entry.file, progress)
        config = {"source": name, "sha256": entry.file.sha256}
        from sparsekd.sources.convert import convert_gguf

        with writing(path, "convert", config, {entry.file.name: entry.file.sha256}) as draft:
            convert_gguf(gguf, entry, draft.path)
        gguf.unlink()  # its package stays in the cache, and the checkpoint is made
    return path


def _catalogue_facts(name: str, entry: CatalogueModel) -> dict[str, Any]:
    return {
        **_facts(name, "catalogue", entry.file.sha256, entry.label),
        "licence": entry.licence,
        "file": entry.file.name,
        "bytes": entry.file.bytes,
        "quantization": entry.quantization,
        "sha256": entry.file.sha256,
        "base_model": entry.base_model,
    }


def _facts(name: str, kind: Kind, revision: str, label: str) -> dict[str, Any]:
    empty = dict.fromkeys(("licence", "file", "bytes", "quantization", "sha256", "base_model"))
    return {"name": name, "kind": kind, "revision": revision, "label": label, **empty}
