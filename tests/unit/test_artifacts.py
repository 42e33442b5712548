"""An artifact is whole or not there, says what it holds, and can be read by whom the user lets read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sparsekd.artifacts import MANIFEST, Artifact, writing
from sparsekd.errors import ArtifactError


def make(out: Path, text: str = "first") -> None:
    with writing(out, "prune", {"width": 0.75}, {"model": "abc"}) as draft:
        (draft.path / "inner").mkdir()
        (draft.path / "inner/a.txt").write_text(text)
        draft.facts["layers"] = 2


def test_an_artifact_reads_back(tmp_path: Path) -> None:
    make(tmp_path / "pruned")
    artifact = Artifact.read(tmp_path / "pruned")
    assert artifact.facts == {"layers": 2}
    assert artifact.manifest.inputs == {"model": "abc"}
    assert list(artifact.manifest.files) == ["inner/a.txt"]


def test_equal_runs_have_equal_bytes(tmp_path: Path) -> None:
    make(tmp_path / "one")
    make(tmp_path / "two")
    assert (tmp_path / "one" / MANIFEST).read_bytes() == (tmp_path / "two" / MANIFEST).read_bytes()


def test_an_error_leaves_the_earlier_artifact(tmp_path: Path) -> None:
    make(tmp_path / "pruned")
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "pruned", "prune", {}, {}) as draft:
        (draft.path / "half.txt").write_text(str(1 // 0))
    assert Artifact.read(tmp_path / "pruned").facts == {"layers": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_what_stood_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    make(tmp_path / "pruned")
    with writing(tmp_path / "pruned", "prune", {}, {}) as draft:
        (draft.path / "b.txt").write_text("second")
    assert {path.name for path in (tmp_path / "pruned").iterdir()} == {"b.txt", MANIFEST}


@pytest.mark.parametrize("left", ["", "FIRST", None])
def test_changed_and_missing_files_are_named(tmp_path: Path, left: str | None) -> None:
    make(tmp_path / "pruned")
    file = tmp_path / "pruned/inner/a.txt"
    file.unlink() if left is None else file.write_text(left)
    with pytest.raises(ArtifactError, match=r"a\.txt"):
        Artifact.read(tmp_path / "pruned")


def test_no_and_foreign_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not there"):
        Artifact.read(tmp_path / "pruned")
    make(tmp_path / "pruned")
    manifest = tmp_path / "pruned" / MANIFEST
    later = json.loads(manifest.read_text()) | {"schema_version": 99}
    manifest.write_text(json.dumps(later))
    with pytest.raises(ArtifactError, match="schema version 99"):
        Artifact.read(tmp_path / "pruned")
    manifest.write_text("{}")
    with pytest.raises(ArtifactError, match="no manifest of ours"):
        Artifact.read(tmp_path / "pruned")


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_weights_can_be_read_by_others(tmp_path: Path) -> None:
    with writing(tmp_path / "model", "distill", {}, {}) as draft:
        save_file({"weight": torch.zeros(2)}, draft.path / "model.safetensors")
    assert (tmp_path / "model/model.safetensors").stat().st_mode & 0o777 == 0o644
