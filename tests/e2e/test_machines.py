"""More than one machine: one Prefect server, one S3 remote, two clones each with a worker of its own, and what dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.server.servers import free_port, start_prefect
from tests.miniature import CHECKOUT, STAGES, Miniature, make_miniature, wait_until
from tests.prefect_api import ask
from tests.s3_server import KEYS, Storage, storage

pytestmark = pytest.mark.slow

LOST_SECONDS = 120
"""So soon the run of a dead machine must go on elsewhere."""


@dataclass
class Machine:
    """A clone, and what its worker has in its environment."""

    name: str
    clone: Miniature
    environment: dict[str, str]

    @contextlib.contextmanager
    def at_work(self, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """Its worker, as docs/machines.md starts it."""
        command = ["worker", "start", "--pool", "machines", "--type", "process", "--name", self.name, "--limit", "1"]
        with (self.clone.root.parent / f"{self.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *command],
                cwd=self.clone.root,
                env={key: value for key, value in (self.environment | more).items() if value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            self.die(process)

    def die(self, process: subprocess.Popen[bytes]) -> None:
        """As when its power is cut: kill -9 of the worker and of the flow, at once; the guard ends the stage."""
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = psutil.Process(process.pid)
            for one in [worker, *worker.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()

    def flow_process(self) -> int:
        """The process that runs the flow, and not one of its stages."""
        found = {
            process.pid: process.info["ppid"]
            for process in psutil.process_iter(["cmdline", "environ", "ppid"])
            if "prefect.flow_engine" in " ".join(process.info["cmdline"] or [])
            or "prefect.engine" in " ".join(process.info["cmdline"] or [])
            if (process.info["environ"] or {}).get("SPARSEKD_HOME") == str(self.clone.root)
        }
        # What it starts looks like it for a moment, between fork and exec
        [one] = [process for process, parent in found.items() if parent not in found]
        return one


@dataclass
class Team:
    """The server, the remote, and two machines."""

    api: str
    remote: Storage
    machines: tuple[Machine, Machine]

    def run(self, **parameters: Any) -> str:
        """Ask for a run as `prefect deployment run compress/machines` does; its id."""
        found = ask(self.api, "deployments/name/compress/machines")
        body = {"parameters": found["parameters"] | parameters, "state": {"type": "SCHEDULED"}}
        return str(ask(self.api, f"deployments/{found['id']}/create_flow_run", body)["id"])

    def read(self, run: str) -> Any:
        return ask(self.api, f"flow_runs/{run}")

    def ends(self, run: str, name: str, seconds: float = 90) -> Any:
        """Wait for the run to end as `name`; the run."""
        final = {"Completed", "Failed", "Cancelled"}
        wait_until(lambda: self.read(run)["state_name"] in final, f"{run} to end, {self.read(run)['state']}", seconds)
        ended = self.read(run)
        assert ended["state_name"] == name, (ended["state"], self.log(run))
        return ended

    def log(self, run: str) -> str:
        found = ask(self.api, "logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"})
        return "\n".join(line["message"] for line in found)

    def states(self, run: str) -> list[str]:
        return [state["name"] for state in ask(self.api, f"flow_run_states/?flow_run_id={run}")]


def prefect(*arguments: str, cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Set up with prefect.yaml as it is in this repository, and with the commands of docs/machines.md."""
    base = tmp_path_factory.mktemp("team")
    origin = make_miniature(base / "origin").root
    (origin / "prefect.yaml").write_bytes((CHECKOUT / "prefect.yaml").read_bytes())
    server = start_prefect(origin, free_port(), ui=False)
    with contextlib.ExitStack() as stack:
        stack.callback(server.end)
        remote = stack.enter_context(storage())
        server.wait_until_ready("/api/health")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "SPARSEKD_"))}
        clean |= KEYS | {
            "PREFECT_API_URL": f"{server.url}/api",
            "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
        }
        machines = []
        for name in ("one", "two"):
            subprocess.run(["git", "clone", "-q", str(origin), str(base / name)], check=True)
            clone = Miniature(base / name)
            (clone.root / "control").mkdir()
            (clone.root / "flows").symlink_to(CHECKOUT / "flows")  # where prefect.yaml's entrypoints are
            remote.configure(clone.root)
            own = {"SPARSEKD_HOME": str(clone.root), "PREFECT_HOME": str(base / f"home-{name}")}
            machines.append(Machine(name, clone, clean | own | {"PREFECT_WORKER_QUERY_SECONDS": "2"}))
        (origin / "flows").symlink_to(CHECKOUT / "flows")
        own = {"PREFECT_HOME": str(base / "home")}
        prefect("prefect", "work-pool", "create", "machines", "--type", "process", cwd=origin, environment=clean | own)
        prefect("prefect", "--no-prompt", "deploy", "--all", cwd=origin, environment=clean | own)
        first = prefect("flows.server.automations", cwd=origin, environment=clean | own)
        assert first.count("created") == 4
        assert "All automations are there" in prefect("flows.server.automations", cwd=origin, environment=clean | own)
        yield Team(f"{server.url}/api", remote, (machines[0], machines[1]))


