"""Files of documents that a user names, alone or by their folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sparsekd.errors import SourceError
from sparsekd.sources.readers import SUFFIXES


def text_files(paths: Sequence[Path], place: str) -> list[Path]:
    """The files that `paths` name: themselves, or all text files below a folder in the order of their names, each once.

    Hidden files and folders are passed over. Raises SourceError, naming `place`, for a path that is absent, a file
    that is none of SUFFIXES, and a folder without one.
    """
    found = [file for path in paths for file in _below(path, place)]
    return list({file.resolve(): file for file in reversed(found)}.values())[::-1]


def _below(path: Path, place: str) -> Iterator[Path]:
    if not path.exists():
        raise SourceError(f"{place} names {str(path)!r}; there is no such file or folder. Correct the path.")
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise SourceError(
                f"{place} names {str(path)!r}, a {path.suffix or 'suffix-less'} file; it must end in "
                f"{', '.join(SUFFIXES)}."
            )
        yield path
        return
    inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
    visible = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not visible:
        raise SourceError(f"{place} names {str(path)!r}, where no file ends in {', '.join(SUFFIXES)}; name another.")
    yield from visible


def estimated_bytes(files: Sequence[Path]) -> int:
    """About how many bytes the documents of `files` take as JSON lines. Raises SourceError for a damaged table."""
    return sum(_uncompressed(file) if file.suffix.lower() == ".parquet" else file.stat().st_size for file in files)


def _uncompressed(file: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_metadata(file)
    except pyarrow.ArrowInvalid:
        raise SourceError(f"{file} is no Parquet file; write it again, or name another.") from None
    size: int = sum(table.row_group(number).total_byte_size for number in range(table.num_row_groups))
    return max(size, file.stat().st_size)
