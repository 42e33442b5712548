"""The user's cache, room on the disk, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from sparsekd.artifacts import hash_file
from sparsekd.errors import ResourceError
from sparsekd.progress import Progress

CACHE_VARIABLE = "SPARSEKD_CACHE"
_FICLONE = 0x40049409
_SPARE = 64 * 2**20


def cache_root() -> Path:
    """Where downloads are kept: $SPARSEKD_CACHE, else ~/.cache/sparsekd. It may be deleted at any time."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "sparsekd").expanduser().absolute()


def require_space(directory: Path, needed: int, what: str) -> None:
    """Raise ResourceError unless the disk that holds `directory` has room for `needed` bytes and a little more."""
    existing = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + _SPARE:
        raise ResourceError(
            f"{what} needs {megabytes(needed + _SPARE)} in {directory}; {megabytes(free)} are free. "
            f"Free some space, or set {CACHE_VARIABLE} to a directory on a larger disk for downloads."
        )


def megabytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 1e6:,.0f} MB"


@contextlib.contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn a full disk and a directory that cannot be written into errors that the user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"The disk is full at {place}; free some space and run again.") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ResourceError(
                f"{error.filename or place} cannot be read or written ({error.strerror}); mend its permissions, or set "
                f"{CACHE_VARIABLE} to a directory of your own for downloads."
            ) from None
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to `path`: two runs that need the same download make it once."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.with_name(path.name + ".lock").open("w")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`; when the body succeeds the file becomes `target`, else it is removed."""
    partial = target.with_name(target.name + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def fresh_directory(path: Path) -> Iterator[Path]:
    """An empty directory for work under way; it is gone afterwards, and so is what a killed run left there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def watch_growth(directory: Path, total: int, progress: Progress) -> Iterator[None]:
    """Report the bytes that appear below `directory` while others write there (pip, the hub's client)."""
    before, done = _size(directory), threading.Event()

    def report() -> None:
        while not done.wait(0.5):
            progress(min(_size(directory) - before, total), total, "bytes")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    progress(total, total, "bytes")


def _size(directory: Path) -> int:
    size = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # a file may go between the listing and the look
                size += os.lstat(os.path.join(root, name)).st_size
    return size


def clone_or_copy(source: Path, target: Path) -> None:
    """A copy that shares its blocks where the file system can, of the file that `source` is or links to."""
    with source.open("rb") as read, target.open("wb") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
        except OSError:
            shutil.copyfileobj(read, write, 2**20)


def content_hash(files: Mapping[str, Path]) -> str:
    """sha256 over names and contents, in the order of the names. Hashes of files that stand still are remembered."""
    lines = [f"{name} {_remembered_hash(path)}" for name, path in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _remembered_hash(path: Path) -> str:
    """sha256 of a file, looked up by path, size, time and inode: every command would read gigabytes otherwise."""
    state = path.stat()
    key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ino}"
    memory = cache_root() / "hashes" / hashlib.sha256(key.encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads(memory.read_text())["sha256"])
    digest = hash_file(path)
    settled = time.time() - state.st_mtime > 2  # a file written a moment ago may change again within one clock tick
    if settled and state.st_size > 2**20:
        with contextlib.suppress(OSError), partial_file(memory) as partial:
            partial.write_text(json.dumps({"path": str(path), "sha256": digest}))
    return digest
