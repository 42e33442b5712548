"""Tracking: what a finished compression looks like in MLflow, in an outage, and in the registry."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsekd.artifacts import Artifact, hash_file, writing
from sparsekd.errors import ArtifactError
from tasks.graph import read_graph
from tasks.process import select
from tasks.track import TrackResult, main, track
from tasks.tracking import pending, registry
from tasks.tracking.links import dvc_objects, place
from tasks.tracking.record import collect
from tasks.tracking.store import connect, create_database, resolve_uri

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's, at its import
REPOSITORY = Path(__file__).parents[2]
CURVE = """step,tokens,loss,kl,ce,gradient_norm,learning_rate,validation_kl,validation_ce
0,512,3.5,1.0,6.0,2.0,0.0001,,
1,1024,3.25,0.75,5.75,1.5,0.0003,0.8,5.9
2,1536,3.0,0.5,5.5,1.25,0.0,,
"""


@dataclass(frozen=True)
class Project:
    """A checkout whose stages have all run: the real dvc.yaml, made-up outputs."""

    root: Path

    def run(
        self, width: float = 0.75, weights: bytes = b"weights", checkpoint: Path | None = None, kl: float = 0.5
    ) -> None:
        """What `dvc repro` leaves: every stage's output with its manifest, and dvc.lock."""
        values = {"preset": "smoke", "prune": {"width": width}, "report": {"name": "tiny"}}
        (self.root / "params.yaml").write_text(yaml.safe_dump(values))
        lock: dict[str, Any] = {"schema": "2.0", "stages": {}}
        for stage in read_graph(self.root).values():
            out = self.root / stage.out
            inputs = {dep: Artifact.read(self.root / dep).manifest.sha256() for dep in stage.data_deps}
            with writing(out, stage.name, select(values, stage.params), inputs) as draft:
                self._fill(stage.name, draft.path, draft.facts, weights, checkpoint, kl)
            digest = Artifact.read(out).manifest.sha256()[:32]
            lock["stages"][stage.name] = {"outs": [{"path": str(stage.out), "md5": f"{digest}.dir"}]}
        (self.root / "dvc.lock").write_text(yaml.safe_dump(lock))

    def _fill(
        self, stage: str, out: Path, facts: dict[str, Any], weights: bytes, checkpoint: Path | None, kl: float
    ) -> None:
        if stage == "fetch-texts":
            (out / "wiki.jsonl").write_text('{"text": "a"}\n')
            facts["corpora"] = {"wiki": {"role": "calibration", "documents": 1, "characters": 1, "source": "here"}}
        elif stage == "calibrate":
            facts["tokens"] = {"calibration": 1536}
        elif stage == "distill":
            if checkpoint:
                shutil.copytree(checkpoint, out, dirs_exist_ok=True)
            else:
                (out / "config.json").write_text('{"model_type": "llama", "dtype": "bfloat16"}')
                (out / "tokenizer.json").write_text("{}")
                (out / "model.safetensors").write_bytes(weights)
            (out / "README.md").write_text("short card")
            (out / "curve.csv").write_text(CURVE)
        elif stage == "prune":
            (out / "layers.csv").write_text("layer,error_before,error_after\n0,0.2,0.1\n")
        elif stage == "report":
            (out / "index.html").write_text("<html>")
            (out / "loss.png").write_bytes(b"png")
            (out / "README.md").write_text("---\nbase_model: x\n---\n# The card\n")
            (out / "metrics.json").write_text(json.dumps({"kl": kl, "total_reduction": 0.25}))
            (out / "summary.json").write_text(json.dumps(summary(kl)))
        (out / "data").write_text(stage)

    @property
    def weights(self) -> Path:
        return self.root / "data/distilled/model.safetensors"

    @property
    def database(self) -> str:
        return resolve_uri(self.root)

    @property
    def marker(self) -> Path:
        return pending.marker_path(self.root)


