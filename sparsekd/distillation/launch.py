"""Starts the processes of a distillation on this machine, passes on what they say, and ends all when one fails."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import sparsekd.errors as errors
from sparsekd.calibration.packing import CalibrationSet
from sparsekd.config import Distill
from sparsekd.distillation.processes import Processes
from sparsekd.distillation.rank import JOB
from sparsekd.distillation.result import Trained
from sparsekd.progress import Progress

_POLL_SECONDS = 0.2


def launch(
    processes: Processes,
    student: Path,
    data: CalibrationSet,
    teacher: Path,
    dense: Path | None,
    config: Distill,
    device: torch.device,
    place: Path,
    progress: Progress,
    say: Callable[[str], None],
) -> Trained:
    """Train in several processes of this one's group, each of which ends with it; they resume from `place`.

    `teacher` is the directory of the teacher cache and `dense` the dense model's, for a cache that is
    `online`. Raises the error of the first process that failed; RuntimeError
    where that was none of ours.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, torch.get_num_threads() // processes.here)
    job = {
        "student": str(student.absolute()),
        "teacher": str(teacher.absolute()),
        "dense": str(dense.absolute()) if dense else None,
        "place": str(place.absolute()),
        "config": config.model_dump(mode="json"),
        "device": device.type,
        "processes": asdict(processes),
        "threads": threads,
        "openmp_wait": os.environ.get("OMP_WAIT_POLICY", "passive").lower(),
    }
    with tempfile.TemporaryDirectory(prefix="job-", dir=place.parent) as name:
        folder = Path(name)
        data.save(folder)
        (folder / JOB).write_text(json.dumps(job))
        _run(folder, processes, threads, progress, say)
        return Trained.load(folder)


def _run(folder: Path, processes: Processes, threads: int, progress: Progress, say: Callable[[str], None]) -> None:
    """The processes from their start to their end; none is left, whatever happens."""
    reader, writer = os.pipe()
    ranks: dict[int, subprocess.Popen[bytes]] = {}
    try:
        try:
            for rank in range(processes.first, processes.first + processes.here):
                ranks[rank] = _start(folder, rank, writer, threads, processes)
        finally:
            os.close(writer)
        _watch(ranks, processes.total, reader, progress, say)
    finally:
        for process in ranks.values():
            process.kill()
        for process in ranks.values():
            process.wait()
        os.close(reader)


def _start(folder: Path, rank: int, channel: int, threads: int, processes: Processes) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    # This package, wherever the process that starts it has it from
    paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if processes.machines.count == 1:  # nobody outside can connect, and the host's name need not resolve
        environment = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} | environment
    arguments = [str(folder), str(rank), str(channel), str(os.getpid())]
    return subprocess.Popen(
        [sys.executable, "-m", "sparsekd.distillation.rank", *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=[channel],
        env=environment,
    )


def _watch(
    ranks: dict[int, subprocess.Popen[bytes]], total: int, reader: int, progress: Progress, say: Callable[[str], None]
) -> None:
    """Return when all have ended well; raise for the first that has not."""
    left = b""
    while True:
        codes = {rank: process.poll() for rank, process in ranks.items()}
        # Read after asking for the codes: whatever a process said before it ended is in the pipe by then
        *lines, left = (left + _said(reader)).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "progress" in message:
                progress(*message["progress"], **message["values"])
            elif "say" in message:
                say(message["say"])
            else:
                raise _failure(message, ranks, total)
        for rank, code in codes.items():
            if code:
                raise _ended(rank, code, total)
        if all(code == 0 for code in codes.values()):
            return


def _said(reader: int) -> bytes:
    """All that is in the pipe (which holds no more than this), or what comes within a moment."""
    if not select.select([reader], [], [], _POLL_SECONDS)[0]:
        return b""
    text = os.read(reader, 1 << 16)
    if not text:  # every process has closed its end and is about to be gone
        time.sleep(_POLL_SECONDS)
    return text


def _failure(message: dict[str, Any], ranks: dict[int, subprocess.Popen[bytes]], total: int) -> Exception:
    if message["failed"]:
        error: Exception = getattr(errors, message["failed"])(message["text"])
        return error
    # A process that was killed says nothing; the others then fail because they cannot reach it
    for rank, process in ranks.items():
        code = process.poll()
        if code is not None and code < 0:
            return _ended(rank, code, total)
    text = f"process {message['rank'] + 1} of {total} failed: {message['text']}"
    return OSError(message["errno"], text) if message["errno"] else RuntimeError(f"Distillation: {text}")


def _ended(rank: int, code: int, total: int) -> Exception:
    if code < 0:
        return errors.ResourceError(
            f"Process {rank + 1} of {total} of the distillation was ended by {signal.Signals(-code).name}; where "
            "nobody did that, memory ran out: lower distill.batch_size or set distill.activation_checkpointing. Run "
            "again: it goes on from the last checkpoint."
        )
    return RuntimeError(f"Process {rank + 1} of {total} of the distillation ended with code {code}; see above.")
