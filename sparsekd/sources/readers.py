"""Readers of a user's own texts: .txt, .jsonl, .parquet and data sets on the hub, as one record a document.

A record is {"text": "…"} or {"messages": [{"role": …, "content": …}, …]}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsekd.errors import SourceError
from sparsekd.sources.documents import split_plain

SUFFIXES = (".jsonl", ".parquet", ".txt")

Record = dict[str, Any]


def read_file(path: Path, column: str | None, place: str) -> Iterator[Record]:
    """The records of a text file, in its order.

    Raises SourceError for a path that is missing or unreadable, a file that is no text, a table without the column
    (names the columns found), and a malformed line (names it).
    """
    reader = _READERS.get(path.suffix.lower())
    if not path.exists():
        raise SourceError(f"{place} names {str(path)!r}; there is no such file. Correct the path.")
    if path.is_dir() or reader is None:
        found = "a directory" if path.is_dir() else f"a {path.suffix or 'suffix-less'} file"
        raise SourceError(
            f"{place} names {str(path)!r}, {found}; it must be a file that ends in {', '.join(SUFFIXES)}."
        )
    try:
        yield from reader(path, column)
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error}); mend its permissions.") from None


def _read_text(path: Path, column: str | None) -> Iterator[Record]:
    for document in split_plain(_decoded(path.read_bytes(), str(path)).replace("\r\n", "\n")):
        yield {"text": document}


def _decoded(data: bytes, where: str) -> str:
    """UTF-8 text, with or without a byte-order mark. Raises SourceError for anything else."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{where} is no UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}); name a text file, or "
            "convert it with `iconv -t UTF-8`."
        ) from None
    if "\0" in text:
        raise SourceError(f"{where} is a binary file (it holds NUL bytes); name a text file.")
    return text


def _read_lines(path: Path, column: str | None) -> Iterator[Record]:
    def rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                where = f"{path}, line {number},"
                text = _decoded(line, where)
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except ValueError as error:
                    raise SourceError(f"{where} is no JSON ({error}); each line must be one JSON object.") from None
                if not isinstance(row, dict):
                    raise SourceError(f"{where} holds {type(row).__name__}; each line must be one JSON object.")
                yield where, row

    # Keys may differ from line to line, so each line is asked for the column that the first line had.
    chosen: str | None = None
    for where, row in rows():
        chosen = chosen or choose_column(list(row), column, str(path))
        yield from _record(row.get(chosen), chosen, where)


def _read_parquet(path: Path, column: str | None) -> Iterator[Record]:
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
    except pyarrow.ArrowInvalid:
        raise SourceError(f"{path} is no Parquet file; write it again, or name another.") from None
    chosen = choose_column(names, column, str(path))
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True, columns=[chosen])
    yield from records(rows, chosen, str(path))


_READERS: dict[str, Callable[[Path, str | None], Iterator[Record]]] = {
    ".jsonl": _read_lines,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}


def read_hub(name: str, config: str | None, commit: str, column: str | None) -> Iterator[Record]:
    """The records of a hub data set's train split (its first split, where there is none), streamed in order.

    Raises SourceError for a table without the column; what the hub's client raises is the caller's to explain.
    """
    import datasets

    splits = datasets.load_dataset(name, config, revision=commit, streaming=True)
    split = splits["train"] if "train" in splits else next(iter(splits.values()))
    names = split.column_names or list(next(iter(split), {}))
    chosen = choose_column(names, column, f"The data set {name}")
    yield from records(split.select_columns([chosen]), chosen, f"The data set {name}")


def choose_column(names: list[str], column: str | None, where: str) -> str:
    """`column` where it is given, else text, else messages. Raises SourceError that names the columns found."""
    for candidate in (column,) if column else ("text", "messages"):
        if candidate in names:
            return candidate
    wanted = f"no column {column!r}" if column else "neither a text nor a messages column"
    found = ", ".join(names) or "none"
    raise SourceError(
        f"{where} has {wanted}; its columns are {found}. Set texts.column to the one that holds the text."
    )


def records(rows: Iterable[Mapping[str, Any]], column: str, where: str) -> Iterator[Record]:
    """A record for each row that has something in `column`."""
    for number, row in enumerate(rows, start=1):
        yield from _record(row.get(column), column, f"{where}, row {number},")


def _record(value: Any, column: str, where: str) -> Iterator[Record]:
    """The record of one cell: a string, a conversation, or nothing for an empty one. Raises SourceError."""
    if value is None or value == "" or value == []:
        return
    if isinstance(value, str):
        yield {"text": value}
        return
    if not isinstance(value, list):
        raise SourceError(
            f"{where} has {type(value).__name__} in column {column!r}; it must hold text or a list of messages. Set "
            "texts.column to another."
        )
    messages = []
    for message in value:
        ok = isinstance(message, Mapping)
        if not ok or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise SourceError(
                f'{where} has a message in column {column!r} that is not {{"role": text, "content": text}}; '
                "correct it, or set texts.column to a column of plain text."
            )
        messages.append({"role": message["role"], "content": message["content"]})
    yield {"messages": messages}
