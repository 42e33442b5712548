"""Pinned packages: the real pip against a directory of made-up wheels, and everything that can go wrong with one."""

from __future__ import annotations

import hashlib
import shutil
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparsekd.errors import ResourceError, SourceError
from sparsekd.sources import benchmarks, download
from sparsekd.sources import storage as storage_module
from sparsekd.sources.benchmarks import fetch_benchmarks
from sparsekd.sources.catalogue import Catalogue, PinnedFile
from sparsekd.sources.download import pinned_file

FIRST, SECOND = b"first half " * 1000, b"second half " * 1000


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Index:
    """A directory that pip finds packages in, and the catalogue that pins what is there."""

    wheels: Path
    cache: Path
    catalogue: Catalogue
    file: PinnedFile

    @property
    def cached(self) -> list[str]:
        """Everything in the cache but its locks."""
        return sorted(p.name for p in self.cache.rglob("*") if p.is_file() and p.suffix != ".lock")


def _wheel(folder: Path, name: str, member: str, data: bytes) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    parts = {"halfone": ("halfone/data.part0", FIRST), "halftwo": ("halftwo/data.part1", SECOND)}
    packages: dict[str, Any] = {}
    for name, (member, data) in parts.items():
        path = _wheel(wheels, name, member, data)
        packages[name] = {"version": "1.0", "sha256": _sha(path.read_bytes()), "bytes": path.stat().st_size}
    whole = {
        "name": "data.bin",
        "sha256": _sha(FIRST + SECOND),
        "bytes": len(FIRST + SECOND),
        "parts": [{"package": name, "member": member} for name, (member, _) in parts.items()],
    }
    task = {"rows": 3, "licence": "mit", "file": whole}
    made = Catalogue.model_validate(
        {"packages": packages, "models": {}, "texts": {}, "held_out": [], "benchmarks": {"made_up": task}}
    )
    monkeypatch.setattr(download, "catalogue", lambda: made)
    monkeypatch.setattr(benchmarks, "catalogue", lambda: made)
    monkeypatch.setenv("SPARSEKD_CACHE", str(tmp_path / "a cache"))
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}.items():
        monkeypatch.setenv(name, value)
    return Index(wheels, tmp_path / "a cache", made, made.benchmarks["made_up"].file)


def test_parts_are_downloaded_joined_and_kept(index: Index) -> None:
    path = pinned_file(index.file)
    assert path.read_bytes() == FIRST + SECOND
    assert index.cached == ["data.bin", "halfone-1.0.whl", "halftwo-1.0.whl"]
    shutil.rmtree(index.wheels)
    assert pinned_file(index.file) == path, "a second run needs no package index"
    path.unlink()
    assert pinned_file(index.file).read_bytes() == FIRST + SECOND, "the wheels are kept"


def test_what_rots_in_the_cache_is_made_again(index: Index) -> None:
    path = pinned_file(index.file)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    wheel = next(index.cache.rglob("halfone-1.0.whl"))
    wheel.write_bytes(b"rotten")
    assert pinned_file(index.file).read_bytes() == FIRST + SECOND
    assert wheel.read_bytes() != b"rotten"


def test_a_damaged_download_is_named_and_removed(index: Index) -> None:
    wheel = index.wheels / "halftwo-1.0-py3-none-any.whl"
    expected = _sha(wheel.read_bytes())
    _wheel(index.wheels, "halftwo", "halftwo/data.part1", b"something else")
    found = _sha(wheel.read_bytes())
    with pytest.raises(
        SourceError, match=f"halftwo 1.0 is damaged .*expected sha256 {expected}.*found {found}.*run again"
    ):
        pinned_file(index.file)
    assert index.cached == ["halfone-1.0.whl"], "the good half stays, nothing broken does"


def test_a_file_inside_that_is_not_the_pinned_one_is_refused(index: Index) -> None:
    wrong = index.file.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(SourceError, match=r"data\.bin is damaged or was replaced"):
        pinned_file(wrong)
    assert "data.bin" not in index.cached


def test_pip_says_why_in_one_sentence(index: Index) -> None:
    shutil.rmtree(index.wheels)
    index.wheels.mkdir()
    with pytest.raises(
        SourceError, match=r"halfone==1.0 .* could not be downloaded by pip: .*halfone==1.0.*Check the network"
    ):
        pinned_file(index.file)
    assert index.cached == []


def test_a_disk_that_is_too_small_is_told_before_pip_runs(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(index.wheels)._replace(free=1_000_000)
    monkeypatch.setattr(storage_module.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(download.subprocess, "run", lambda *a, **k: pytest.fail("pip was started"))
    with pytest.raises(ResourceError, match=r"The package halfone 1.0 needs 67 MB .*1 MB are free.*SPARSEKD_CACHE"):
        pinned_file(index.file)


def test_what_a_killed_run_left_is_in_nobodys_way(index: Index) -> None:
    left = index.cache / "wheels" / "halfone.partial"
    left.mkdir(parents=True)
    (left / "halfone-1.0-py3-none-any.whl").write_bytes(b"half a download")
    assert pinned_file(index.file).read_bytes() == FIRST + SECOND
    assert not left.exists()


def test_two_at_once_download_once(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    original = download.subprocess.run

    def run(command: list[str], **settings: Any) -> Any:
        started.append(command[-1])
        return original(command, **settings)

    monkeypatch.setattr(download.subprocess, "run", run)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(pinned_file(index.file).read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [FIRST + SECOND] * 3
    assert sorted(started) == ["halfone==1.0", "halftwo==1.0"]


def test_benchmarks_are_copied_and_others_passed_over(index: Index, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []
    out.mkdir()
    facts = fetch_benchmarks(["made_up", "mmlu"], out, say=said.append)
    assert facts == {"made_up": {"file": "data.bin", "rows": 3, "sha256": index.file.sha256, "licence": "mit"}}
    assert (out / "data.bin").read_bytes() == FIRST + SECOND
    assert [p.name for p in out.iterdir()] == ["data.bin"]
    assert any(line.startswith("mmlu: not packaged") for line in said)
