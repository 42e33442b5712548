"""Another name for a file's bytes that later runs leave alone, without more disk where the file system allows that."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from sparsekd.artifacts import hash_file
from sparsekd.errors import ArtifactError

_FICLONE = 0x40049409  # linux/fs.h: the target shares the source's blocks until one of them is written to


def place(source: Path, target: Path, sha256: str, dvc_object: Path | None = None) -> str:
    """Put the bytes of `source` at `target`, read-only, and return how: "reflink", "hardlink" or "copy".

    A reflink where the file system has them; else a hard link to the DVC object, which nothing writes to; else a
    copy. Never a hard link as root: root writes through read-only modes, and one append would corrupt DVC's cache.
    Raises ArtifactError when the bytes are not those of `sha256`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for how, attempt in (("reflink", _reflink), ("hardlink", _hardlink), ("copy", _copy)):
        if not attempt(dvc_object if how == "hardlink" else source, target):
            continue
        if hash_file(target) == sha256:
            target.chmod(0o444)
            return how
        target.unlink()
    raise ArtifactError(
        f"{source} is not what its manifest says (sha256 {sha256[:12]}…): it was changed after its stage. "
        f"Delete {source.parent} and run `sparsekd compress`."
    )


def _hardlink(source: Path | None, target: Path) -> bool:
    if source is None or os.geteuid() == 0:
        return False
    try:
        os.link(source, target)
    except OSError:  # another file system, another owner, no hard links
        return False
    return True


def _copy(source: Path | None, target: Path) -> bool:
    assert source is not None
    shutil.copyfile(source, target)
    return True


def _reflink(source: Path | None, target: Path) -> bool:
    assert source is not None
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            target.unlink()
            return False
    return True
