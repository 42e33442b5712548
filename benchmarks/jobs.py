"""Jobs that each run in a process of their own and add one JSON line to a file; what is there is not run again."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from sparsekd.config import Runtime
from sparsekd.runtime import prepare_process, use_threads

Line = dict[str, Any]
Job = TypeVar("Job")


def parser(description: str, out: Path) -> argparse.ArgumentParser:
    """The options that all files of jobs have."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--data", type=Path, default=Path("data"), help="the data folder of a finished run")
    made.add_argument("--out", type=Path, default=out, help="JSON lines that results are added to")
    made.add_argument("--hours", type=float, default=24.0, help="begin no job after so many hours")
    made.add_argument("--table", action="store_true", help="print the tables and run nothing")
    made.add_argument("--job", help=argparse.SUPPRESS)
    return made


def read(file: Path, kind: type[Job]) -> dict[Job, Line]:
    """What has been measured, by job."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {kind(**{key: line[key] for key in kind.__dataclass_fields__}): line for line in lines}


def run(
    module: str,
    jobs: Iterable[Job],
    one: Callable[[Job, Path], Line],
    tables: Callable[[dict[Job, Line]], str],
    arguments: argparse.Namespace,
    kind: type[Job],
) -> None:
    """Do what the command line says: print the tables, do the job it names, or start one process after the other."""
    if arguments.job:
        prepare_process(Runtime())
        use_threads(Runtime())
        job = kind(**json.loads(arguments.job))
        print(json.dumps(asdict(job) | one(job, arguments.data)))
        return
    if arguments.table:
        print(tables(read(arguments.out, kind)))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for job in jobs:
        if job in read(arguments.out, kind) or time.monotonic() - started > 3600 * arguments.hours:
            continue
        command = [sys.executable, "-m", module, "--data", str(arguments.data), "--job", json.dumps(asdict(job))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"{job} ended with {done.returncode}; run again to go on with it.")
        line = json.loads(done.stdout.splitlines()[-1])
        with arguments.out.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(f"{job}: {sum(line['cpu_seconds'].values()):.0f} CPU-seconds", flush=True)
