"""What `compress` does around the flow: settings are settled, plans shown, and a run is logged that waited for it."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from flows.checks.estimate import estimate
from flows.commands import job
from flows.commands.job import Request, settle
from flows.commands.launch import outcome_of
from flows.settings import params
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError
from sparsekd.sources import model_config

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(CHECKOUT / "params.yaml", root)
    shutil.copytree(CHECKOUT / "presets", root / "presets")
    return root


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, color_system=None, width=110)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def settled(project: Path, **asked: Any) -> RunConfig:
    return settle(project, params.load(project), Request(**asked), project)


def test_nothing_asked_for_leaves_params_as_they_stand(project: Path) -> None:
    assert settled(project) == params.load(project)


def test_options_are_settings(project: Path) -> None:
    config = settled(
        project,
        preset="smoke",
        model="hf:owner/name",
        revision="main",
        texts=["wiki"],
        device="cpu",
        settings=["prune.width=0.5", "evaluate.rows=30"],
    )
    assert (config.preset, config.calibrate.tokens) == ("smoke", 6144)
    assert (config.model.source, config.model.revision) == ("hf:owner/name", "main")
    assert (config.texts.sources, config.texts.revisions) == (("wiki",), None)
    assert (config.runtime.device, config.prune.width, config.evaluate.rows) == ("cpu", 0.5, 30)


def test_edits_are_lost_only_with_yes_or_where_they_are_repeated(project: Path) -> None:
    params.write(project, [params.Change("prune.width", 0.75, 0.5)])
    with pytest.raises(ConfigError, match=r"would lose: prune\.width: 0\.5 → 0\.75\. Add --yes"):
        settled(project, preset="quality")
    assert settled(project, preset="quality", yes=True).prune.width == 0.75
    assert settled(project, preset="quality", settings=["prune.width=0.5"]).prune.width == 0.5
    assert settled(project, preset="quality", settings=["prune.width=0.6"]).prune.width == 0.6


def test_a_path_from_elsewhere_is_written_as_seen_from_the_root(project: Path) -> None:
    below, outside = project / "below", project.parent / "outside"
    (below / "model").mkdir(parents=True)
    outside.mkdir()
    current = params.load(project)
    for given, written in (
        ("model", "below/model"),
        ("file:./model", "file:below/model"),
        ("../below/model", "below/model"),
        ("../../outside", str(outside.resolve())),
        ("owner/name", "owner/name"),
        (str(below), str(below)),
    ):
        assert settle(project, current, Request(model=given), below).model.source == written
    (below / "wiki").mkdir()  # a catalogue name stays one
    assert settle(project, current, Request(texts=["wiki"]), below).texts.sources == ("wiki",)


def test_the_plan_names_time_disk_memory_parameters_bytes_and_four_reductions(tmp_path: Path) -> None:
    console, dense = pipe(), model_config("smollm2-135m-instruct-q4_1")
    needed = estimate(tmp_path, RunConfig(), dense, ["prune", "distill"], measure=False)
    job.show_plan(RunConfig(), dense, needed, console)
    said = text(console)
    assert "parameters   134,515,008 to 114,608,448" in said
    assert "weights      269.0 MB to 229.2 MB, at the same dtype" in said
    assert "25.0 % of the width, 25.0 % of the FFN, 18.7 % of the non-embedding and 14.8 % of all parameters" in said
    for label in ("time", "disk", "memory"):
        assert f"\n{label} " in said


def test_a_budget_that_a_preset_would_lose_is_named_so_that_it_can_be_kept(project: Path) -> None:
    (project / "params.yaml").write_text(
        (project / "params.yaml")
        .read_text()
        .replace("width: 0.75", "width: null")
        .replace("total_reduction: null", "total_reduction: 0.2")
    )
    with pytest.raises(ConfigError, match=r"or keep them with -S prune.total_reduction=0.2\.$"):
        settled(project, preset="smoke")
    assert settled(project, preset="smoke", settings=["prune.total_reduction=0.2"]).prune.budget[1] == 0.2


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (SimpleNamespace(warning=None, run_name="quiet-fox"), "Logged as MLflow run quiet-fox."),
        (SimpleNamespace(warning="The store is down.", run_name="quiet-fox"), "The store is down."),
        (OSError("no such file"), "warning: MLflow: no such file"),
    ],
)
def test_a_run_that_waits_is_logged_without_prefect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Any, said: str
) -> None:
    def track(root: Path) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setitem(sys.modules, "tasks.track", SimpleNamespace(track=track))
    monkeypatch.setattr(job.environment, "apply", lambda root: None)
    console = pipe()
    job.log_run(tmp_path, console)
    assert text(console) == said + "\n"


def test_a_completed_run_whose_answer_was_lost_has_not_failed() -> None:
    from prefect.states import Cancelled, Completed

    assert outcome_of(Completed()) == {}, "as a busy server gives it when it is asked twice"
    assert outcome_of(Completed(data={"prune": "computed"})) == {"prune": "computed"}
    with pytest.raises(Exception, match="cancelled"):
        outcome_of(Cancelled())
