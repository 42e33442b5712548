"""Hash files once each, count what was read, and say of the first hash that differs what it means."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsekd.progress import Progress, silent

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Difference:
    """The first place where the chain does not hold. `found` is None where the bytes are absent.

    `meaning` says what follows from it, and the next step.
    """

    link: str
    place: str
    recorded: str
    found: str | None
    meaning: str

    @property
    def kind(self) -> str:
        return "missing" if self.found is None else "different"


class Differs(Exception):
    """Ends the verification: nothing below the first difference can be trusted."""

    def __init__(self, link: str, place: str, recorded: str, found: str | None, meaning: str) -> None:
        super().__init__(place)
        self.difference = Difference(link, place, recorded, found, meaning)


@dataclass(frozen=True)
class Digests:
    """Both hashes of a file's bytes: DVC's and the manifests'."""

    md5: str
    sha256: str


class Reader:
    """Hashes files and tells `progress` how many bytes of about `total` are done."""

    def __init__(self, total: int = 0, progress: Progress = silent) -> None:
        self.total = total
        self.files = 0
        self.bytes = 0
        self._progress = progress
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def file(self, path: Path) -> Digests:
        """Both hashes of a file. Raises OSError when it cannot be read."""
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        for piece in self._pieces(path):
            md5.update(piece)
            sha256.update(piece)
        return Digests(md5.hexdigest(), sha256.hexdigest())

    def sha256(self, path: Path) -> str:
        """The sha256 of a file. Raises OSError when it cannot be read."""
        digest = hashlib.sha256()
        for piece in self._pieces(path):
            digest.update(piece)
        return digest.hexdigest()

    def _pieces(self, path: Path) -> Iterator[memoryview]:
        buffer = bytearray(_CHUNK)
        with path.open("rb", buffering=0) as stream:
            while size := stream.readinto(buffer):
                yield memoryview(buffer)[:size]
                self._count(size)
        self.files += 1

    def text(self, content: bytes) -> str:
        """The sha256 of bytes that were read already."""
        self.took(1, len(content))
        return hashlib.sha256(content).hexdigest()

    def took(self, files: int, size: int) -> None:
        """Count files that were hashed elsewhere."""
        self.files += files
        self._count(size)

    def _count(self, size: int) -> None:
        self.bytes += size
        self._progress(min(self.bytes, self.total) / 1e6, self.total / 1e6, "MB")
