"""The stage report as dvc.yaml runs it: a process of its own in a checkout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekd.artifacts import Artifact
from tests.made_up_run import MadeUpRun

CHECKOUT = Path(__file__).parent.parent.parent


@pytest.fixture
def checkout(tmp_path):
    """A directory with the graph, parameters and every input of the stage."""
    shutil.copy(CHECKOUT / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text("report: {name: tiny-and-quick}\n")
    MadeUpRun(tmp_path / "data").write()
    return tmp_path


def run(directory):
    command = [sys.executable, "-m", "tasks.report"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=100, check=False)


def test_stage_fills_data_report(checkout):
    done = run(checkout)
    assert done.returncode == 0, done.stderr
    report = Artifact.read(checkout / "data" / "report")
    summary = json.loads((report.path / "summary.json").read_text())
    assert summary["model"]["name"] == "tiny-and-quick"
    assert report.facts["verdict"] == summary["verdict"]
    assert report.facts["verdict"] in done.stdout
    assert "note: winogrande" in done.stdout
    assert {"index.html", "metrics.json", "README.md", "tasks.png"} <= report.manifest.files.keys()
    assert set(report.manifest.inputs) >= {"data/raw/model", "data/evaluation/dense", "data/calibration"}


def test_damaged_input_ends_with_a_sentence_and_keeps_the_report(checkout):
    assert run(checkout).returncode == 0
    before = (checkout / "data" / "report" / "summary.json").read_bytes()
    (checkout / "data" / "benchmark" / "benchmark.json").write_text("{}")
    done = run(checkout)
    assert done.returncode == 2
    assert "benchmark.json is not what" in done.stderr
    assert "Traceback" not in done.stderr
    assert (checkout / "data" / "report" / "summary.json").read_bytes() == before
