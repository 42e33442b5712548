"""Files of documents become one: a document a line, each once, named by the hash of its bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sparsekd.calibration.split import document_key
from sparsekd.corpus.files import estimated_bytes
from sparsekd.errors import SourceError
from sparsekd.progress import Progress, silent
from sparsekd.sources.readers import Record, Seen, read_file, texts_of, usable


@dataclass
class Written:
    """What was written: `revision` is the sha256 of the file.

    `copies` were left out, and so were the rows without text: `seen.rows - documents - copies`.
    """

    revision: str = ""
    bytes: int = 0
    documents: int = 0
    characters: int = 0
    copies: int = 0
    kind: str = ""
    """Of the documents: `text` or `messages`."""
    seen: Seen = field(default_factory=Seen)

    @property
    def without_text(self) -> int:
        """Rows that had nothing in the column that is used."""
        return self.seen.rows - self.documents - self.copies


def write_documents(
    files: Sequence[Path], column: str | None, target: Path, place: str, progress: Progress = silent
) -> Written:
    """Write the documents of `files` to `target` as JSON lines, in their order; the bytes depend on them alone.

    A copy of an earlier document is left out, by the rule of calibration's split: case and white space do not count.
    Raises SourceError for a file that cannot be read, files without any text, and documents beside conversations.
    """
    written, keys = Written(), set[bytes]()
    total = estimated_bytes(files)
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for file in files:
            for record in usable(read_file(file, column, place, written.seen)):
                _same_kind(written, record, file)
                key = _key(record)
                if key in keys:
                    written.copies += 1
                    continue
                keys.add(key)
                _write(record, out, digest, written)
                progress(min(written.bytes, total), total, "bytes")
    if not written.documents:
        named = ", ".join(repr(str(file)) for file in files[:3])
        raise SourceError(f"{place} names {named}, which holds no text; name a file that does.")
    written.revision = digest.hexdigest()
    return written


def read_documents(file: Path) -> Iterator[str]:
    """The text of each document, or the messages of each conversation, of a file that `write_documents` wrote."""
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            yield _joined(json.loads(line))


def _same_kind(written: Written, record: Record, file: Path) -> None:
    kind = next(iter(record))
    written.kind = written.kind or kind
    if kind != written.kind:
        raise SourceError(
            f"{file} holds {_KINDS[kind]}, the files before it {_KINDS[written.kind]}; a corpus holds one of the two. "
            "Add two corpora."
        )


_KINDS = {"text": "plain documents", "messages": "conversations"}


def _key(record: Record) -> bytes:
    """What copies of a document share."""
    text = _joined(record).encode(errors="replace").decode()
    return bytes.fromhex(document_key(text))[:16]


def _joined(record: Record) -> str:
    if "text" in record:
        return str(record["text"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in record["messages"])


def _write(record: Record, out: BinaryIO, digest: "hashlib._Hash", written: Written) -> None:
    # errors="replace": JSON may hold lone surrogates, which no UTF-8 file can.
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="replace")
    out.write(line)
    digest.update(line)
    written.bytes += len(line)
    written.documents += 1
    written.characters += sum(map(len, texts_of(record)))
