"""`sparsekd sweep` on a checkout in miniature: a grid of isolated runs, resumed, compared; a plan that is checked."""

from __future__ import annotations

import json
import os
import signal

import pytest

from flows.sweeps import grid
from flows.workspaces.commands import git
from flows.workspaces.workspace import experiments, left_behind
from sparsekd.errors import ConfigError
from tests.integration.test_command_line import command, computed  # noqa: F401 - a fixture
from tests.integration.test_isolated import COMPRESS, Run, mini, run  # noqa: F401 - fixtures
from tests.miniature import Miniature, started, wait_until
from tests.prefect_api import ask

pytestmark = pytest.mark.slow


def test_a_grid_shares_what_it_can_and_is_compared(mini: Miniature, run: Run, api: str) -> None:  # noqa: F811
    asked = ("sweep", "--name", "widths", "-S", "prune.width=0.5,0.25", "-S", "distill.alpha=0.5,0.7")
    done = run(*asked)
    assert done.returncode == 0, done.stdout + done.stderr
    labels = ["w0.5-alpha0.5", "w0.5-alpha0.7", "w0.25-alpha0.5", "w0.25-alpha0.7"]
    assert set(experiments(mini.root)) == {f"widths-{label}" for label in labels}
    assert (mini.runs("calibrate"), mini.runs("teacher")) == (1, 1), "the checkout had them"
    assert mini.runs("prune") == 1 + 2
    assert mini.runs("distill") == 1 + 4
    assert git(mini.root, "status", "--porcelain") == ""
    assert not left_behind(mini.root)
    folder = mini.root / ".sparsekd" / "sweeps" / "widths"
    found = {result["label"]: result for result in json.loads((folder / "results.json").read_text())}
    assert set(found) == set(labels)
    assert found["w0.25-alpha0.5"]["kl"] == pytest.approx(0.3)
    assert found["w0.25-alpha0.5"]["dominated_by"] is None
    assert (folder / "trade_off.png").stat().st_size > 10_000
    assert "| w0.5-alpha0.7 |" in (folder / "table.md").read_text()
    assert "w0.25-alpha0.7" in done.stdout
    [shown] = ask(api, "artifacts/filter", {"artifacts": {"key": {"any_": ["trade-off"]}}})[-1:]
    assert "](data:image/png;base64," in shown["data"]

    other = run(
        "sweep", "--name", "widths", "-S", "prune.width=0.5,0.25", "-S", "distill.alpha=0.5,0.7", "-S", "distill.seed=1"
    )
    assert other.returncode == 2
    assert "Sweep widths has another w0.5-alpha0.5 already" in other.stderr


def test_a_killed_sweep_goes_on(mini: Miniature, run: Run, api: str) -> None:  # noqa: F811
    asked = ("sweep", "--at-once", "1", "-S", "prune.width=0.5,0.25")
    hold = mini.control("hold", "prune")
    with started(mini, COMPRESS, *asked, PREFECT_API_URL=api) as process:
        mini.held("prune")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not mini.processes(), "its runs and stages to end", 10)
    hold.unlink()
    assert left_behind(mini.root)
    assert not experiments(mini.root)
    done = run(*asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(experiments(mini.root)) == 2
    assert not left_behind(mini.root)


def test_one_that_fails_does_not_stop_the_others_and_says_why(mini: Miniature, run: Run, api: str) -> None:  # noqa: F811
    mini.control("fail", "prune", "0.25")
    done = run("sweep", "--name", "s", "--at-once", "1", "-S", "prune.width=0.25,0.5")
    assert done.returncode == 2
    assert set(experiments(mini.root)) == {"s-w0.5"}
    assert "1 of 2 runs failed, w0.25: Stage prune failed: distill.learning_rate is 9" in done.stderr
    assert "w0.5" in done.stdout
    (mini.root / "control" / "fail-prune").unlink()
    more = run("sweep", "--name", "s", "-S", "prune.width=0.25,0.5,0.125")
    assert more.returncode == 0
    assert "1 of them done before" in more.stdout
    assert mini.runs("distill") == 1 + 3, "the one that had failed, and a new one"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["prune.width=0.5"], "needs a setting with several values"),
        (["prune.width=0.5,"], "different values between commas"),
        (["prune.width=0.5,0.5"], "different values between commas"),
        (["prune.width=0.5,1.5"], "a fraction in"),
        (["prune.width=0.5,0.25", "prune.width=0.75"], "given twice"),
        (["prune.width=0.5,0.25", "prune.total_reduction=0.2"], "only one can say how much is kept"),
        (["prune.widht=0.5,0.25"], "did you mean prune.width"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_runs(mini: Miniature, settings: list[str], says: str) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=says):
        grid.plan(mini.root, settings)
    assert not (mini.root / ".sparsekd" / "sweeps").exists()
