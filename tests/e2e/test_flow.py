"""The Prefect flow on a checkout in miniature: states, reasons, one run at a time, and every way to end it.

Each run is a process of its own. Most use one Prefect server for all tests; some bring their own, as the command does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.workspaces.lock import current_holder
from tasks.repro import reproduce
from tasks.state import read_json, read_state
from tests.miniature import STAGES, Miniature, kill, make_miniature, started, wait_until
from tests.prefect_api import ask

pytestmark = pytest.mark.slow

LAUNCH = """
import sys
from pathlib import Path
from flows.commands.launch import launch
from sparsekd.errors import SparseKDError
try:
    print("outcome", launch(Path.cwd(), quiet=True, wait="wait" in sys.argv))
except SparseKDError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    miniature = make_miniature(tmp_path_factory.mktemp("miniature") / "checkout")
    for name in STAGES:
        reproduce(miniature.root, miniature.graph[name])
    return miniature


@pytest.fixture
def checkout(computed: Miniature, tmp_path: Path) -> Miniature:
    shutil.copytree(computed.root, tmp_path / "checkout", symlinks=True)
    return Miniature(tmp_path / "checkout")


def flow_run(api: str, checkout: Miniature) -> Any:
    """The flow run that had the checkout last."""
    noted = read_json(checkout.root / ".sparsekd" / "run.json")["flow_run_id"]
    [run] = ask(api, "flow_runs/filter", {"flow_runs": {"id": {"any_": [noted]}}})
    return run


