"""What a finished compression looks like in MLflow: one run, its figures, files and inputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sparsekd.artifacts import Artifact, hash_file
from sparsekd.errors import ArtifactError
from tasks.state import progress_path, write_json
from tasks.track import main, track
from tasks.tracking import pending
from tasks.tracking.parent import log_parent
from tasks.tracking.record import collect
from tests.tracked_project import REPOSITORY, Project, client, command, runs, stored, versions

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's, at its import


def test_a_run_shows_parameters_results_curve_inputs_and_artifacts(project: Project) -> None:
    write_json(progress_path(project.root, "distill"), {"done": 512, "tokens_per_second": 312.5})
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
    assert figures["train/tokens_per_second"] == 312.5
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

    store = module._open(project.database)
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


def test_a_sweep_is_a_parent_with_children_and_is_brought_up_to_date(project: Project) -> None:
    children = {}
    for label, width in (("w0.75", 0.75), ("w0.5", 0.5)):
        project.run(width=width)
        children[label] = str(track(project.root, name=f"s-{label}").run_id)
    folder = project.root / "sweep"
    folder.mkdir()
    (folder / "table.md").write_text("| the table |\n")
    settings = ["prune.width=0.75,0.5"]
    parent = log_parent(project.root, "s", ["prune.width=0.75"], {"w0.75": children["w0.75"]}, folder)
    assert log_parent(project.root, "s", settings, children, folder) == parent
    found = {run.info.run_name: run for run in runs(project.database)}
    assert set(found) == {"s", "s-w0.75", "s-w0.5"}
    assert found["s"].data.tags["sweep.prune.width"] == "0.75,0.5"
    assert found["s"].info.status == "FINISHED"
    assert found["s"].data.tags["mlflow.note.content"] == "| the table |\n"
    for label, run_id in children.items():
        child = client(project.database).get_run(run_id)
        assert child.data.tags["mlflow.parentRunId"] == parent
        assert child.data.tags["sparsekd.sweep.point"] == label
        assert child.info.status == "FINISHED"
    assert [file.path for file in client(project.database).list_artifacts(parent)] == ["table.md"]