def summary(kl: float) -> dict[str, Any]:
    """A summary.json with one of everything that has a shape of its own."""
    task = {"metric": "acc", "value": 0.5, "stderr": 0.03, "n": 200, "n_total": 570, "chance": 0.25, "in_mean": True}
    task["difference"] = {"value": -0.02, "low": -0.05, "high": None}
    variant = {
        "parameters": {"total": 100, "non_embedding": 80, "ffn": 60},
        "bytes": 200,
        "dtype": "bfloat16",
        "perplexity": {"wiki": {"value": 36.5, "low": 35.0, "high": 38.0}},
        "agreement": {"wiki": {"kl": {"value": kl, "low": 0.4, "high": 0.6}}},
        "tasks": {"arc_easy": task},
    }
    return {
        "schema_version": 1,
        "model": {
            "name": "tiny",
            "label": "Tiny",
            "source": {"name": "smol", "revision": "abc", "quantization": "Q4_1"},
        },
        "reduction": {"width": 0.25, "ffn": 0.25, "non_embedding": 0.2, "total": 0.15},
        "verdict": "15 % smaller.",
        "variants": {"dense": variant, "pruned": variant, "distilled": variant},
        "warnings": [],
    }


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Project:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "a checkout"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    shutil.copy(empty_database, root / "mlflow")
    project = Project(root)
    project.run()
    return project


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def runs(uri: str, experiment: str = "sparsekd") -> list[Any]:
    store = client(uri)
    return list(store.search_runs([store.get_experiment_by_name(experiment).experiment_id]))


def versions(uri: str) -> list[Any]:
    return sorted(client(uri).search_model_versions("name = 'tiny'"), key=lambda version: int(version.version))