def task_states(api: str, run: Any) -> dict[str, str]:
    """State names by stage. Prefect records them from events, a moment late."""

    def read() -> dict[str, str]:
        found = ask(api, "task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return {task["name"]: task["state_name"] for task in found}

    final = {"Completed", "Cached", "Failed", "NotRun", "NotReady"}
    wait_until(lambda: set(read()) >= set(STAGES) and set(read().values()) <= final, f"final states, not {read()}", 30)
    return read()


def clean(checkout: Miniature, api: str, days: float) -> str:
    """Remove flow runs that are older; how many were."""
    program = f"from flows.server.retention import remove_older; print(remove_older({days}))"
    with started(checkout, program, PREFECT_API_URL=api) as process:
        output, _ = process.communicate()
    return output.strip()


@contextlib.contextmanager
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """A webhook on this machine: its address, and the messages it was sent."""
    told: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/a-token", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_states_logs_and_parameters_of_a_run(api: str, checkout: Miniature) -> None:
    checkout.edit("width: 0.75", "width: 0.5")
    with started(checkout, LAUNCH, PREFECT_API_URL=api) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    wanted = {"calibrate": "unchanged", "teacher": "unchanged", "prune": "computed", "distill": "computed"}
    assert output == f"outcome {wanted}\n", "quiet: nothing else on the console"
    run = flow_run(api, checkout)
    assert run["state_name"] == "Completed"
    states = {"calibrate": "Cached", "teacher": "Cached", "prune": "Completed", "distill": "Completed"}
    assert task_states(api, run) == states
    logs = [entry["message"] for entry in ask(api, "logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})]
    assert "prune at work" in logs
    assert clean(checkout, api, 1) == "0", "it is not a day old"
    assert int(clean(checkout, api, 0)) >= 1
    assert ask(api, "flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}}) == []
    wait_until(
        lambda: not ask(api, "logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}}), "its log to go", 30
    )
    assert {name: read_state(checkout.root, name).state for name in STAGES} == {
        "calibrate": "cached", "teacher": "cached", "prune": "done", "distill": "done",
    }  # fmt: skip


def test_a_failed_stage_is_named_with_its_reason(api: str, checkout: Miniature) -> None:
    checkout.edit("width: 0.75", "width: 0.5")
    checkout.control("fail", "prune")
    with (
        receiver() as (address, told),
        started(checkout, LAUNCH, PREFECT_API_URL=api, SPARSEKD_WEBHOOK=address) as process,
    ):
        output, _ = process.communicate()
    reason = (
        "Stage prune failed: distill.learning_rate is 9; the loss is NaN at step 3. Lower it. "
        "Its log is .sparsekd/logs/prune.log."
    )
    assert output == f"error: {reason}\n", "one sentence, no traceback"
    run = flow_run(api, checkout)
    assert run["state_name"] == "Failed"
    assert run["state"]["message"] == reason
    [message] = told
    assert (message["event"], message["run"], message["message"]) == ("failed", run["name"], reason)
    assert message["text"].startswith(f"sparsekd {run['name']}: failed. Stage prune failed")
    states = task_states(api, run)
    assert states["prune"] == "Failed"
    assert states["distill"] in {"NotReady", "NotRun"}
    assert checkout.runs("distill") == 1
    assert read_state(checkout.root, "distill").state == "waiting"


def test_independent_stages_run_side_by_side_and_a_second_run_is_refused(api: str, checkout: Miniature) -> None:
    holds = [checkout.control("hold", name) for name in ("teacher", "prune")]
    checkout.edit("batch_size: 4", "batch_size: 8")
    checkout.edit("width: 0.75", "width: 0.5")
    with started(checkout, LAUNCH, PREFECT_API_URL=api) as first:
        checkout.held("teacher")
        checkout.held("prune")
        holder = current_holder(checkout.root)
        assert holder is not None
        assert holder.pid == first.pid
        with started(checkout, LAUNCH, PREFECT_API_URL=api) as second:
            output, _ = second.communicate()
        assert output.startswith(f"error: {holder} is running in this checkout; one run at a time.")
        with started(checkout, LAUNCH, "wait", PREFECT_API_URL=api) as third:
            for hold in holds:
                hold.unlink()
            assert "'prune': 'computed'" in first.communicate()[0]
            output, _ = third.communicate()
    assert output == f"outcome {dict.fromkeys(STAGES, 'unchanged')}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_stages(api: str, checkout: Miniature, number: signal.Signals) -> None:
    holds = [checkout.control("hold", name) for name in ("teacher", "prune")]
    checkout.edit("batch_size: 4", "batch_size: 8")
    checkout.edit("width: 0.75", "width: 0.5")
    with started(checkout, LAUNCH, PREFECT_API_URL=api) as process:
        checkout.held("teacher")
        checkout.held("prune")
        os.kill(process.pid, number)
        process.communicate(timeout=30)
        assert process.returncode != 0
        wait_until(lambda: not checkout.processes(), "everything to end", seconds=2)
    assert flow_run(api, checkout)["state_type"] in {"CRASHED", "CANCELLED"}
    assert read_state(checkout.root, "prune").state == "failed"
    assert read_state(checkout.root, "prune").reason == "The run was stopped."
    assert not list((checkout.root / ".sparsekd" / "groups").iterdir())
    for hold in holds:
        hold.unlink()
    with started(checkout, LAUNCH, PREFECT_API_URL=api) as process:
        output, _ = process.communicate()
    assert "'teacher': 'computed', 'prune': 'computed', 'distill': 'computed'" in output


def test_kill_9_with_a_server_of_its_own(checkout: Miniature) -> None:
    hold = checkout.control("hold", "prune")
    checkout.edit("width: 0.75", "width: 0.5")
    with started(checkout, LAUNCH) as process:
        checkout.held("prune")
        assert any("flows.server.prefect_server" in command for command in checkout.processes())
        kill(process)
        wait_until(lambda: not checkout.processes(), "stages and server to end", seconds=3)
        killed = read_json(checkout.root / ".sparsekd" / "run.json")["flow_run_id"]
    hold.unlink()
    with started(checkout, LAUNCH) as process:
        output, _ = process.communicate()
        assert "'prune': 'computed', 'distill': 'computed'" in output
    wait_until(lambda: not checkout.processes(), "the server to end", seconds=2)
    assert _state_in_database(checkout, killed) == "Crashed", "it would be Running for ever"


def _state_in_database(checkout: Miniature, flow_run_id: str) -> str:
    database = sqlite3.connect(checkout.root / ".prefect" / "prefect.db")
    try:
        query = "select state_name from flow_run where replace(id, '-', '') = ?"
        return str(database.execute(query, [flow_run_id.replace("-", "")]).fetchone()[0])
    finally:
        database.close()


def test_failure_to_track_is_a_warning_and_leaves_a_marker(api: str, checkout: Miniature) -> None:
    report = checkout.root / "data" / "report"
    report.mkdir()
    (report / "summary.json").write_text("{}")  # tracking can make no sense of it
    with started(checkout, LAUNCH, PREFECT_API_URL=api) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    run = flow_run(api, checkout)
    assert run["state_name"] == "Completed"
    warned = ask(api, "logs/filter", {"logs": {"level": {"ge_": 30}, "flow_run_id": {"any_": [run["id"]]}}})
    assert [entry["message"] for entry in warned if entry["message"].startswith("MLflow: ")]
    assert (checkout.root / ".sparsekd" / "pending-track.json").exists()
    assert output.splitlines()[0].startswith("warning: MLflow did not log the run"), "said on a quiet console too"


_RETRY = """
import sys
from pathlib import Path
from prefect import flow
from tasks.graph import read_graph
from tasks.stage import Run, stage_task

@flow
def retried(roots):
    futures = []
    for root in map(Path, roots):
        [(name, spec)] = (graph := read_graph(root)).items()
        run = Run(root, graph, 1)
        futures.append(stage_task(spec).with_options(retry_delay_seconds=0).submit(name, run))
    for future in futures:
        future.wait()

retried(sys.argv[1:], return_state=True)
"""


def test_only_the_network_is_retried(api: str, tmp_path: Path) -> None:
    cases = [
        ("fetch", "the connection was refused", 3),
        ("fetch", "sha256 is wrong", 1),
        ("other", "the connection broke", 1),
    ]
    checkouts = [make_miniature(tmp_path / str(number)) for number, _ in enumerate(cases)]
    for checkout, (stage, fault, _) in zip(checkouts, cases, strict=True):
        command = f"echo x >> control/ran-{stage}; echo 'error: {fault}'; exit 2"
        text = f'stages:\n  {stage}:\n    cmd: "{command}"\n    outs: [data/x]\n'
        (checkout.root / "dvc.yaml").write_text(text)
    with started(checkouts[0], _RETRY, *(str(one.root) for one in checkouts), PREFECT_API_URL=api) as process:
        process.communicate()
    for checkout, (stage, _, runs) in zip(checkouts, cases, strict=True):
        assert checkout.runs(stage) == 2 * runs, "each run writes x and a line end"