def test_prefect_yaml_is_deployed_as_it_says(team: Team) -> None:
    found = ask(team.api, "deployments/name/compress/machines")
    [step] = found["pull_steps"]
    assert step["prefect.deployments.steps.set_working_directory"]["directory"] == "{{ $SPARSEKD_HOME }}"
    assert found["parameters"] == {"isolated": True}
    assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert found["job_variables"]["stream_output"] is False
    assert [schedule["active"] for schedule in found["schedules"]] == [False, False]
    assert {"cron", "interval"} <= {key for schedule in found["schedules"] for key in schedule["schedule"]}


def test_the_second_worker_computes_nothing_that_the_first_one_had(team: Team) -> None:
    one, two = team.machines
    with one.at_work():
        done = team.ends(team.run(), "Completed")
        assert [one.clone.runs(stage) for stage in STAGES] == [1, 1, 1, 1]
        assert one.clone.kept(done["name"], "pruned") == "prune 0.75\n"
    with two.at_work():
        done = team.ends(team.run(), "Completed")
    print(f"all stages restored by the second worker in {done['total_run_time']:.1f} s")
    assert [two.clone.runs(stage) for stage in STAGES] == [0, 0, 0, 0]
    assert two.clone.kept(done["name"], "distilled") == "distill 0.5\n"


def test_the_run_of_a_dead_machine_goes_on_on_another_one(team: Team) -> None:
    one, two = team.machines
    before = {stage: (one.clone.runs(stage), two.clone.runs(stage)) for stage in STAGES}
    one.clone.control("hold", "distill")
    sent = one.clone.root / ".dvc" / "cache" / "pushed"
    sent_before = len(list(sent.rglob("prune-*")))
    with one.at_work() as worker:
        run = team.run(prune={"width": 0.5})
        one.clone.held("distill")
        wait_until(lambda: len(list(sent.rglob("prune-*"))) > sent_before, "prune to be sent")
        one.die(worker)
        died = time.monotonic()
    with two.at_work():
        wait_until(lambda: team.read(run)["state_name"] == "Crashed", "the run to be seen as crashed", LOST_SECONDS)
        crashed = time.monotonic() - died
        wait_until(lambda: team.read(run)["state_name"] == "Running", "it to go on", LOST_SECONDS)
        on = time.monotonic() - died
        print(f"dead -> Crashed {crashed:.0f} s -> running again {on:.0f} s")
        assert on < LOST_SECONDS
        ended = team.ends(run, "Completed")
    assert ended["run_count"] == 2
    assert "Attempt 2 of 3: the one before was lost." in team.log(run)
    assert "so an interrupted stage starts from its beginning" in team.log(run)
    for stage, (_, theirs) in before.items():
        computed = two.clone.runs(stage) - theirs
        assert computed == (1 if stage == "distill" else 0), stage
    assert two.clone.kept(ended["name"], "pruned") == "prune 0.5\n"
    assert not [line for line in one.clone.processes() if "mini.work" in line]


def test_a_run_that_always_crashes_is_given_up(team: Team) -> None:
    one, _ = team.machines
    one.clone.control("hold", "calibrate")
    (one.clone.root / "control" / "held-calibrate").unlink(missing_ok=True)
    with one.at_work(SPARSEKD_ATTEMPTS="2"):
        run = team.run(calibrate={"tokens": 2048})
        for attempt in (1, 2):
            one.clone.held("calibrate")
            (one.clone.root / "control" / "held-calibrate").unlink()
            os.kill(one.flow_process(), signal.SIGKILL)
            wait_until(lambda n=attempt: team.read(run)["run_count"] > n, f"an attempt after {attempt}", 90)  # type: ignore[misc]
        ended = team.ends(run, "Failed", 120)
    assert ended["state"]["message"].startswith("The run has crashed 2 times, which is as often as SPARSEKD_ATTEMPTS")


def test_a_run_that_crashes_before_its_flow_begins_is_given_up(team: Team) -> None:
    """A worker that was not told where its clone is: no attempt is ever counted, so the server counts the crashes."""
    one, _ = team.machines
    fewer = one.environment | {"SPARSEKD_ATTEMPTS": "1"}
    assert "updated" in prefect("flows.server.automations", cwd=one.clone.root, environment=fewer)
    with one.at_work(SPARSEKD_HOME=""):
        ended = team.ends(team.run(), "Failed", 240)
    assert ended["run_count"] == 0
    assert ended["state"]["message"].startswith("It crashed 2 times within an hour, before it could work")
