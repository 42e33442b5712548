"""The catalogue: named models, texts and benchmarks that come out of pinned packages (catalogue.yaml)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator
from ruamel.yaml import YAML

SplitRule = Literal["wiki", "lines", "endoftext", "code"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Package(_Entry):
    """A package of exactly this version, and the hash of its one wheel."""

    version: str
    sha256: str
    bytes: int


class Part(_Entry):
    """A file inside a package."""

    package: str
    member: str


class PinnedFile(_Entry):
    """A file by its hash: its parts, one after the other."""

    name: str
    sha256: str
    bytes: int
    parts: tuple[Part, ...]


class _Pinned(_Entry):
    file: PinnedFile


class CatalogueModel(_Pinned):
    """A model that comes as a GGUF file. `config` repeats config.json, so that checks need no download.

    `checkpoint_bytes` is about what the converted checkpoint takes on disk. `terms`, where there are any, are shown
    before the model is used.
    """

    label: str
    base_model: str
    licence: str
    terms: str | None = None
    quantization: str
    individual_digits: bool = False
    parameters: int
    checkpoint_bytes: int
    config: dict[str, Any]


class CatalogueText(_Pinned):
    """A text file and the rule that tells its documents apart."""

    licence: str
    origin: str
    split: SplitRule


class CatalogueBenchmark(_Pinned):
    """The rows of an lm-eval task as an Arrow file."""

    rows: int
    licence: str


class Catalogue(_Entry):
    """All of catalogue.yaml."""

    packages: dict[str, Package]
    models: dict[str, CatalogueModel]
    texts: dict[str, CatalogueText]
    held_out: tuple[str, ...]
    benchmarks: dict[str, CatalogueBenchmark]

    @model_validator(mode="after")
    def _names_known(self) -> Catalogue:
        tables: tuple[Mapping[str, _Pinned], ...] = (self.models, self.texts, self.benchmarks)
        parts = [part for table in tables for entry in table.values() for part in entry.file.parts]
        unknown = {part.package for part in parts} - set(self.packages)
        unknown |= set(self.held_out) - set(self.texts)
        if unknown:
            raise ValueError(f"catalogue.yaml uses but does not describe {', '.join(sorted(unknown))}")
        return self


@functools.cache
def catalogue() -> Catalogue:
    """The catalogue that this version was released with."""
    text = resources.files(__package__).joinpath("catalogue.yaml").read_text(encoding="utf-8")
    return Catalogue.model_validate(YAML(typ="safe").load(text))
