"""A registry version's files against the hashes in its tags, and later against the output that they were taken from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NoReturn

from sparsekd.artifacts import Manifest
from tasks.lineage.chain import DISTILLED, REPORT, Lineage, TrackedRun, Version
from tasks.lineage.hashing import Differs, Reader
from tasks.lineage.store import Store
from tasks.track import MODEL_TAG, VERSION_TAG
from tasks.tracking.record import CARDS_AND_CURVES, EXPORT_TAG, model_sha256
from tasks.tracking.registry import LINEAGE

LINK = "registry version"
_MODEL, _TOKENIZER, _CARD = "model", "components/tokenizer", "README.md"


@dataclass(frozen=True)
class Registered:
    """What the version's files hash to: the checkpoint by name, and the card."""

    version: Version | None = None
    files: dict[str, str] = field(default_factory=dict)
    card: str | None = None

    def check_against(self, chain: Lineage, manifests: dict[str, Manifest]) -> None:
        """The version is the distilled model that dvc.lock has. Raises Differs."""
        version, made = self.version, manifests.get(DISTILLED)
        if version is None or made is None:
            return
        wanted = {name: entry.sha256 for name, entry in made.files.items() if name not in CARDS_AND_CURVES}
        name = next((n for n in sorted({*wanted, *self.files}) if wanted.get(n) != self.files.get(n)), None)
        if name is not None:
            raise Differs(
                LINK,
                f"{name} of {version.label}",
                f"sha256 {wanted[name]}, of {DISTILLED} in dvc.lock" if name in wanted else "no such file",
                f"sha256 {self.files[name]}" if name in self.files else None,
                "The version agrees with its own tags but is not the model that this run made: it was registered for "
                f"another. The run's own bytes: {chain.bring_back}.",
            )
        report = manifests.get(REPORT)
        card = report.files.get(_CARD) if report and chain.run and chain.run.id == version.run_id else None
        if card is not None and self.card is not None and self.card != card.sha256:
            raise Differs(
                LINK,
                f"{_MODEL}/{_CARD} of {version.label}",
                f"sha256 {card.sha256}, of {REPORT}/{_CARD}",
                f"sha256 {self.card}",
                f"The model card was edited after the run; the weights were not. {REPORT} has the report's own.",
            )


def check_registered(chain: Lineage, store: Store | None, reader: Reader, into: Path, notes: list[str]) -> Registered:
    """Hash the version's files against its tags, and hold its tags against its run's. Raises Differs."""
    version = chain.version
    if version is None or store is None:
        _check_none_was_named(chain, notes)
        return Registered()
    maker = chain.run if chain.run and chain.run.id == version.run_id else store.run(version.run_id or "")
    if maker is None:
        meaning = "MLflow has lost the run that made the version, and with it the link to code and data."
        raise Differs("MLflow run", f"run {version.run_id}", f"made {version.label}", None, meaning)
    registered = _Files(chain, version, store, reader, into).check()
    _check_tags(version, maker)
    return registered


def _check_none_was_named(chain: Lineage, notes: list[str]) -> None:
    tags = chain.run.tags if chain.run else {}
    if VERSION_TAG in tags:
        label = f"{tags.get(MODEL_TAG)}/{tags[VERSION_TAG]}"
        meaning = f"The version was deleted from the registry. The run's own bytes: {chain.bring_back}."
        raise Differs(LINK, label, f"the model of run {chain.run.id if chain.run else ''}", None, meaning)
    notes.append("No registered model belongs to it; the links below the registry were verified.")


def _check_tags(version: Version, maker: TrackedRun) -> None:
    for key in (*LINEAGE, *(tag for tag in maker.tags if tag.startswith(EXPORT_TAG))):
        recorded, found = maker.tags.get(key), version.tags.get(key)
        if recorded is not None and found is not None and recorded != found:
            raise Differs(
                LINK,
                f"tag {key} of {version.label}",
                f"{recorded}, the tag of run {maker.id}",
                found,
                "A tag was edited by hand after the model was registered: the version no longer names its origin.",
            )


def _tagged(version: Version) -> dict[str, str]:
    """The sha256 of single files, which the registry has as tags: those of the weights."""
    ends = ".safetensors.sha256"
    return {key.removesuffix(".sha256"): value for key, value in version.tags.items() if key.endswith(ends)}


@dataclass(frozen=True)
class _Files:
    """The files of a version, wherever its store keeps them. `into` is for what must be downloaded."""

    chain: Lineage
    version: Version
    store: Store
    reader: Reader
    into: Path

    def check(self) -> Registered:
        """Hash them: each against the tags and, to say which one differs, against the run's manifest."""
        version = self.version
        hashes = dict(self._hashes(_MODEL))
        card = hashes.pop(_CARD, None)
        if not hashes:
            self._absent(version.source)
        for name, recorded in _tagged(version).items():
            self._compare(f"{_MODEL}/{name}", recorded, hashes.get(name))
        if version.sha256 is not None and model_sha256(hashes) != version.sha256:
            manifest = self.chain.manifests.get(DISTILLED)
            wanted = {n: e.sha256 for n, e in manifest.files.items() if n not in CARDS_AND_CURVES} if manifest else {}
            for name in sorted({*wanted, *hashes}) if model_sha256(wanted) == version.sha256 else ():
                self._compare(f"{_MODEL}/{name}", wanted.get(name), hashes.get(name))
            self._compare(f"{_MODEL}/, all files", version.sha256, model_sha256(hashes))
        for name, found in self._hashes(_TOKENIZER):
            self._compare(f"{_TOKENIZER}/{name}", hashes.get(name), found)
        return Registered(version, hashes, card)

    def _hashes(self, folder: str) -> Iterator[tuple[str, str]]:
        """Every file below a folder of the version: its sha256. What was downloaded for that is removed again."""
        for path in self.store.files(self.version.source, folder):
            file = self.store.file(self.version.source, path, self.into)
            if file is None:
                self._absent(path)
            yield PurePosixPath(path).relative_to(folder).as_posix(), self.reader.sha256(file)
            if file.is_relative_to(self.into):
                file.unlink()

    def _compare(self, path: str, recorded: str | None, found: str | None) -> None:
        if recorded == found:
            return
        if found is None:
            self._absent(path, f"sha256 {recorded}")
        raise Differs(
            LINK,
            f"{path} of {self.version.label}, in {self.version.source}",
            f"sha256 {recorded}" if recorded else "no such file",
            f"sha256 {found}",
            "The files of the version were changed after it was registered: do not use it. The run's own bytes, "
            f"as long as DVC's cache has them: {self.chain.bring_back}.",
        )

    def _absent(self, place: str, recorded: str = "the model's files") -> NoReturn:
        raise Differs(
            LINK,
            f"{place} of {self.version.label}" if place != self.version.source else place,
            recorded,
            None,
            "The files were removed, or the checkout was moved (MLflow's paths are absolute). The run's own bytes, "
            f"after `dvc pull` in its commit where DVC's cache lacks them: {self.chain.bring_back}.",
        )
