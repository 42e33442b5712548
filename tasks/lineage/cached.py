"""The bytes that a dvc.lock stands for, in DVC's cache, and the manifests in them."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsekd.artifacts import MANIFEST, Manifest
from tasks.cache import cached_object
from tasks.lineage.chain import BENCHMARKS, RAW_MODEL, TEXTS, Lineage
from tasks.lineage.hashing import Differs, Digests, Reader
from tasks.lineage.trace import manifest_name, read_manifest

LINK = "dvc.lock"
_LINKS = {RAW_MODEL: "source model", TEXTS: "texts", BENCHMARKS: "benchmarks"}
"""Outputs that are links of their own; the others are bytes of dvc.lock."""


@dataclass(frozen=True)
class Proven:
    """An output whose bytes are those of dvc.lock and of its manifest. `sha256` is the manifest's own."""

    manifest: Manifest
    sha256: str


def check_outputs(chain: Lineage, reader: Reader) -> dict[str, Proven]:
    """Hash every object of every output, and hold manifests against bytes and against each other.

    Returns the manifests, by output. Raises Differs.
    """
    cache = _Cache(chain, reader)
    proven = {out: cache.output(out, entry) for out, entry in chain.lock.outs().items()}
    for out, manifest in proven.items():
        _check_inputs(chain, out, manifest.manifest, proven)
    return proven


def _check_inputs(chain: Lineage, out: str, manifest: Manifest, proven: dict[str, Proven]) -> None:
    outs = chain.lock.outs()
    for dep in chain.lock.stages[manifest.stage].get("deps", []) if manifest.stage in chain.lock.stages else []:
        made = outs.get(dep["path"])
        if made and made["md5"] != dep["md5"]:
            raise Differs(
                LINK,
                f"{dep['path']}, which stage {manifest.stage} read",
                dep["md5"],
                made["md5"],
                f"{out} was made from another {dep['path']} than the one in the same dvc.lock: stages of two runs are "
                "mixed. `dvc repro` in its commit makes the chain whole.",
            )
    for path, sha256 in manifest.inputs.items():
        if path not in proven or proven[path].sha256 != sha256:
            raise Differs(
                "manifests",
                f"{path}, as the manifest of {out} names its input",
                sha256,
                proven[path].sha256 if path in proven else None,
                f"Stage {manifest.stage} did not read the {path} that this dvc.lock has. `dvc repro` in its commit "
                "makes the chain whole.",
            )


class _Cache:
    """Reads objects of DVC's cache; each once, whatever outputs share it."""

    def __init__(self, chain: Lineage, reader: Reader) -> None:
        self.chain = chain
        self.reader = reader
        self._known: dict[str, Digests] = {}

    def output(self, out: str, entry: dict[str, Any]) -> Proven:
        files = self._listing(out, entry["md5"])
        if MANIFEST not in files:
            raise Differs(
                "manifests", f"{out}/{MANIFEST}", "in every output", None, f"{out} is no finished output of a stage."
            )
        own = self._object(out, files[MANIFEST], MANIFEST)
        text = cached_object(self.chain.root, files[MANIFEST]).read_bytes()
        manifest = read_manifest(text)
        if manifest is None:
            raise Differs(
                "manifests",
                f"{out}/{MANIFEST}",
                "a manifest of ours",
                "other text",
                "It was written by another version of sparsekd, or by hand. Verify with the version of its commit.",
            )
        self._check_logged(out, own.sha256, text)
        self._check_files(out, manifest, files)
        return Proven(manifest, own.sha256)

    def _listing(self, out: str, digest: str) -> dict[str, str]:
        """The files of an output, from the object that lists them: their md5, by relative path."""
        if not digest.endswith(".dir"):
            return {}
        self._object(out, digest)
        text = cached_object(self.chain.root, digest).read_text()
        return {entry["relpath"]: entry["md5"] for entry in json.loads(text)}

    def _check_logged(self, out: str, sha256: str, text: bytes) -> None:
        """The manifest that MLflow keeps is the output's own."""
        logged = self.chain.logged.get(out)
        if logged is None or logged == text:
            return
        raise Differs(
            "manifests",
            f"artifact {manifest_name(out)} of MLflow run {self.chain.run.id if self.chain.run else ''}",
            f"sha256 {sha256}, of {out}/{MANIFEST} in dvc.lock",
            f"sha256 {self.reader.text(logged)}",
            "MLflow's copy was changed after the run: do not believe what `sparsekd lineage` prints of this output. "
            f"The true one comes with the output's bytes: {self.chain.bring_back}.",
        )

    def _check_files(self, out: str, manifest: Manifest, files: dict[str, str]) -> None:
        for name in sorted({*manifest.files, *files} - {MANIFEST}):
            entry = manifest.files.get(name)
            found = self._object(out, files[name], name).sha256 if name in files else None
            if entry is None or found != entry.sha256:
                raise Differs(
                    "manifests",
                    f"{out}/{name}",
                    f"sha256 {entry.sha256}" if entry else "no such file",
                    f"sha256 {found}" if found else None,
                    f"The bytes that dvc.lock stands for are not what the manifest of stage {manifest.stage} says: the "
                    f"output was changed after its stage. Do not use it; {_anew(self.chain)}.",
                )

    def _object(self, out: str, digest: str, name: str = "") -> Digests:
        """The hashes of an object of an output, which must be the one in its name; without `name`, that of its list."""
        if digest in self._known:
            return self._known[digest]
        path = cached_object(self.chain.root, digest)
        link = _LINKS.get(out, LINK)
        shown = f"{posixpath.join(out, name).rstrip('/')} (object {_shown(path, self.chain.root)})"
        try:
            found = self.reader.file(path)
        except FileNotFoundError:
            raise Differs(link, shown, f"md5 {digest}", None, _absent(self.chain)) from None
        except OSError as error:
            meaning = f"The disk does not give the object ({error.strerror}): mend it, or remove it and `dvc pull`."
            raise Differs(link, shown, f"md5 {digest}", "unreadable", meaning) from None
        if found.md5 != digest.removesuffix(".dir"):
            raise Differs(
                link,
                shown,
                f"md5 {digest}",
                f"md5 {found.md5}",
                "The object in DVC's cache was changed or damaged after the run. Remove it, then `dvc pull`, or "
                f"{_anew(self.chain)}.",
            )
        self._known[digest] = found
        return found


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _absent(chain: Lineage) -> str:
    name = chain.origin.experiment
    pull = f"`dvc pull` in its commit{f', or `dvc exp pull REMOTE {name}`,' if name else ''}"
    return f"DVC's cache has no such object: it was freed, or never fetched here. {pull} brings it; or {_anew(chain)}."


def _anew(chain: Lineage) -> str:
    name = chain.origin.experiment if chain.origin.experiment_commit else None
    at = name or (chain.origin.commit if chain.origin.commit_here else None)
    return f"compute it anew: `sparsekd compress --at {at}`" if at else "compute it anew: `sparsekd compress`"
