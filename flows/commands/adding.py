"""`sparsekd texts add`: files become a version of a corpus, tracked by DVC and recorded in git's index.

A version is named by the hash of its documents and never changes. It is whole or not there: documents are written
beside their final place, and a version counts only when its record, written last, says what is in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.checks import machine, preflight
from flows.commands.display import StepProgress, make_console
from flows.commands.texts import print_facts
from flows.settings import params
from flows.workspaces.commands import dvc, git
from sparsekd.artifacts import hash_file
from sparsekd.corpus.describe import describe
from sparsekd.corpus.files import estimated_bytes, text_files
from sparsekd.corpus.write import Written, write_documents
from sparsekd.errors import ConfigError, ResourceError, SourceError
from sparsekd.progress import Progress
from sparsekd.sources import benchmarks_at_hand, catalogue
from sparsekd.sources.storage import disk_errors, locked
from sparsekd.sources.texts import CHAT
from tasks.cache import cache_directory, cached_object
from tasks.corpora import FOLDER, META, STAMP, Recorded, documents_path, record_path, recorded
from tasks.state import FOLDER as STATE

PLACE = "`sparsekd texts add`"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_PARTIAL = "adding.partial"
_SPARE = 64 * 10**6
_MOST_LISTED = 20


def add(name: str, paths: Sequence[Path], column: str | None = None) -> None:
    """Make the documents of `paths` the newest version of corpus `name`, and say what is in it.

    The same documents again are no new version. Raises ConfigError for a name that cannot be, SourceError for what
    cannot be read, ResourceError for a full disk; whatever is raised, earlier versions stay and nothing is half there.
    """
    root = params.find_root()
    preflight.check_repository(root)
    check_name(name)
    files = text_files(paths, PLACE)
    check_space(root, files)
    with _one_at_a_time(root), _own_errors(), StepProgress("texts add") as progress, _partial(root, name) as partial:
        written = write_documents(files, column, partial, PLACE, progress)
        versions = recorded(root).get(name, [])
        known = next((version for version in versions if version.revision == written.revision), None)
        if known is None:
            facts = _facts(root, files, written, partial, progress)
            version, back = _keep(root, name, written, facts, partial, versions), False
        else:
            version, back = known, _bring_back(root, known, partial)
    _stage(root, version)
    console = make_console()
    if known is None:
        print_facts(version, versions, console)
    else:
        console.print(_known(known, versions, back), markup=False, soft_wrap=True)


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` can be that of a corpus."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a corpus; use lower-case letters, digits and '-', at most 40, and begin with a "
            "letter or digit."
        )
    if name in catalogue().texts or name == CHAT:
        whose = "the catalogue's" if name in catalogue().texts else "that of the dense model's own answers"
        raise ConfigError(f"{name!r} is {whose}; choose another name, such as my-{name}.")


def check_space(root: Path, files: Sequence[Path]) -> None:
    """Raise ResourceError unless there is room for the documents twice: checked out, and in DVC's cache."""
    size = estimated_bytes(files)
    cache = cache_directory(root)
    shared = _device(cache) == _device(root)
    for place, needed in ((root, (2 if shared else 1) * size + _SPARE), (cache, size + _SPARE)):
        free = machine.free_disk(place)
        if free < needed:
            raise ResourceError(
                f"The documents need about {preflight.gigabytes(needed)} on the disk of {place}; "
                f"{preflight.gigabytes(free)} are free. Free some space (`sparsekd gc` says what is not needed)."
            )


def _device(path: Path) -> int:
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists()).stat().st_dev


