"""The stage export, in a process of its own on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsekd.artifacts import Artifact, writing
from tests.runtimes import with_llama_cpp
from tests.tiny_checkout import HOUSE, environment
from tests.tiny_models import make_tokenizer, write_model


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the stage reads: dvc.yaml, params.yaml, data/distilled."""
    (tmp_path / "dvc.yaml").write_text((HOUSE / "dvc.yaml").read_text())
    _distilled(tmp_path, "llama")
    return tmp_path


def _distilled(root: Path, model_type: str) -> None:
    with writing(root / "data/distilled", "distill", {}, {}) as draft:
        write_model(draft.path, make_tokenizer(), model_type)


def run(root: Path, formats: list[str]) -> subprocess.CompletedProcess[str]:
    (root / "params.yaml").write_text(yaml.safe_dump({"export": {"formats": formats}, "runtime": {"threads": 1}}))
    path = {"PYTHONPATH": str(HOUSE)}
    return subprocess.run(
        [sys.executable, "-m", "tasks.export"], cwd=root, env=environment() | path, capture_output=True, text=True
    )


@pytest.mark.slow
@with_llama_cpp
def test_the_files_are_written_and_named_in_the_manifest(checkout: Path) -> None:
    done = run(checkout, ["gguf-f16", "gguf-q8_0"])
    assert done.returncode == 0, done.stderr
    assert "model-q8_0.gguf: " in done.stdout
    found = Artifact.read(checkout / "data/export")
    assert found.manifest.files.keys() == {"model-f16.gguf", "model-q8_0.gguf", "export.json"}
    assert found.facts["exports"] == {
        name: found.manifest.files[name].sha256 for name in ("model-f16.gguf", "model-q8_0.gguf")
    }
    report = json.loads((checkout / "data/export/export.json").read_text())
    assert report["files"]["model-f16.gguf"]["compared"]["difference"] < 0.1


@pytest.mark.slow
@with_llama_cpp
def test_a_layout_that_the_converter_lacks_is_a_warning(checkout: Path) -> None:
    _distilled(checkout, "phi3")  # of which it wants a tokenizer.model
    done = run(checkout, ["gguf-f16"])
    assert done.returncode == 0, done.stderr
    found = Artifact.read(checkout / "data/export")
    assert found.facts["exports"] == {}
    assert "Missing" in found.facts["warnings"][0]
    assert not found.manifest.files


def test_nothing_to_write_is_an_empty_artifact_and_loads_no_torch(checkout: Path) -> None:
    (checkout / "torch.py").write_text("raise SystemExit('torch was loaded')")
    done = run(checkout, [])
    assert done.returncode == 0, done.stderr
    found = Artifact.read(checkout / "data/export")
    assert (found.facts, dict(found.manifest.files)) == ({"exports": {}}, {})
