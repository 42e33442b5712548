"""Speed, measured side by side: a process for each model, interleaved rounds, ratios to the dense model.

Only the process that is being timed may run; the others are stopped meanwhile (idle OpenMP threads can spin). A round
times every model once, in rotating order, so slow drifts of the machine cancel in the round's ratio.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsekd.config import Benchmark, Runtime
from sparsekd.errors import ResourceError
from sparsekd.progress import Progress, silent

DENSE = "dense"
PROFILED = ("dense", "distilled")
PHASES = ("prefill", "decode")


@dataclass
class Worker:
    """A process that has loaded one model. It runs only while it is asked something."""

    name: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, path: Path, settings: Benchmark, runtime: Runtime) -> Worker:
        """Begin to load the model; `receive` gives its description once it is loaded and warm."""
        command = [sys.executable, "-m", "sparsekd.evaluation.speed_worker"]
        environment = os.environ | {"OMP_WAIT_POLICY": runtime.openmp_wait.upper(), "KINETO_LOG_LEVEL": "5"}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
        )
        worker = cls(name, process)
        order = {"path": str(path), "settings": settings.model_dump(), "runtime": runtime.model_dump()}
        worker._send(json.dumps(order))
        return worker

    def ask(self, command: str) -> Any:
        """Let the process run for one command and return its answer."""
        self.process.send_signal(signal.SIGCONT)
        self._send(command)
        return self.receive()

    def receive(self) -> Any:
        """The next answer; the process stands still afterwards. Raises ResourceError when it failed or died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ResourceError(
                f"The benchmark's process for the {self.name} model ended with code {self.process.wait()} "
                "(-9 is mostly too little memory); its last words are above. Lower benchmark.batch_size or "
                "benchmark.prefill_tokens."
            )
        answer = json.loads(line)
        if "error" in answer:
            raise ResourceError(f"The {self.name} model cannot be timed: {answer['error']}")
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def end(self) -> None:
        """Kill the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` tells why
            self.process.stdin.write(line + "\n")


def run_benchmark(
    models: Mapping[str, Path], settings: Benchmark, runtime: Runtime, progress: Progress = silent
) -> dict[str, Any]:
    """Time the checkpoints `models` (a name of the variant to its directory; "dense" must be one of them).

    `runtime` tells device and threads; how OpenMP waits is the benchmark's own setting.
    Returns benchmark.json: settings, host, models, ratio, predicted, profile. Raises ResourceError when a process dies.
    """
    runtime = runtime.model_copy(update={"openmp_wait": settings.openmp_wait})
    with _workers(models, settings, runtime) as workers:
        descriptions = {name: worker.receive() for name, worker in workers.items()}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for number in range(settings.rounds):
            for name in rotated(list(workers), number):
                rounds[name].append(workers[name].ask("time"))
                done = sum(map(len, rounds.values()))
                progress(done, settings.rounds * len(workers), "timings")
        profiles = {name: workers[name].ask("profile") for name in PROFILED if name in workers}
    described = descriptions[DENSE]
    measured = {name: _columns(answers) for name, answers in rounds.items()}
    others = [name for name in models if name != DENSE]
    costs = {name: description["cost"] for name, description in descriptions.items()}
    return {
        "settings": {
            **settings.model_dump(),
            "threads": described["threads"],
            "device": described["device"],
            "dtype": described["dtype"],
        },
        "host": describe_host(),
        "models": measured,
        "ratio": {name: {phase: _ratio(measured, name, phase) for phase in PHASES} for name in others},
        "predicted": {name: predicted_speedup(costs[DENSE], costs[name]) for name in others},
        "cost": costs,
        **_profile_tables(profiles),
    }


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each model comes first, second, … equally often."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def ratio_of_rounds(model: Sequence[float], dense: Sequence[float]) -> dict[str, Any]:
    """Median and range of the ratios of the rounds; above 1 is faster than dense."""
    rounds = [one / other for one, other in zip(model, dense, strict=True)]
    return {"value": statistics.median(rounds), "low": min(rounds), "high": max(rounds), "rounds": rounds}


def predicted_speedup(dense: Mapping[str, float], model: Mapping[str, float]) -> dict[str, float]:
    """What the counts promise: prefill by FLOPs (compute bound), decoding by bytes read (memory bound)."""
    return {
        "prefill": dense["prefill_flops"] / model["prefill_flops"],
        "decode": dense["decode_bytes"] / model["decode_bytes"],
    }


def describe_host() -> dict[str, Any]:
    """CPU name, cores that this process may use, memory in bytes, operating system."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_bytes": memory, "system": platform.system()}


@contextlib.contextmanager
def _workers(models: Mapping[str, Path], settings: Benchmark, runtime: Runtime) -> Iterator[dict[str, Worker]]:
    workers: dict[str, Worker] = {}
    try:
        for name, path in models.items():
            workers[name] = Worker.start(name, path, settings, runtime)
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


def _columns(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    columns: dict[str, Any] = {
        f"{phase}_tokens_per_second": [answer[f"{phase}_tokens_per_second"] for answer in rounds] for phase in PHASES
    }
    return columns | {"peak_memory_bytes": max(answer["peak_memory_bytes"] for answer in rounds)}


def _ratio(measured: Mapping[str, Any], name: str, phase: str) -> dict[str, Any]:
    key = f"{phase}_tokens_per_second"
    return ratio_of_rounds(measured[name][key], measured[DENSE][key])


def _profile_tables(profiles: Mapping[str, Any]) -> dict[str, Any]:
    """`profile` of a whole request, and the same for its two phases apart."""
    from sparsekd.evaluation.profile import with_shares

    whole = {
        name: {key: phases["prefill"][key] + phases["decode"][key] for key in phases["prefill"]}
        for name, phases in profiles.items()
    }
    return {
        "profile": {name: with_shares(table) for name, table in whole.items()},
        "profile_phases": {
            name: {phase: with_shares(table) for phase, table in phases.items()} for name, phases in profiles.items()
        },
    }
