"""Isolated runs: a workspace of their own, one computation a content, an experiment at the end, and what frees them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.commands import freeing
from flows.workspaces.commands import dvc, git
from flows.workspaces.workspace import Workspace, create, experiments, find_revision, left_behind, remove
from sparsekd.errors import ConfigError
from tests.e2e.test_flow import receiver
from tests.integration.test_command_line import command, computed  # noqa: F401 - a fixture
from tests.miniature import Miniature, started, wait_until
from tests.prefect_api import ask

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]
COMPRESS = "import sys; sys.argv[0] = 'sparsekd'; from flows.cli.app import main; main()"


@pytest.fixture
def mini(computed: Miniature, tmp_path: Path) -> Miniature:  # noqa: F811
    """A checkout that has run once and in which everything is committed."""
    root = tmp_path / "a checkout"
    shutil.copytree(computed.root, root, symlinks=True)
    git(root, "add", "--all")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "all")
    return Miniature(root)


@pytest.fixture
def run(mini: Miniature, api: str) -> Run:
    """`sparsekd …` in the checkout."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return command(*arguments, cwd=mini.root, PREFECT_API_URL=api, **environment)

    return run


def test_it_leaves_the_checkout_alone_and_is_kept(mini: Miniature, run: Run) -> None:
    before = mini.value("pruned")
    with receiver() as (address, told):
        settings = ("-S", "prune.width=0.5", "-S", "gate.kl=0.3")
        done = run("compress", "--isolated", "--name", "first", *settings, SPARSEKD_WEBHOOK=address)
    assert done.returncode == 0, done.stderr + done.stdout
    assert not told, "a run that passes its gate is no news"
    assert git(mini.root, "status", "--porcelain") == ""
    assert mini.value("pruned") == before
    assert mini.kept("first", "pruned") == "prune 0.5\n"
    assert not (mini.root / ".sparsekd" / "workspaces" / "first").exists()
    assert "sparsekd restore first" in done.stdout
    assert len(git(mini.root, "worktree", "list").splitlines()) == 1
    [first] = json.loads(run("runs", "--json").stdout)
    assert (first["name"], first["state"], first["width"], first["experiment"]) == ("first", "done", 0.5, True)
    assert first["gate"] == "passed"
    assert git(mini.root, "rev-parse", "champion/first") == experiments(mini.root)["first"].tree
    assert first["outcomes"]["calibrate"] == "restored", "what the checkout had is not computed again"
    assert first["outcomes"]["prune"] == "computed"
    assert (mini.root / ".sparsekd" / "runs" / "first" / "logs" / "prune.log").is_file()

    taken = run("compress", "--isolated", "--name", "first")
    assert taken.returncode == 2
    assert "There is a run first already" in taken.stderr

    again = run("compress", "--at", "first", "--name", "second")
    assert again.returncode == 0, again.stderr
    assert "Gate: passed, all 1 checks." in again.stdout
    [second, _] = json.loads(run("runs", "--json").stdout)
    assert set(second["outcomes"].values()) == {"restored"}, "its own revision computes nothing"
    assert mini.kept("second", "distilled") == mini.kept("first", "distilled")
    assert second["gate"] == "passed"
    assert git(mini.root, "tag", "--list").split() == ["champion/first", "champion/second"]

    back = run("restore", "first")
    assert back.returncode == 0, back.stderr
    assert mini.value("pruned") == "prune 0.5\n"
    assert "width: 0.5" in (mini.root / "params.yaml").read_text()
    assert "width: 0.75" in (mini.root / ".sparsekd" / "params.before-restore.yaml").read_text()
    shown = json.loads(dvc(mini.root, "exp", "show", "--json"))
    assert "first" in json.dumps(shown)


def test_two_at_once_compute_what_they_share_once(mini: Miniature, api: str) -> None:
    mini.edit("  tokens: 122880", "  tokens: 61440")  # calibrate, and so everything, is new
    hold = mini.control("hold", "calibrate")
    first = ("compress", "--isolated", "--name", "a", "-S", "prune.width=0.5")
    second = ("compress", "--isolated", "--name", "b", "-S", "prune.width=0.25")
    with (
        started(mini, COMPRESS, *first, PREFECT_API_URL=api) as one,
        started(mini, COMPRESS, *second, PREFECT_API_URL=api) as other,
    ):
        mini.held("calibrate")
        locks = mini.root / ".dvc" / "cache" / "locks"
        wait_until(lambda: _waiting(locks), "the other run to wait for the content")
        hold.unlink()
        outputs = [process.communicate()[0] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), outputs
    assert mini.runs("calibrate") == 2, "once in the fixture, once now"
    assert mini.runs("teacher") == 2
    assert mini.runs("prune") == 3, "once in the fixture, and once for each width"
    assert mini.kept("a", "pruned") == "prune 0.5\n"
    assert mini.kept("b", "pruned") == "prune 0.25\n"


def _waiting(locks: Path) -> bool:
    """Whether two processes have the lock file of calibrate open."""
    holders = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith(str(locks / "calibrate-")):
            holders.add(entry.parts[2])
    return len(holders) == 2


