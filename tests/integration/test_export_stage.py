"""The stage export, in a process of its own on a tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsekd.artifacts import Artifact, writing
from sparsekd.calibration.packing import CalibrationSet, pack
from sparsekd.config import Teacher
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.evaluation.perplexity import document_sums
from sparsekd.models import load_model, load_tokenizer
from tests.runtimes import with_llama_cpp
from tests.small_benchmarks import write_benchmarks
from tests.tiny_checkout import HOUSE, environment
from tests.tiny_models import make_tokenizer, write_model


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the stage reads: dvc.yaml, params.yaml, data/distilled."""
    (tmp_path / "dvc.yaml").write_text((HOUSE / "dvc.yaml").read_text())
    dense = tmp_path / "dense"
    write_model(dense, make_tokenizer(), "llama", intermediate_size=64)
    with writing(tmp_path / "data/raw/model", "fetch-model", {}, {}) as draft:
        shutil.copytree(dense, draft.path, dirs_exist_ok=True)
    model, tokenizer = load_model(dense), load_tokenizer(dense)
    texts = ["the river sees a small house " * 12, "bread and music near the old tree " * 9, "light " * 80]
    packed = pack([tokenizer(f"{n} {text}")["input_ids"] for n, text in enumerate(texts)], 32, 256)
    with writing(tmp_path / "data/raw/benchmarks", "fetch-benchmarks", {}, {}) as draft:
        write_benchmarks(draft.path, rows=12)
    data = CalibrationSet(packed, {"wiki": packed}, {"wiki": packed})
    with writing(tmp_path / "data/calibration", "calibrate", {}, {}) as draft:
        data.save(draft.path)
    with writing(tmp_path / "data/teacher", "teacher", {}, {}) as draft:
        write_teacher_cache(model, data, draft.path, Teacher(batch_size=2))
    _distilled(tmp_path, "llama", intermediate_size=32)
    return tmp_path


def _distilled(root: Path, model_type: str, **sizes: int) -> None:
    with writing(root / "data/distilled", "distill", {}, {}) as draft:
        write_model(draft.path, make_tokenizer(), model_type, **sizes)


def run(root: Path, formats: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    sections = {"export": {"formats": formats, **settings}, "runtime": {"threads": 1}, "evaluate": {"tasks": ["sciq"]}}
    (root / "params.yaml").write_text(yaml.safe_dump(sections))
    path = {"PYTHONPATH": str(HOUSE)}
    return subprocess.run(
        [sys.executable, "-m", "tasks.export"], cwd=root, env=environment() | path, capture_output=True, text=True
    )


@pytest.mark.slow
@with_llama_cpp
def test_the_files_are_written_and_named_in_the_manifest(checkout: Path) -> None:
    done = run(checkout, ["gguf-f16", "gguf-q8_0"], compare=[])
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
def test_both_models_are_compared_with_dense_on_test_text(checkout: Path) -> None:
    done = run(checkout, ["gguf-f16"], compare=["q8_0"], compare_tokens=256, compare_rows=8, compare_rounds=2)
    assert done.returncode == 0, done.stderr
    data = checkout / "data"
    rows = {(row["model"], row["type"]): row for row in json.loads((data / "export/quantised.json").read_text())}
    assert rows.keys() == {("dense", "q8_0"), ("distilled", "f16"), ("distilled", "q8_0")}
    assert rows["distilled", "q8_0"]["bytes"] < rows["dense", "q8_0"]["bytes"]
    assert rows["dense", "q8_0"]["kl"]["wiki"]["value"] < 0.01
    packed, cache = CalibrationSet.load(data / "calibration").test["wiki"], TeacherCache.open(data / "teacher")
    sums = document_sums(load_model(data / "distilled"), packed, 4, cache, "test-wiki")
    agreement = sums.agreement(0)
    assert agreement is not None
    found = rows["distilled", "f16"]
    assert found["kl"]["wiki"]["value"] == pytest.approx(agreement["kl"].value, rel=0.02)
    assert found["perplexity"]["wiki"]["value"] == pytest.approx(sums.perplexity(0).value, rel=0.01)
    assert {row["tasks"]["sciq"]["n"] for row in rows.values()} == {8}
    assert all(row["speed"]["prefill"] > row["speed"]["decode"] > 0 for row in rows.values())


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
