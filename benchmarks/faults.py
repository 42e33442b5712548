"""Break a run of `sparsekd serve` in every way that happens, and measure what it costs and when it goes on.

    python -m benchmarks.faults cancel --checkout CLONE
    python -m benchmarks.faults kill --checkout CLONE --stage distill
    python -m benchmarks.faults disk --checkout CLONE_ON_A_SMALL_DISK --stage distill

Works on a checkout whose environment is set up, with the real stages and the real servers, which it starts and ends.
`cancel` cancels a run in each stage as the page does, waits until none of its processes is left, and asks for it again.
`kill` ends with SIGKILL, one after the other, the process of a flow run, the Prefect server, and `sparsekd serve`.
`disk` fills the disk of the checkout while a stage works, frees it, and goes on. At the end of each the bits of the
model are compared with those of an undisturbed run (--same-as NAME).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.server.servers import answers, free_port
from flows.workspaces.commands import git
from flows.workspaces.workspace import Workspace, experiments, workspaces
from tasks.cache import dvc_objects
from tasks.state import read_json, read_state
from tests.miniature import processes_in
from tests.prefect_api import ask

STAGES = (
    "calibrate", "teacher", "prune", "distill", "evaluate@dense", "evaluate@pruned", "evaluate@distilled", "benchmark",
    "report",
)  # fmt: skip
FINAL = ("Completed", "Passed", "Not passed", "Not enough evidence", "Cached", "Failed", "Cancelled")
LONG = 3600.0


@dataclass
class Served:
    """A `sparsekd serve` at work in `checkout`."""

    checkout: Path
    process: subprocess.Popen[bytes]
    api: str

    def start(self, settings: dict[str, Any]) -> str:
        """Ask for a run as the form does; its id."""
        found = ask(self.api, "deployments/name/compress/current")
        body = {"parameters": found["parameters"] | settings, "state": {"type": "SCHEDULED"}}
        return str(ask(self.api, f"deployments/{found['id']}/create_flow_run", body)["id"])

    def state(self, run: str) -> tuple[str, str]:
        """The name and the message of the run's state."""
        state = ask(self.api, f"flow_runs/{run}")["state"]
        return state["name"], state["message"] or ""

    def place(self, run: str) -> Workspace | None:
        """The workspace of the run, once it has one."""
        noted = {space.path: read_json(space.path / ".sparsekd/run.json") for space in workspaces(self.checkout)}
        mine = [path for path, note in noted.items() if note and note["flow_run_id"] == run]
        return Workspace(self.checkout, mine[0].name) if mine else None

    def reaches(self, run: str, stages: Iterable[str]) -> tuple[str, Workspace]:
        """Wait until one of `stages` computes in the run; which one, and the run's workspace."""
        while True:
            name, message = self.state(run)
            if name in FINAL:
                raise SystemExit(f"The run ended as {name} before any of {', '.join(stages)}: {message}")
            if (place := self.place(run)) is not None:
                for stage in stages:
                    state = read_state(place.path, stage)
                    if state and state.state == "running" and at_work(place.path, stage):
                        return stage, place
            time.sleep(0.1)

    def ends(self, run: str) -> str:
        """Wait for the end of the run; the name of its state."""
        until(lambda: self.state(run)[0] in FINAL, "the run to end")
        name, message = self.state(run)
        if name == "Failed":
            print(f"  failed: {message}")
        return name

    def outcomes(self, run: str) -> dict[str, str]:
        """Of each stage of an ended run."""
        name = ask(self.api, f"flow_runs/{run}")["name"]
        return dict(read_json(self.checkout / f".sparsekd/runs/{name}/run.json")["outcomes"])


def at_work(place: Path, stage: str) -> list[int]:
    """The processes that compute `stage` in the workspace: not DVC, which starts them."""
    module = f"tasks.{stage.partition('@')[0]}"
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if module in command and process.info["cwd"] == str(place):
            found.append(process.pid)
    return found