def test_a_killed_run_is_freed(mini: Miniature, api: str, run: Run) -> None:
    mini.control("hold", "prune")
    lost = ("compress", "--isolated", "--name", "lost", "-S", "prune.width=0.5")
    with started(mini, COMPRESS, *lost, PREFECT_API_URL=api) as process:
        mini.held("prune")
        refused = run("gc")
        assert refused.returncode != 0
        assert "lost is going on" in refused.stderr
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not mini.processes(), "the stage to end", 5)
    assert [space.name for space in left_behind(mini.root)] == ["lost"]
    assert git(mini.root, "status", "--porcelain") == ""
    said = run("gc")
    assert "Nothing was removed" in said.stdout
    assert left_behind(mini.root)
    assert run("gc", "--yes").returncode == 0
    assert not left_behind(mini.root)


def test_gc_keeps_what_experiments_need_and_agrees_with_dvc(mini: Miniature, run: Run) -> None:
    for name, width in (("kept", "0.5"), ("given-up", "0.25")):
        done = run("compress", "--isolated", "--name", name, "-S", f"prune.width={width}")
        assert done.returncode == 0, done.stderr
    dry = dvc(mini.root, "gc", "--workspace", "--all-branches", "--all-tags", "--all-experiments", "--force", "--dry")
    found = freeing.unneeded(mini.root)
    assert len(found.objects) == dry.count("Removing ")
    more = freeing.unneeded(mini.root, ["given-up"])
    assert len(more.objects) > len(found.objects)
    week_old, new = (mini.root / ".sparsekd" / "evaluations" / name for name in ("old", "new"))
    for folder in (week_old, new):
        folder.mkdir(parents=True)
    os.utime(week_old, (0, 0))
    freed = run("gc", "--drop", "given-up", "--yes")
    assert freed.returncode == 0, freed.stderr
    assert set(experiments(mini.root)) == {"kept"}
    assert freeing.unneeded(mini.root).objects == []
    assert (week_old.exists(), new.exists()) == (False, True)
    assert mini.kept("kept", "pruned") == "prune 0.5\n"
    out = mini.root.parent / "taken out"
    unknown = run("restore", "given-up", "--out", str(out))
    assert unknown.returncode == 2
    assert "sparsekd runs" in unknown.stderr


def test_uncommitted_changes_are_in_a_workspace_and_other_revisions_are_found(mini: Miniature) -> None:
    mini.edit("width: 0.75", "width: 0.625")
    space = create(mini.root, "dirty")
    assert "width: 0.625" in (space.path / "params.yaml").read_text()
    clean = create(mini.root, "clean", at="HEAD")
    assert "width: 0.75" in (clean.path / "params.yaml").read_text()
    with pytest.raises(ConfigError, match="choose another name"):
        create(mini.root, "dirty")
    for name in ("../up", "../..", str(mini.root), "-x", "a b", "", "a..b", "a.", "a.lock", "x" * 101):
        with pytest.raises(ConfigError, match="no name for a run"):
            create(mini.root, name)
    for at in ("nowhere", "--help", "HEAD; touch /tmp/p"):
        with pytest.raises(ConfigError, match="no commit, tag, branch or experiment"):
            find_revision(mini.root, at)
    for made in (space, clean):
        remove(made)
        assert not made.path.exists()
    assert not left_behind(mini.root)
    assert Workspace(mini.root, "dirty").path.name == "dirty"


def test_refresh_ends_at_once_unless_something_is_new_and_then_tells_what_changed(
    mini: Miniature, run: Run, api: str, tmp_path: Path
) -> None:
    limits = ("-S", "gate.kl=0.3")
    first = run("refresh", *limits)
    assert first.returncode == 0, first.stderr
    assert "Passed. Gate: passed, all 1 checks." in first.stdout
    [record] = json.loads(run("runs", "--json").stdout)
    assert (record["gate"], record["outcomes"]["calibrate"]) == ("passed", "restored")
    again = run("refresh", *limits)
    assert f"No new data. Model, texts and settings are those of run {record['name']}." in again.stdout
    assert len(experiments(mini.root)) == 1

    mini.edit("width: 0.75", "width: 0.5")
    second = run("refresh", *limits)
    assert "Passed." in second.stdout
    newest = json.loads(run("runs", "--json").stdout)[0]
    told = (mini.root / ".sparsekd" / "runs" / newest["name"] / "changes.md").read_text()
    assert f"## {newest['name']} against {record['name']}" in told
    assert "- prune.width: 0.75 → 0.5" in told
    assert "| KL wiki | 0.100 | 0.200 | changed |" in told
    shown = ask(api, "artifacts/filter", {"artifacts": {"key": {"any_": ["changes"]}}})
    assert told in {artifact["data"] for artifact in shown}

    mini.edit("width: 0.5", "width: 0.125")
    with receiver() as (address, heard):
        third = run("refresh", *limits, SPARSEKD_WEBHOOK=address)
    assert third.returncode == 0
    assert "Not passed. Gate: not passed." in third.stdout
    worst = json.loads(run("runs", "--json").stdout)[0]
    assert worst["gate"] == "not passed"
    [flow_run] = ask(api, "flow_runs/filter", {"flow_runs": {"id": {"any_": [worst["flow_run_id"]]}}})
    assert (flow_run["state_name"], flow_run["state_type"]) == ("Not passed", "COMPLETED")
    [message] = heard
    assert (message["event"], message["run"]) == ("not passed", worst["name"])
    assert message["message"] == flow_run["state"]["message"] == "Gate: not passed. KL is 0.35."
    told = (mini.root / ".sparsekd" / "runs" / worst["name"] / "changes.md").read_text()
    assert f"against {newest['name']}" in told, "the last that was accepted"
    assert git(mini.root, "tag", "--list").split() == sorted(f"champion/{name['name']}" for name in (record, newest))
