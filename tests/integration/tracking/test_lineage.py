"""`sparsekd lineage`: every way to name a model or run, and the whole chain."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

from flows.workspaces.workspace import experiments
from sparsekd.artifacts import Artifact, hash_file
from tasks.lineage.repository import CommitTree
from tasks.lineage.store import Store
from tasks.state import write_json
from tasks.track import track
from tests.traced_project import EDITED, Traced, lineage, values
from tests.tracked_project import REPOSITORY, closed_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),  # MLflow's, at its import
]
LINKS = (
    "registry version",
    "MLflow run",
    "experiment and commit",
    "dvc.lock",
    "exports",
    "source model",
    "texts",
    "benchmarks",
    "code",
    "libraries",
)


# What may be asked for


@pytest.mark.parametrize(
    ("form", "version", "run"),
    [
        ("models:/tiny/1", "1", "half"),
        ("tiny/1", "1", "half"),
        ("tiny/2", "2", "plain"),
        ("models:/tiny/latest", "2", "plain"),
        ("models:/tiny@champion", "1", "half"),
        ("tiny@champion", "1", "half"),
        ("models:/tiny", "2", "plain"),
        ("tiny", "2", "plain"),
        ("half", "1", "half"),
        ("{plain_name}", "2", "plain"),
        ("{half}", "1", "half"),
        ("{plain}", "2", "plain"),
        ("{half:.6}", "1", "half"),
        ("{plain:.12}", "2", "plain"),
        ("flow-plain", "2", "plain"),
    ],
)
def test_every_way_to_name_a_model_or_run(traced: Traced, form: str, version: str, run: str) -> None:
    name = traced.store.get_run(traced.plain).info.run_name
    found = values(form.format(half=traced.half, plain=traced.plain, plain_name=name))
    assert (found["registry_version"]["name"], found["registry_version"]["version"]) == ("tiny", version)
    assert found["mlflow_run"]["id"] == getattr(traced, run)
    assert found["experiment"]["name"] == ("half" if run == "half" else None)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("tinny", "'tinny' is no registered model, version or run in MLflow at .*nearest names are tiny"),
        ("hal", "nearest names are half"),
        ("models:/tiny/9", "Registered model tiny has no version 9; it has 2, 1."),
        ("models:/tiny@nobody", "tiny has the alias 'nobody'; name a version: tiny/2"),
        ("models:/other/1", "'models:/other/1' is no registered model"),
        ("0123456789abcdef0123456789abcdef", "is no registered model, version or run"),
        ("a'b\"c", "is no registered model, version or run"),
        ("", "'' is no registered model"),
        ("../half", "is no registered model"),
        ("failed-one", r"Run failed-one failed \(the loss is NaN\), so there is no model of it to trace"),
    ],
)
def test_what_is_unknown_is_one_sentence_and_exit_code_2(traced: Traced, form: str, says: str) -> None:
    record = traced.root / ".sparsekd/runs/failed-one/run.json"
    write_json(record, {"name": "failed-one", "state": "failed", "reason": "the loss is NaN"})
    result = lineage(form)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(f"error: .*{says}.*\n", result.stderr), result.stderr


def test_a_prefix_that_two_runs_share_names_both(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Store.runs

    def runs(self: Store, key: str = "", comparison: str = "=", value: str = "") -> list[Any]:
        return search(self) if comparison == "LIKE" else []  # as if all ids began alike

    monkeypatch.setattr(Store, "runs", runs)
    result = lineage("abcdef")
    assert result.exit_code == 2
    assert "'abcdef' begins the ids of 2 runs" in result.stderr
    assert traced.half in result.stderr
    assert traced.plain in result.stderr


def test_of_runs_with_one_name_the_newest_is_shown_and_the_others_named(traced: Traced) -> None:
    again = track(traced.root, "flow-again")  # nothing was computed: another run of the same outputs
    try:
        found = values(str(traced.store.get_run(traced.plain).info.run_name))
        assert found["mlflow_run"]["id"] == again.run_id
        assert found["mlflow_run"]["same_as"] == traced.plain
        assert found["registry_version"]["run_id"] == traced.plain, "the version is of the first one"
        assert traced.plain in found["notes"][0]
        assert lineage(str(again.run_id), "--verify").exit_code == 0
    finally:
        traced.store.delete_run(again.run_id)
        assert values(str(again.run_id))["mlflow_run"]["status"] == "FINISHED, deleted"


# The chain


def test_the_whole_chain_is_printed_in_order(traced: Traced) -> None:
    result = lineage("half")
    assert result.exit_code == 0, result.stderr
    text = result.stdout
    assert not set("\r\x1b") & set(text), "plain in a pipe"
    assert re.findall(r"^(?! )(?!note)(.+)$", text, re.MULTILINE) == list(LINKS)
    assert text.count("look further") == len(LINKS)
    blocks = dict(zip(LINKS, text.split("\n\n"), strict=False))
    kept = experiments(traced.root)["half"]
    dense = Artifact.read(traced.root / "data/raw/model").manifest
    expected = {
        "registry version": ["tiny, version 1, alias champion", traced.half],
        "MLflow run": ["half, FINISHED", traced.half, "flow-half"],
        "experiment and commit": [f"half, commit {kept.overlay}", f"{kept.commit}, with uncommitted changes"],
        "dvc.lock": [hash_file(traced.artifact(traced.half, "dvc.lock")), "fetch-model, fetch-texts"],
        "exports": ["model-f16.gguf", "e" * 64],
        "source model": ["smol (catalogue", "abc", dense.sha256(), dense.files["model.safetensors"].sha256],
        "texts": ["wiki", "calibration", "123", "sha256"],
        "benchmarks": ["arc_easy", "570 rows", "hellaswag"],
        "code": ["sparsekd/families.py", "sparsekd/sources"],
        "libraries": ["requirements.lock", traced.dependency(traced.half, "requirements.lock"), "torch", "all stages"],
    }
    for link, words in expected.items():
        for word in words:
            assert word in blocks[link], (link, word, blocks[link])
    assert re.search(rf"{EDITED} +md5 {traced.dependency(traced.half, EDITED)} +prune$", blocks["code"], re.MULTILINE)


def test_json_has_the_whole_chain(traced: Traced) -> None:
    found = values("half")
    lock = traced.artifact(traced.half, "dvc.lock")
    texts = Artifact.read(traced.root / "data/raw/texts").manifest
    assert (
        found["registry_version"]["sha256"] == traced.store.get_model_version("tiny", "1").tags["sparsekd.model_sha256"]
    )
    assert found["dvc_lock"]["sha256"] == found["dvc_lock"]["recorded_sha256"] == hash_file(lock)
    assert found["texts"][0]["sha256"] == texts.files["wiki.jsonl"].sha256
    assert found["experiment"]["dirty"] is True
    code = {entry["path"]: entry for entry in found["code"]}
    deps = {dep["path"] for stage in traced.lock(traced.half).values() for dep in stage["deps"]}
    assert set(code) == {path for path in deps if not path.startswith("data/")} - {"requirements.lock"}
    assert code["sparsekd/sources"]["stages"] == ["fetch-model", "fetch-texts", "fetch-benchmarks"]
    assert found["requirements"][0]["md5"] == traced.dependency(traced.half, "requirements.lock")
    assert list(found["libraries"]["torch"]) == [traced.versions["torch"]]
    assert "verification" not in found


def test_dvcs_hashes_come_out_of_the_commit_for_names_that_are_hard(traced: Traced) -> None:
    """Nested, hidden, with spaces and umlauts, empty; and what two .dvcignore files leave out although git has it."""
    tree = CommitTree(traced.root, str(experiments(traced.root)["half"].overlay))
    folder = "sparsekd/sources"
    assert tree.read(f"{folder}/gone.old")
    assert tree.read(f"{folder}/kept/local.tmp")
    found = tree.hash(folder)
    assert found is not None
    assert (found.md5, found.files) == (traced.dependency(traced.half, folder), 7)
    assert tree.hash("sparsekd/nowhere") is None


def test_an_experiment_without_mlflow_begins_the_chain(traced: Traced) -> None:
    aside = traced.root / "mlflow.aside"
    (traced.root / "mlflow").rename(aside)
    try:
        result = lineage("half", "--verify")
        assert result.exit_code == 0, result.output
        assert "none: MLflow knows no run of it" in result.stdout
        assert "The chain begins at the experiment: there is no MLflow database here." in result.stdout
        assert "verified: every link holds" in result.stdout
        assert not (traced.root / "mlflow").exists(), "none is made by looking"
    finally:
        shutil.rmtree(traced.root / "mlflow", ignore_errors=True)
        aside.rename(traced.root / "mlflow")


def test_a_store_that_does_not_answer_costs_seconds(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    begun = time.monotonic()
    result = lineage("half")
    assert result.exit_code == 2
    assert re.search(r"error: MLflow at http\S+ does not answer \(.+\); start it, or correct", result.stderr)
    assert time.monotonic() - begun < 20


def test_nothing_heavy_loads_before_a_store_is_asked() -> None:
    heavy = ("mlflow", "torch", "prefect", "dvc")
    code = f"import sys, flows.commands.lineage; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
