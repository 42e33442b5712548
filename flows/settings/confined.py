"""Which files a run may read: any, or only those in the directory of `sparsekd serve --sources DIR`.

Whoever may start a run from a form chooses what it reads, as the user that serves. A path in the form is then a way to
see that user's files; confined, it is not.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError
from sparsekd.sources import catalogue, readers
from sparsekd.sources.reference import parse_source

VARIABLE = "SPARSEKD_SOURCES"
"""The directory that local sources must lie in; set by `serve --sources` for the runs that it starts."""


def check_confined(config: RunConfig, own: Collection[str] = ()) -> None:
    """Raise ConfigError for a local source outside the directory, links followed. `own` names the user's corpora."""
    check_source("model.source", config.model.source)
    for source in config.texts.sources:
        check_source("texts.sources", source, own)
    if config.evaluate.include_path is not None:
        _check_path("evaluate.include_path", Path(config.evaluate.include_path))


def check_source(setting: str, source: str, own: Collection[str] = ()) -> None:
    """The same for one source, which `setting` names."""
    if os.environ.get(VARIABLE):
        known = [*catalogue().models, *catalogue().texts]
        reference = parse_source(source, setting, known, readers.SUFFIXES, own)
        if reference.kind == "local":
            _check_path(setting, reference.path)


def _check_path(setting: str, path: Path) -> None:
    allowed = os.environ.get(VARIABLE)
    files = [path, *(path.rglob("*") if path.is_dir() else ())]  # a directory may hold links that lead out
    if allowed and not all(file.resolve().is_relative_to(Path(allowed).resolve()) for file in files):
        raise ConfigError(
            f"{setting} is {str(path)!r}; this server reads local files from {allowed} alone (`serve --sources`). Name "
            "one in there, a hub repository or a catalogue name."
        )