def until(condition: Callable[[], bool], what: str, seconds: float = LONG) -> float:
    """Poll `condition`; the seconds that it took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise SystemExit(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
    return time.monotonic() - started


@contextlib.contextmanager
def serving(checkout: Path, port: int | None = None) -> Iterator[Served]:
    """`sparsekd serve` until the end of the block."""
    port = port or free_port()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows", "serve", "--port", str(port), "--mlflow-port", str(free_port())]
    log = checkout / ".sparsekd" / "logs" / "faults-serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=checkout, env=clean, stdout=output, stderr=output)
    try:
        until(lambda: "Ctrl-C" in log.read_text() or process.poll() is not None, "serve to be ready", 120)
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        yield Served(checkout, process, f"http://127.0.0.1:{port}/api")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def cancel(arguments: argparse.Namespace) -> None:
    """Cancel a run in each stage; the next one computes that stage and none before it."""
    with serving(arguments.checkout) as served:
        remaining = list(STAGES)
        while remaining:
            run = served.start(arguments.settings)
            stage, place = served.reaches(run, remaining)  # two may work side by side, in any order
            remaining.remove(stage)
            time.sleep(arguments.after)
            started = time.monotonic()
            ask(served.api, f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": False})
            while at_work(place.path, stage) or processes_in(place.path):
                time.sleep(0.05)
            gone = time.monotonic() - started
            while served.state(run)[0] != "Cancelled":
                time.sleep(0.1)
            print(f"{stage}: no process {gone:.1f} s after the request to cancel", flush=True)
        run = served.start(arguments.settings)
        print(f"the next run: {served.ends(run)}; {served.outcomes(run)}", flush=True)
        same(arguments, ask(served.api, f"flow_runs/{run}")["name"])


def kill(arguments: argparse.Namespace) -> None:
    """SIGKILL to what a run needs, in mid-stage."""
    port = free_port()
    with serving(arguments.checkout, port) as served:
        run = served.start(arguments.settings)
        _, place = served.reaches(run, [arguments.stage])
        time.sleep(arguments.after)
        old = at_work(place.path, arguments.stage)
        os.kill(flow_process(place), signal.SIGKILL)
        waited = until(lambda: anew(served, run, arguments.stage, old), "the stage to be at work", 300)
        print(
            f"flow process killed: {arguments.stage} at work again after {waited:.0f} s; {said(served, run)}",
            flush=True,
        )
        time.sleep(arguments.after)
        os.kill(server_process(served), signal.SIGKILL)
        until(lambda: not answers(f"{served.api}/health"), "the server to be gone", 10)
        waited = until(lambda: answers(f"{served.api}/health"), "the server to answer", 300)
        print(f"Prefect server killed: it answers again after {waited:.0f} s; {said(served, run)}", flush=True)
        time.sleep(arguments.after)
        os.kill(served.process.pid, signal.SIGKILL)
        gone = until(lambda: not processes_in(arguments.checkout), "everything to end", 60)
        print(f"sparsekd serve killed: no process is left after {gone:.1f} s", flush=True)
    started = time.monotonic()
    with serving(arguments.checkout, port) as served:
        print(f"  served again after {time.monotonic() - started:.0f} s")
        served.reaches(run, [arguments.stage])
        print(
            f"  {arguments.stage} at work {time.monotonic() - started:.0f} s after serve was started again", flush=True
        )
        print(f"the run: {served.ends(run)}; {served.outcomes(run)}", flush=True)
        same(arguments, ask(served.api, f"flow_runs/{run}")["name"])


def anew(served: Served, run: str, stage: str, old: list[int]) -> bool:
    """Whether the stage computes in other processes than `old`."""
    place = served.place(run)
    return bool(place and set(at_work(place.path, stage)) - set(old))


def said(served: Served, run: str) -> str:
    """What Prefect says of the run."""
    found = ask(served.api, f"flow_runs/{run}")
    return f"Prefect says {found['state']['name']}, attempt {found['run_count']}"


def flow_process(place: Workspace) -> int:
    """The process that runs the flow whose workspace this is."""
    found = [
        process.pid
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(place.path) and any("engine" in part for part in (process.info["cmdline"] or []))
    ]
    assert len(found) == 1, [processes_in(place.path), found]
    return found[0]


def server_process(served: Served) -> int:
    """The process that answers for Prefect."""
    port = served.api.partition("127.0.0.1:")[2].partition("/")[0]
    found = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if {"server", "start", port} <= set(process.info["cmdline"] or []) and "guard" not in str(process.info)
    ]
    assert len(found) == 1, found
    return found[0]


def disk(arguments: argparse.Namespace) -> None:
    """Fill the disk of the checkout while a stage of a run of the command line works; free it; run again."""
    filler = arguments.checkout / ".sparsekd" / "filler"
    command = [sys.executable, "-m", "flows", "compress", *(f"-S{one}" for one in arguments.set)]
    process = subprocess.Popen(
        command, cwd=arguments.checkout, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def there() -> bool:
        return bool(at_work(arguments.checkout, arguments.stage)) or process.poll() is not None

    until(there, f"{arguments.stage} to compute")
    time.sleep(arguments.after)
    free = shutil.disk_usage(arguments.checkout).free
    with contextlib.suppress(OSError), filler.open("wb") as stream:
        while True:
            stream.write(bytes(1 << 20))
            stream.flush()
    print(f"{free / 1e6:.0f} MB were free in {arguments.stage}, {free_now(arguments)} are now", flush=True)
    output, _ = process.communicate()
    print(f"  ended with code {process.returncode}: {output.splitlines()[-1:]}")
    filler.unlink()
    started = time.monotonic()
    done = subprocess.run(command, cwd=arguments.checkout, text=True, capture_output=True)
    print(f"  with the disk free again: code {done.returncode} after {time.monotonic() - started:.0f} s")
    print("\n".join(line for line in done.stdout.splitlines() if any(stage in line for stage in STAGES)))


def free_now(arguments: argparse.Namespace) -> str:
    return f"{shutil.disk_usage(arguments.checkout).free / 1e6:.0f}"


def same(arguments: argparse.Namespace, name: str) -> None:
    """Say whether the run's model has the bits of the undisturbed run."""
    if arguments.same_as:
        equal = digest(arguments.checkout, name) == digest(arguments.checkout, arguments.same_as)
        print(f"model of {name}: {'the same bits as' if equal else 'OTHER BITS than'} {arguments.same_as}")


def digest(checkout: Path, name: str) -> str:
    """Where DVC keeps the weights of the run: its name there is their hash."""
    lock = git(checkout, "show", f"{experiments(checkout)[name].tree}:dvc.lock")
    return str(dvc_objects(checkout, "data/distilled", lock)["model.safetensors"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cancel", "kill", "disk"))
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, default="distill", help="in which kill and disk strike")
    parser.add_argument("--after", type=float, default=3.0, help="seconds in the stage before it is disturbed")
    parser.add_argument("--same-as", help="a finished run with the same parameters, for comparison")
    parser.add_argument("-S", "--set", action="append", default=[], help="a setting for the runs, as of compress")
    arguments = parser.parse_args()
    arguments.checkout = arguments.checkout.resolve()
    arguments.settings = nested(arguments.set)
    {"cancel": cancel, "kill": kill, "disk": disk}[arguments.what](arguments)


def nested(settings: list[str]) -> dict[str, Any]:
    """`stage.key=value` as the parameters of a deployment."""
    import yaml

    found: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        stage, _, option = key.partition(".")
        found.setdefault(stage, {})[option] = yaml.safe_load(value)
    return found


if __name__ == "__main__":
    main()
