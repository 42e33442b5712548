"""One process of several that distil together: `python -m sparsekd.distillation.rank JOB RANK CHANNEL PARENT`.

Started by sparsekd/distillation/launch.py. What it has to say goes through the pipe CHANNEL, one JSON object a line.
torch is imported after the process is prepared.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from sparsekd.config import Distill, Runtime
from sparsekd.errors import SparseKDError
from sparsekd.runtime import importing, prepare_process

JOB = "job.json"
_TEXT_BYTES = 3000  # a line below PIPE_BUF (4096) reaches the reader whole, whoever else writes
_PR_SET_PDEATHSIG = 1
_DONE, _POLL_SECONDS = "done", 0.05
_TIMEOUT_MINUTES = 30  # what a step may take on the slowest process, its first compilation included


def end_with_parent(parent: int) -> None:
    """The kernel ends this process when `parent`, which started it, is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Channel:
    """Says things to the process that started this one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def progress(self, done: float, total: float, unit: str, **values: float) -> None:
        self._send({"progress": [done, total, unit], "values": values})

    def say(self, text: str) -> None:
        self._send({"say": _cut(text)})

    def failed(self, rank: int, error: BaseException) -> None:
        kind = type(error).__name__
        ours = isinstance(error, SparseKDError)
        text = _cut(str(error) if ours else f"{kind}: {error}")
        number = getattr(error, "errno", None)
        self._send({"failed": kind if ours else None, "text": text, "rank": rank, "errno": number})

    def _send(self, message: dict[str, Any]) -> None:
        os.write(self._descriptor, (json.dumps(message, ensure_ascii=False) + "\n").encode())


def _cut(text: str) -> str:
    return text.encode()[:_TEXT_BYTES].decode(errors="ignore")


def main(folder: Path, rank: int, channel: Channel) -> NoReturn:
    """Take part in the job that `folder` describes, and exit."""
    try:
        job = json.loads((folder / JOB).read_text())
        prepare_process(Runtime(threads=job["threads"], openmp_wait=job["openmp_wait"]))
        _take_part_and_exit(folder, job, rank, channel)
    except BaseException as error:
        # First of all, before the others see that this process is gone and fail in their turn
        channel.failed(rank, error)
        if not isinstance(error, SparseKDError):
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(2)


def _take_part_and_exit(folder: Path, job: dict[str, Any], rank: int, channel: Channel) -> NoReturn:
    from datetime import timedelta

    with importing():
        import torch
        import torch.distributed as dist
        from torch._C._distributed_c10d import FileStore, Store, TCPStore

        from sparsekd.calibration.packing import CalibrationSet
        from sparsekd.distillation.processes import Machines, Processes
        from sparsekd.distillation.run import Curriculum, train
        from sparsekd.distillation.strategy import STRATEGIES
        from sparsekd.distillation.teacher import TeacherCache
        from sparsekd.progress import silent

    config = Distill(**job["config"])
    machines = Machines(**job["processes"].pop("machines"))
    processes = Processes(**job["processes"], machines=machines)
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    if device.type == "cuda":
        device = torch.device("cuda", rank - processes.first)
        torch.cuda.set_device(device)
    if machines.count == 1:
        meeting: Store = FileStore(str(folder / "meeting"), processes.total)
    else:
        meeting = TCPStore(machines.address, machines.port, processes.total, rank == 0)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if processes.backend == "nccl" else "gloo",
        store=meeting,
        rank=rank,
        world_size=processes.total,
        timeout=timedelta(minutes=_TIMEOUT_MINUTES),
    )
    data = CalibrationSet.load(folder)
    strategy = STRATEGIES[config.distributed.strategy](processes, rank, device)
    cache = TeacherCache.open(Path(job["teacher"]))
    trained = train(
        Path(job["student"]),
        Curriculum(data.calibration, data.validation, cache, Path(job["dense"]) if job["dense"] else None),
        config,
        device,
        Path(job["place"]),
        strategy,
        channel.progress if strategy.leads else silent,
        channel.say if strategy.leads else lambda text: None,
    )
    if strategy.leads:
        trained.save(folder)
    _wait_for_the_others(meeting, processes.total)
    # Nothing is taken down: the destructors of store and group were seen to wait for ever for a process that was gone
    os._exit(0)


def _wait_for_the_others(meeting: Any, total: int) -> None:
    """Until every process has had all that it needs of this one: an exit loses what is still on its way to them."""
    with contextlib.suppress(RuntimeError):  # the first process, where the count is kept, has seen that all are here
        meeting.add(_DONE, 1)
        while meeting.add(_DONE, 0) < total:
            time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[4]))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group; the parent says what there is to say
    main(Path(sys.argv[1]), int(sys.argv[2]), Channel(int(sys.argv[3])))
