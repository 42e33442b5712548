"""Pairs of isolated runs at the same time, with different widths: that they never disturb each other, and the time.

    python -m benchmarks.pairs --folder /tmp/pairs --pairs 20
    python -m benchmarks.pairs --checkout CLONE --pairs 1 --in-a-row -S calibrate.tokens=30720

Without --checkout it makes one in --folder, with the real stages on a tiny random model. Each pair has settings of
calibration that no earlier one had, so both runs want calibrate, teacher and evaluate@dense at the same moment. A pair
is right when both runs end, each such stage was computed once, each width is what its own run asked for, and the
checkout stands as before. Exits with 1 where one is not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from flows.workspaces.commands import git
from flows.workspaces.workspace import experiments, workspaces
from tasks.cache import dvc_objects

SHARED = ("calibrate", "teacher", "evaluate@dense")
OWN = ("prune", "distill")
WIDTHS = ((0.25, 0.75), (0.5, 0.875))


def run(checkout: Path, name: str, settings: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`sparsekd compress --isolated` with these settings, under way."""
    options = [part for setting in settings for part in ("-S", setting)]
    command = [sys.executable, "-m", "flows", "compress", "--isolated", "--name", name, *options]
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=checkout, stdout=output, stderr=output, stdin=subprocess.DEVNULL)


def wrong(checkout: Path, before: tuple[str, list[str]], names: list[str], widths: tuple[float, float]) -> list[str]:
    """What is not as it must be after a pair; nothing where all is well."""
    found = []
    records = {name: json.loads((checkout / f".sparsekd/runs/{name}/run.json").read_text()) for name in names}
    for stage in SHARED:
        outcomes = Counter(record["outcomes"].get(stage) for record in records.values())
        if outcomes != Counter(("computed", "restored")):
            found.append(f"{stage}: {dict(outcomes)}")
    dense = json.loads((checkout / "data/raw/model/config.json").read_text())["intermediate_size"]
    for (name, record), width in zip(records.items(), widths, strict=True):
        found += [f"{name}: {stage} {record['outcomes'].get(stage)}" for stage in OWN if not computed(record, stage)]
        lock = git(checkout, "show", f"{experiments(checkout)[name].tree}:dvc.lock")
        kept = json.loads(dvc_objects(checkout, "data/distilled", lock)["config.json"].read_text())
        if kept["intermediate_size"] != round(dense * width):
            found.append(f"{name}: intermediate_size {kept['intermediate_size']} of {dense}, asked for {width}")
    if (now := standing(checkout)) != before:
        found.append(f"git status and workspaces changed from {before} to {now}")
    return found


def standing(checkout: Path) -> tuple[str, list[str]]:
    """What a run must leave as it was: the state of the files, and which workspaces there are."""
    return git(checkout, "status", "--porcelain"), sorted(space.name for space in workspaces(checkout))


def computed(record: dict[str, Any], stage: str) -> bool:
    return bool(record["outcomes"].get(stage) == "computed")


def one_pair(checkout: Path, label: str, settings: list[str], in_a_row: bool) -> tuple[float, list[str]]:
    """Seconds that the pair took, and what was wrong with it."""
    index = int(label.rpartition("-")[2])
    widths = WIDTHS[index % len(WIDTHS)]
    names = [f"{label}-{letter}" for letter in "ab"]
    logs = [checkout.parent / f"{name}.log" for name in names]
    before = standing(checkout)
    started = time.monotonic()
    codes = []
    waiting = []
    for name, width, log in zip(names, widths, logs, strict=True):
        process = run(checkout, name, [*settings, f"prune.width={width}"], log)
        if in_a_row:
            codes.append(process.wait())
        else:
            waiting.append(process)
    codes += [process.wait() for process in waiting]
    seconds = time.monotonic() - started
    if any(codes):
        said = [log.read_text(errors="replace").strip().rpartition("\n")[2] for log in logs]
        return seconds, [f"exit codes {codes}", *said]
    return seconds, wrong(checkout, before, names, widths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/pairs"), help="where the tiny checkout is made")
    parser.add_argument("--checkout", type=Path, help="a checkout whose sources are fetched, instead of a tiny one")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first pair: new numbers, new settings")
    parser.add_argument("--in-a-row", action="store_true", help="one run after the other, for comparison")
    parser.add_argument("--tokens", type=int, default=8192, help="of the first pair's calibration; each has more")
    parser.add_argument("-S", "--set", action="append", default=[], help="a setting for every run")
    arguments = parser.parse_args()
    checkout = arguments.checkout or arguments.folder.resolve() / "checkout"
    if not checkout.exists():
        from tests.tiny_checkout import make_tiny_checkout

        make_tiny_checkout(checkout)
    bad = 0
    times = []
    for index in range(arguments.first, arguments.first + arguments.pairs):
        label = f"{'row' if arguments.in_a_row else 'pair'}-{index}"
        # as many tokens as fill whole sequences; the two kinds of pair must not find each other's results
        tokens = arguments.tokens + 512 * (2 * index + arguments.in_a_row)
        settings = [*arguments.set, f"calibrate.tokens={tokens}"]
        seconds, found = one_pair(checkout, label, settings, arguments.in_a_row)
        times.append(seconds)
        bad += bool(found)
        print(f"{label}: {seconds:.0f} s, {'; '.join(found) or 'right'}", flush=True)
    median = sorted(times)[len(times) // 2]
    print(f"{len(times) - bad} of {len(times)} pairs right; median {median:.0f} s a pair")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