@contextlib.contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Hold the lock of all additions in this checkout, and clear away what a killed one has left."""
    with locked(root / STATE / "texts-add"):
        for left in (root / FOLDER).glob(f"*/{_PARTIAL}"):
            left.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """The library speaks of settings in params.yaml; here they are options."""
    try:
        yield
    except SourceError as error:
        raise SourceError(str(error).replace("texts.column", "--column")) from None


@contextlib.contextmanager
def _partial(root: Path, name: str) -> Iterator[Path]:
    """Where the documents are written; nothing of it is left afterwards, nor an empty folder."""
    partial = root / FOLDER / name / _PARTIAL
    with disk_errors(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)
            for folder in (partial.parent, partial.parent.parent):
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()


def _facts(root: Path, files: Sequence[Path], written: Written, file: Path, progress: Progress) -> dict[str, Any]:
    """What the record says beside the hashes."""
    minimum = params.load(root).calibrate.minimum_characters
    benchmarks = benchmarks_at_hand(root / "data" / "raw" / "benchmarks")
    looked: dict[str, Any] | None = None
    if benchmarks:
        from sparsekd.corpus.overlap import WORDS, BenchmarkOverlap  # torch comes with it

        overlap = BenchmarkOverlap(benchmarks)
        found = describe(file, written.documents, minimum, progress, overlap.look)
        looked = {"words": WORDS, "rows": overlap.rows, "shared": overlap.shared()}
    else:
        found = describe(file, written.documents, minimum, progress)
    names = [path.name for path in files]
    more = [f"and {len(names) - _MOST_LISTED} more"] if len(names) > _MOST_LISTED else []
    return {
        "files": names[:_MOST_LISTED] + more,
        "kind": written.kind,
        "documents": written.documents,
        "characters": written.characters,
        "median_characters": found.median,
        "short": {"below": minimum, "documents": found.short},
        "copies_left_out": written.copies,
        "rows": written.seen.rows,
        "rows_without_text": written.without_text,
        "columns": dict(list(written.seen.columns.items())[:_MOST_LISTED]),
        "used_columns": written.seen.used,
        "languages": found.languages,
        "overlap": looked,
    }


def _keep(
    root: Path, name: str, written: Written, facts: dict[str, Any], partial: Path, versions: Sequence[Recorded]
) -> Recorded:
    """Give the documents to DVC and write the record, after which the version counts."""
    file = documents_path(name, written.revision)
    record = root / record_path(file)
    added = _stamp(versions)
    os.replace(partial, root / file)
    try:
        dvc(root, "add", "--quiet", str(file))
        yaml = YAML()
        values = yaml.load(record.read_text())
        values["meta"] = {META: {"revision": written.revision, "added": added, **facts}}
        unfinished = record.with_name(_PARTIAL)
        with unfinished.open("w") as stream:
            yaml.dump(values, stream)
        os.replace(unfinished, record)
    except BaseException:
        for path in (record, root / file):
            path.unlink(missing_ok=True)
        raise
    return next(version for version in recorded(root)[name] if version.revision == written.revision)


def _stamp(versions: Sequence[Recorded]) -> str:
    """Now, in UTC to the second, but after the newest version whatever the clock of its machine was."""
    newest = max((version.seconds for version in versions), default=0.0)
    return time.strftime(STAMP, time.gmtime(max(time.time(), newest + 1)))


def _bring_back(root: Path, version: Recorded, documents: Path) -> bool:
    """Put the bytes of a recorded version where they belong if they are missing or damaged; whether they were."""
    object_path = cached_object(root, version.md5)
    if object_path.is_file() and hash_file(object_path) == version.revision:
        return False
    object_path.unlink(missing_ok=True)
    os.replace(documents, root / version.file)
    before = (root / version.record).read_text()
    try:
        dvc(root, "add", "--quiet", str(version.file))
    finally:
        (root / version.record).write_text(before)
    return True


def _stage(root: Path, version: Recorded) -> None:
    """Into git's index, so that isolated runs have it; the commit is the user's."""
    ignored = (version.record.parent / ".gitignore").as_posix()
    git(root, "add", "--", version.record.as_posix(), *([ignored] if (root / ignored).is_file() else []))


def _known(version: Recorded, versions: Sequence[Recorded], back: bool) -> str:
    text = f"No new version: {version.name} has these documents since {version.added[:10]}, as {version.short}."
    if back:
        text += " Their bytes were missing or damaged in DVC's cache and are back."
    if version != versions[0]:
        text += f" The newest version is {versions[0].short}; `--texts {version.name}@{version.short}` uses this one."
    return text
