"""Readers of a user's own texts: .txt, .jsonl, .parquet and data sets on the hub, as one record a document.

A record is {"text": "…"} or {"messages": [{"role": …, "content": …}, …]}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsekd.errors import SourceError
from sparsekd.sources.documents import split_plain

SUFFIXES = (".jsonl", ".parquet", ".txt")

Record = dict[str, Any]

_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "list", dict: "object"}


@dataclass
class Seen:
    """What reading files came across: rows, each column with its type, and the columns that the text was taken from.

    A .txt file has rows (its documents) but no columns.
    """

    rows: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)

    def take_from(self, column: str) -> None:
        """Note the column that the text of a file is taken from."""
        if column not in self.used:
            self.used.append(column)

    def row(self, row: Mapping[str, Any]) -> None:
        """Count a row of JSON, and note columns that no earlier one had a value in."""
        self.rows += 1
        for name, value in row.items():
            if value is not None and name not in self.columns:
                self.columns[name] = _TYPES.get(type(value), "null")


def read_file(path: Path, column: str | None, place: str, seen: Seen | None = None) -> Iterator[Record]:
    """The records of a text file, in its order; what else was met goes to `seen`.

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
        yield from reader(path, column, seen or Seen())
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error}); mend its permissions.") from None


def _read_text(path: Path, column: str | None, seen: Seen) -> Iterator[Record]:
    for document in split_plain(_decoded(path.read_bytes(), str(path)).replace("\r\n", "\n")):
        seen.rows += 1
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


def read_lines(path: Path, column: str | None, seen: Seen) -> Iterator[Record]:
    """The records of JSON lines, whatever the file's name ends in; raises like `read_file`."""

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
        if chosen is None:
            chosen = choose_column(list(row), column, str(path))
            seen.take_from(chosen)
        seen.row(row)
        yield from _record(row.get(chosen), chosen, where)


def _read_parquet(path: Path, column: str | None, seen: Seen) -> Iterator[Record]:
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        schema, rows_there = pyarrow.parquet.read_schema(path), pyarrow.parquet.read_metadata(path).num_rows
    except pyarrow.ArrowInvalid:
        raise SourceError(f"{path} is no Parquet file; write it again, or name another.") from None
    chosen = choose_column(schema.names, column, str(path))
    seen.take_from(chosen)
    seen.rows += rows_there
    for field_of in schema:
        seen.columns.setdefault(field_of.name, str(field_of.type).partition("<")[0])
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True, columns=[chosen])
    yield from records(rows, chosen, str(path))


_READERS: dict[str, Callable[[Path, str | None, Seen], Iterator[Record]]] = {
    ".jsonl": read_lines,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}


def texts_of(record: Record) -> list[str]:
    """The text of a document, or of each message of a conversation."""
    return [record["text"]] if "text" in record else [message["content"] for message in record["messages"]]


def usable(rows: Iterable[Record]) -> Iterator[Record]:
    """Records with something in them."""
    return (record for record in rows if any(text.strip() for text in texts_of(record)))


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
