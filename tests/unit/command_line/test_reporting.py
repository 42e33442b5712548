"""`sparsekd report`: which results a checkout knows, and the page that compares them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app as cli
from flows.workspaces import known
from flows.workspaces.history import RunRecord
from sparsekd.errors import ArtifactError
from sparsekd.report import Context
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import summarise
from tasks.state import context_path
from tests.made_up_run import EXCESS, MadeUpRun

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A checkout without runs."""
    home = tmp_path / "checkout"
    home.mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, home)
    for arguments in (
        ["init", "--quiet"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", *arguments], cwd=home, check=True)
    monkeypatch.setenv("SPARSEKD_HOME", str(home))
    monkeypatch.chdir(home)
    return home


def report_of(root, excess=EXCESS["distilled"]):
    summary = summarise(ReportInputs.read(MadeUpRun(root / "made", excess=EXCESS | {"distilled": excess}).write()))
    (root / "data/report").mkdir(parents=True)
    (root / "data/report/summary.json").write_text(summary.to_json())
    return root


def run(*arguments):
    return CliRunner().invoke(cli.app, ["report", *arguments])


def test_a_result_is_noted_once_and_a_better_one_beside_it(home, tmp_path):
    first, second = report_of(tmp_path / "first"), report_of(tmp_path / "second", 0.05)
    for root in (first, second, first):
        known.remember(home, root, None)
    name = "SmolLM2-135M-Instruct-width-0.75"
    assert sorted(known.known(home)) == [name, f"{name}-2"]
    known.remember(home, first, "me/half")
    assert next(iter(known.known(home))) == "me/half", "the newest first"


def test_a_run_is_told_what_the_checkout_knows_and_only_while_it_goes_on(home, tmp_path):
    known.remember(home, report_of(tmp_path / "first"), "first")
    with known.telling(home, home):
        assert list(Context.read(context_path(home)).runs) == ["first"]
    assert not context_path(home).exists()


def test_an_experiment_of_another_version_is_passed_over(home, tmp_path, monkeypatch):
    """It has no summary that this version reads; a run that only wants to show it must not end for that."""

    def unreadable(home, name):
        raise ArtifactError("summary.json is no summary of schema version 1")

    known.remember(home, report_of(tmp_path / "first"), "first")
    monkeypatch.setattr(known, "kept_runs", lambda home: [RunRecord("old", "model", 0.5, 0.0, state="done")])
    monkeypatch.setattr(known, "kept_summary", unreadable)
    assert list(known.known(home)) == ["first"]


def test_the_page_compares_names_and_directories(home, tmp_path):
    known.remember(home, report_of(tmp_path / "first"), "first")
    other = report_of(tmp_path / "other", 0.05)
    done = run("first", str(other))
    assert done.exit_code == 0, done.output
    assert "1 of 2 is dominated by no other" in done.output
    page = (home / ".sparsekd/comparison/index.html").read_text()
    assert "first: what its report says" in page
    assert f"{other}: what its report says" in page


def test_without_a_name_it_is_all_that_is_known(home, tmp_path):
    known.remember(home, report_of(tmp_path / "first"), "first")
    done = run("--out", str(tmp_path / "page"))
    assert done.exit_code == 0, done.output
    assert "first (14.8 % smaller" in done.output
    assert (tmp_path / "page/index.html").is_file()


def test_an_unknown_name_is_one_sentence(home, tmp_path):
    assert run().exit_code == 2
    known.remember(home, report_of(tmp_path / "first"), "first")
    done = run("frist")
    assert done.exit_code == 2
    assert "did you mean first?" in done.output