def stored(uri: str, version: str = "1") -> Path:
    """The checkpoint directory behind a version in a local store."""
    found = registry.local_path(client(uri).get_model_version("tiny", version).source)
    assert found is not None
    return found / "model"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def command(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m tasks.track` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-m", "tasks.track", *arguments]
    return subprocess.Popen(line, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# What a run shows


def test_a_run_shows_parameters_results_curve_inputs_and_artifacts(project: Project) -> None:
    result = track(project.root, "flow-1", durations={"prune": 12.5, "evaluate@dense": 3.0, "total": 20.0})

    assert result.warning is None, result.warning
    assert result.run_id is not None
    run = client(project.database).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 20_000
    assert run.data.params["prune.width"] == "0.75"
    assert run.data.params["distill.alpha"] == "0.5", "a default is a resolved parameter too"
    assert json.loads(run.data.params["texts.sources"]) == ["wiki", "c4"]
    figures = run.data.metrics
    assert figures["compression/kl"] == 0.5
    assert figures["compression/total_reduction"] == 0.25
    assert min(figures).startswith("compression/"), "MLflow sorts groups by name: the few that matter come first"
    assert max(name.count("/") for name in figures) == 2, "a section of charts for each group: no more than two levels"
    assert figures["distilled/perplexity/wiki"] == 36.5
    assert figures["distilled/perplexity/wiki_high"] == 38.0
    assert figures["distilled/agreement/wiki_kl_low"] == 0.4
    assert figures["pruned/tasks/arc_easy"] == 0.5
    assert figures["pruned/tasks/arc_easy_difference_low"] == -0.05
    assert "pruned/tasks/arc_easy_difference_high" not in figures
    assert "pruned/tasks/arc_easy_in_mean" not in figures
    assert figures["reduction/ffn"] == 0.25
    assert figures["seconds/prune"] == 12.5
    assert figures["seconds/evaluate/dense"] == 3.0
    tags = run.data.tags
    assert tags["mlflow.note.content"].startswith("15 % smaller.")
    assert "#/models/tiny/versions/1" in tags["mlflow.note.content"]
    assert tags["prefect.flow_run_id"] == "flow-1"
    assert tags["dvc.lock.sha256"] == hash_file(project.root / "dvc.lock")
    assert tags["model.source"] == "smol"
    assert tags["model.source.quantization"] == "Q4_1"


def test_the_whole_curve_keeps_its_steps(project: Project) -> None:
    result = track(project.root)

    history = client(project.database).get_metric_history(result.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.5), (1, 3.25), (2, 3.0)]
    validation = client(project.database).get_metric_history(result.run_id, "validation/kl")
    assert [(point.step, point.value) for point in validation] == [(1, 0.8)]


def test_more_points_than_one_batch_takes_are_all_logged(project: Project) -> None:
    record = collect(project.root)
    points = [replace(record.metrics[-1], key="train/many", step=step) for step in range(2500)]
    from tasks import track as module

    store = module._open(project.root, project.database)
    run = module._create(store, record)
    module._log_values(store.client, run.info.run_id, replace(record, metrics=points))

    assert len(client(project.database).get_metric_history(run.info.run_id, "train/many")) == 2500


def test_datasets_carry_digest_and_context_and_resolve(project: Project) -> None:
    import mlflow.data

    result = track(project.root)

    inputs = client(project.database).get_run(result.run_id).inputs.dataset_inputs
    found = {item.dataset.name: item for item in inputs}
    assert set(found) == {"wiki", "calibration"}
    texts = Artifact.read(project.root / "data/raw/texts").manifest
    assert found["wiki"].dataset.digest == texts.files["wiki.jsonl"].sha256[:12]
    assert found["wiki"].tags[0].value == "calibration"
    assert mlflow.data.get_source(found["wiki"].dataset).uri == "data/raw/texts/wiki.jsonl"
    assert json.loads(found["calibration"].dataset.profile) == {"tokens": {"calibration": 1536}}


def test_report_and_what_repeats_the_run_are_artifacts(project: Project) -> None:
    result = track(project.root)

    store = client(project.database)
    names = {
        item.path for folder in ("", "report", "manifests") for item in store.list_artifacts(result.run_id, folder)
    }
    assert {"report/index.html", "report/loss.png", "report/summary.json"} <= names
    assert {"params.yaml", "dvc.lock", "curves", "manifests/distilled.json", "manifests/evaluation-dense.json"} <= names
    assert store.get_run(result.run_id).info.artifact_uri.startswith((project.root / "mlflow/artifacts").as_uri())


def test_git_commit_is_dirty_for_code_and_clean_for_params_and_lock(project: Project) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
        line = ["git", *identity, *arguments]
        return subprocess.run(line, cwd=project.root, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "dvc.yaml", "params.yaml", "dvc.lock")
    git("commit", "-qm", "x")
    project.run(width=0.5)  # changes params.yaml and dvc.lock
    tags = collect(project.root).tags
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["git.dirty"] == "false"

    (project.root / "sparsekd").mkdir()
    (project.root / "sparsekd/new.py").write_text("")
    assert collect(project.root).tags["git.dirty"] == "true"


def test_without_git_there_is_no_commit_tag(project: Project) -> None:
    assert "git.commit" not in collect(project.root).tags


# One run a compression


def test_the_same_outputs_are_logged_once(project: Project) -> None:
    first, second = track(project.root), track(project.root)

    assert second == first
    assert len(runs(project.database)) == 1
    assert len(versions(project.database)) == 1
    assert not project.marker.exists()
    assert not pending.waiting(project.root)


def test_a_flow_run_that_found_all_cached_is_visible_and_shares_the_version(project: Project) -> None:
    first = track(project.root, "flow-1")
    second = track(project.root, "flow-2")

    assert second.run_id != first.run_id
    assert second.model_version == first.model_version == "1"
    tags = client(project.database).get_run(second.run_id).data.tags
    assert tags["sparsekd.same_as"] == first.run_id
    assert tags["prefect.flow_run_id"] == "flow-2"
    assert len(versions(project.database)) == 1
    assert track(project.root, "flow-2") == second
    assert track(project.root).run_id == second.run_id, "no flow run asked for: the latest finished one"


def test_other_outputs_are_another_run_and_version_only_for_other_bytes(project: Project) -> None:
    track(project.root)
    project.run(kl=0.25)  # evaluated anew, the same model
    assert track(project.root).model_version == "1"
    project.run(kl=0.25, weights=b"others")
    assert track(project.root).model_version == "2"
    assert len(runs(project.database)) == 3


def test_a_version_whose_files_are_gone_is_not_reused(project: Project) -> None:
    track(project.root, "flow-1")
    shutil.rmtree(stored(project.database).parent)

    assert track(project.root, "flow-2").model_version == "2"
    assert (stored(project.database, "2") / "model.safetensors").read_bytes() == b"weights"


# Outputs that do not belong together


def test_parameters_edited_after_the_run_are_refused(project: Project) -> None:
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("0.75", "0.5"))
    with pytest.raises(ArtifactError, match=r"data/pruned was made with another prune than params\.yaml has now"):
        track(project.root)


def test_a_report_of_another_model_is_refused(project: Project) -> None:
    manifest = project.root / "data/distilled/manifest.json"
    manifest.write_text(manifest.read_text().replace('"versions"', ' "versions"').replace('"distill"', '"distil"'))
    with pytest.raises(ArtifactError, match=r"was made from another data/distilled"):
        track(project.root)


def test_weights_changed_after_their_stage_are_refused(project: Project) -> None:
    project.weights.write_bytes(b"WEIGHTS")
    with pytest.raises(ArtifactError, match="is not what its manifest says"):
        track(project.root)
    assert not runs(project.database)
    assert not pending.waiting(project.root)


def test_unfinished_outputs_are_named(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(project.root / "data/report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        assert main([]) == 2
    assert "data/report is not there" in capsys.readouterr().err


# Outages


def test_a_server_that_is_down_costs_a_warning_and_loses_nothing(project: Project) -> None:
    import mlflow  # noqa: F401 - its import is not what is timed

    started = time.monotonic()
    lost = track(project.root, "flow-1", f"http://name:secret@127.0.0.1:{closed_port()}", {"prune": 1.0})
    assert time.monotonic() - started < 5
    assert lost.run_id is None
    assert lost.model_version is None
    assert "onnection refused" in (lost.warning or "")
    assert "secret" not in f"{lost}"
    waiting = json.loads(project.marker.read_text())
    assert waiting["pending"][0]["id"] == collect(project.root, "flow-1").id

    project.run(width=0.5, weights=b"next")  # the next run replaces everything in data/
    result = track(project.root, "flow-2")

    assert result.warning is None
    assert not project.marker.exists()
    assert not pending.waiting(project.root)
    found = {run.data.tags["prefect.flow_run_id"]: run for run in runs(project.database)}
    assert set(found) == {"flow-1", "flow-2"}
    assert found["flow-1"].data.params["prune.width"] == "0.75"
    assert found["flow-1"].data.metrics["seconds/prune"] == 1.0
    assert (stored(project.database, "1") / "model.safetensors").read_bytes() == b"weights"
    assert (stored(project.database, "2") / "model.safetensors").read_bytes() == b"next"


def test_a_server_that_hangs_costs_seconds(project: Project) -> None:
    import mlflow  # noqa: F401

    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        result = track(project.root, uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 10
    assert result.run_id is None
    assert project.marker.exists()


@pytest.mark.parametrize("blocked", ["file", "garbage"])
def test_a_database_that_cannot_be_used_costs_seconds(project: Project, blocked: str) -> None:
    import mlflow  # noqa: F401

    folder = project.root / "mlflow"
    shutil.rmtree(folder)
    if blocked == "file":
        folder.write_text("in the way")
    else:
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(b"no database at all" * 100)
    started = time.monotonic()
    result = track(project.root)
    assert time.monotonic() - started < 5
    assert result.run_id is None
    assert result.warning
    assert project.marker.exists()


@pytest.mark.parametrize("kind", [ConnectionError, KeyboardInterrupt])
def test_an_interruption_in_the_middle_is_completed_without_doubles(
    project: Project, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """A server that goes away, and a kill: everything but the model is logged when it happens."""

    def gone(*_: Any) -> None:
        raise kind("gone")

    monkeypatch.setattr(registry, "register", gone)
    if kind is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            track(project.root)
    else:
        assert track(project.root).run_id is None
        assert runs(project.database)[0].info.status == "FAILED"
    monkeypatch.undo()
    project.run(width=0.5, weights=b"next")
    track(project.root)

    found = {run.data.params["prune.width"]: run for run in runs(project.database)}
    assert len(runs(project.database)) == 2
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    history = client(project.database).get_metric_history(found["0.75"].info.run_id, "train/loss")
    assert [point.step for point in history] == [0, 1, 2]
    assert (stored(project.database, "1") / "model.safetensors").read_bytes() == b"weights"


def test_one_bad_record_keeps_nothing_else_from_being_logged(project: Project) -> None:
    bad = pending.pending_folder(project.root) / "bad"
    bad.mkdir(parents=True)
    (bad / "record.json").write_text("{}")
    result = track(project.root)
    assert result.run_id is not None
    assert "bad" in (result.warning or "")


def test_the_environment_is_left_as_it_was(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    track(project.root)
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")} == before


# Processes


@pytest.mark.slow
def test_processes_that_create_one_database_at_once_all_succeed(project: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "other")
    shutil.copytree(project.root, other.root)
    other.run(width=0.5, weights=b"other")
    uri = f"sqlite:///{tmp_path / 'shared' / 'mlflow.db'}"
    started = [command(root, "--uri", uri) for root in (project.root, other.root, project.root)]
    output = [process.communicate(timeout=110) for process in started]

    assert [process.returncode for process in started] == [0, 0, 0], output
    assert [error for _, error in output] == [""] * 3, "no warning, no log line"
    assert len(runs(uri)) == 2, "two checkouts, of which one was tracked twice"
    assert [int(version.version) for version in versions(uri)] == [1, 2]


def test_importing_the_task_loads_neither_mlflow_nor_torch() -> None:
    code = "import sys, tasks.track; sys.exit(any(n in sys.modules for n in ('mlflow', 'torch', 'prefect', 'dvc')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


# Bytes without copies


def test_as_root_or_without_reflinks_bytes_are_copied(project: Project, tmp_path: Path) -> None:
    track(project.root)
    file = stored(project.database) / "model.safetensors"
    assert file.stat().st_nlink == 1
    assert file.stat().st_ino != project.weights.stat().st_ino
    assert file.stat().st_mode & 0o222 == 0


def test_a_user_gets_read_only_hard_links_to_dvc_objects(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("tasks.tracking.links._reflink", lambda source, target: False)
    cache = project.root / "elsewhere"
    (project.root / ".dvc").mkdir()
    (project.root / ".dvc/config").write_text("[core]\n    analytics = false\n['remote \"x\"']\n    url = /x\n")
    (project.root / ".dvc/config.local").write_text('[cache]\n    dir = "../elsewhere"\n')
    dvc_object = cache / "files/md5/ab/cdef"
    dvc_object.parent.mkdir(parents=True)
    shutil.copy(project.weights, dvc_object)
    digest = Artifact.read(project.root / "data/distilled").manifest.sha256()[:32]
    listing = cache / "files/md5" / digest[:2] / f"{digest[2:]}.dir"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text(json.dumps([{"relpath": "model.safetensors", "md5": "abcdef"}, {"relpath": "gone", "md5": "x"}]))
    assert dvc_objects(project.root, "data/distilled") == {
        "model.safetensors": project.root / ".dvc/../elsewhere/files/md5/ab/cdef"
    }

    track(project.root)

    file = stored(project.database) / "model.safetensors"
    assert file.stat().st_ino == dvc_object.stat().st_ino
    assert file.stat().st_mode & 0o222 == 0
    assert (stored(project.database) / "config.json").stat().st_nlink == 1, "no object of it: copied"


def test_a_damaged_dvc_object_is_not_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("tasks.tracking.links._reflink", lambda source, target: False)
    source, damaged, target = tmp_path / "source", tmp_path / "object", tmp_path / "out/target"
    source.write_bytes(b"right")
    damaged.write_bytes(b"wrong")
    assert place(source, target, hash_file(source), damaged) == "copy"
    assert target.read_bytes() == b"right"
    assert damaged.read_bytes() == b"wrong"


# The registry, with a real model and a real server


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny random Llama checkpoints in bfloat16 with one real tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["hello world, how are you"] * 10, vocab_size=300, special_tokens=["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, **shape)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp(f"checkpoint{seed}")
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return folders[0], folders[1]


@dataclass(frozen=True)
class Server:
    """A tracking server started as mlflow/README.md says."""

    uri: str
    project: Project


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("served") / "a checkout"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    shutil.copy(REPOSITORY / "mlflow/server.env", root / "mlflow")
    create_database(root)
    port = closed_port()
    line = [str(Path(sys.executable).with_name("mlflow")), "--env-file", "mlflow/server.env", "server"]
    environment = {**os.environ, "MLFLOW_PORT": str(port)}
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(line, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(port, process, root / "server.log")
            yield Server(f"http://127.0.0.1:{port}", Project(root))
        finally:
            os.killpg(process.pid, 15)
            process.wait(20)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def load(uri: str, version: str, folder: Path) -> tuple[str, Any]:
    """The sha256 of a version's weights as a client of `uri` gets them, and its pipeline."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    got = Path(mlflow.artifacts.download_artifacts(f"models:/tiny/{version}", dst_path=str(folder)))
    return hash_file(got / "model/model.safetensors"), mlflow.transformers.load_model(f"models:/tiny/{version}")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("where", ["database", "upload"])
def test_version_1_loads_through_a_server_also_after_the_next_run(
    server: Server,
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """`database`: logged to the database that the server shows. `upload`: logged through it to its own store."""
    import torch

    project = server.project
    if where == "database":
        tracked, uri = "sparsekd", project.database
    else:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tracked := "uploaded")
        uri = server.uri
        for version in versions(project.database):
            client(project.database).delete_model_version("tiny", version.version)
    hashes: list[str] = []
    results: list[TrackResult] = []
    for width, checkpoint in zip((0.75, 0.5), checkpoints, strict=True):
        project.run(width=width, checkpoint=checkpoint)
        hashes.append(hash_file(project.weights))
        started = time.monotonic()
        results.append(track(project.root, uri=uri))
        assert time.monotonic() - started < 15, "torch is not loaded for it"
    first, second = [result.model_version or "" for result in results]
    assert hashes[0] != hashes[1]
    assert where != "database" or (first, second) == ("1", "2")
    run = client(server.uri).get_run(results[0].run_id)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:" if where == "upload" else "file:")
    assert len(runs(server.uri, tracked)) == 2

    for source in (server.uri, project.database) if where == "database" else (server.uri,):
        got, pipeline = load(source, first, tmp_path)
        assert got == hashes[0]
        weights = pipeline.model.model.layers[0].mlp.down_proj.weight
        assert weights.dtype == torch.bfloat16
        assert torch.equal(weights, _down_proj(checkpoints[0]))
        assert not torch.equal(weights, _down_proj(checkpoints[1]))
        assert pipeline.tokenizer.decode(pipeline.tokenizer("hello world")["input_ids"]) == "hello world"
        assert load(source, second, tmp_path / "second")[0] == hashes[1]


def _down_proj(checkpoint: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_version_predicts_as_a_python_function_and_ships_the_card(
    project: Project, checkpoints: tuple[Path, Path]
) -> None:
    import mlflow

    project.run(checkpoint=checkpoints[0])
    result = track(project.root)

    version = client(project.database).get_model_version("tiny", "1")
    assert version.description == "# The card"
    assert version.run_id == result.run_id
    assert version.tags["model.safetensors.sha256"] == hash_file(project.weights)
    folder = stored(project.database)
    assert (folder / "README.md").read_text().endswith("# The card\n")
    assert not (folder / "curve.csv").exists()
    assert not list(folder.parent.rglob("*.pkl"))
    mlflow.set_tracking_uri(project.database)
    mlflow.set_registry_uri(project.database)
    answer = mlflow.pyfunc.load_model("models:/tiny/1").predict("hello")
    assert isinstance(answer, list)
    assert isinstance(answer[0], str)
