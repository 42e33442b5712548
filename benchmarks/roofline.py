"""How near each stage comes to what this machine can do: bare forward passes, plain training steps, matrix products.

    python -m benchmarks.roofline --data data           # after `make compress`; some 12 minutes
    python -m benchmarks.roofline --data data --quick   # fewer tokens, one round: 8 minutes with AVX2

Each piece of work runs in a process of its own, the variants of a step in turn, all in one go on one machine. Prints
tables and writes JSON and a picture of how the cost grows. FLOP are those of the matrix products; `of GEMM` is the time
that products of the same shapes take alone, over the time of the work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Size(NamedTuple):
    """How much of each piece of work is done."""

    teacher_tokens: int
    teacher_rounds: int
    prune_tokens: int
    rows: int
    growth_tokens: int
    growth_layers: int
    steps: int
    warmup: int


FULL = Size(
    teacher_tokens=8_192, teacher_rounds=3, prune_tokens=98_304, rows=50,
    growth_tokens=8_192, growth_layers=2, steps=16, warmup=3,
)  # fmt: skip
QUICK = Size(
    teacher_tokens=2_048, teacher_rounds=1, prune_tokens=2_048, rows=10,
    growth_tokens=512, growth_layers=1, steps=3, warmup=1,
)  # fmt: skip

STEPS = ("plain, stock process", "plain, our process", "ours", "ours, beside a busy core")
"""Variants of a training step. Stock: torch's allocator and OpenMP as they come."""


def work(name: str, arguments: argparse.Namespace) -> Any:
    """One piece of work, in this process."""
    if name != STEPS[0]:
        from sparsekd.config import Runtime
        from sparsekd.runtime import prepare_process

        prepare_process(Runtime())
    from benchmarks import workloads

    data, size = arguments.data, QUICK if arguments.quick else FULL
    if name == "teacher":
        return workloads.teacher(data, size.teacher_tokens, size.teacher_rounds)
    if name == "prune":
        return workloads.prune(data, arguments.tokens or size.prune_tokens)
    if name == "evaluate":
        return workloads.evaluate(data, size.rows)
    if name == "growth":
        return workloads.growth(size.growth_tokens, size.growth_layers, 768, 512)
    variant = "ours" if name.startswith("ours") else "plain"
    return workloads.step(data, variant, size.steps, size.warmup)


def start(name: str) -> Any:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.roofline", *sys.argv[1:], "--work", name]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    busy = _busy_core() if name.endswith("busy core") else None
    started = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        if busy:
            busy.kill()
            busy.wait()
    print(f"{name}: {time.monotonic() - started:.0f} s with loading and ceiling", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def _busy_core() -> subprocess.Popen[bytes]:
    """A process that keeps the first of our cores busy."""
    code = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\nwhile True: pass"
    return subprocess.Popen([sys.executable, "-c", code])


def fair_share() -> float:
    """Share of our cores that is left when another process takes its half of one of them."""
    cores = len(os.sched_getaffinity(0))
    return (cores - 0.5) / cores


def summarise(found: dict[str, Any], steps: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The figures that the goals are about, each a ratio of two measurements of this run."""
    speed = {name: [one["tokens_per_second"] for one in runs] for name, runs in steps.items()}
    middle = {name: statistics.median(values) for name, values in speed.items()}
    ours = middle[STEPS[2]]
    return {
        "teacher pass / bare forward": found["teacher"]["share_of_bare_forward"],
        "distillation / plain step, stock process": ours / middle[STEPS[0]],
        "distillation / plain step, our process": ours / middle[STEPS[1]],
        "distillation / GEMM": statistics.median(one["share_of_gemm"] for one in steps[STEPS[2]]),
        "prune stage, times a bare forward": found["prune"]["times_bare_forward"],
        "factorisation and solves, seconds": found["prune"]["solves_seconds"],
        "lm-eval rows / bare forward": found["evaluate"]["share_of_bare_forward"],
        "beside a busy core / fair share": middle[STEPS[3]] / ours / fair_share(),
    }


def stage_table(found: dict[str, Any], steps: dict[str, list[dict[str, Any]]]) -> str:
    """Time, tokens/s and FLOP/s of every piece of work."""
    rows = {name: [found[name]] for name in ("teacher", "prune", "evaluate")} | steps
    lines = ["| | tokens | seconds | CPU-s | tokens/s | GFLOP/s | GEMM | of GEMM |", "|---|" + "---:|" * 7]
    for name, runs in rows.items():
        one = sorted(runs, key=lambda run: float(run["tokens_per_second"]))[len(runs) // 2]
        lines.append(
            f"| {name} | {one['tokens']:,} | {one['seconds']:.1f} | {one['cpu_seconds']:.1f} "
            f"| {one['tokens_per_second']:.0f} | {one['flop_per_second'] / 1e9:.0f} "
            f"| {one['gemm_flop_per_second'] / 1e9:.0f} | {one['share_of_gemm']:.2f} |"
        )
    return "\n".join(lines)


def growth_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| tokens | layers | width | forward, s | training passes, s | prune, s |", "|" + "---:|" * 6]
    for row in rows:
        size = f"| {row['tokens']:,} | {row['layers']} | {row['width']:,} "
        lines.append(f"{size}| {row['forward']:.2f} | {row['training']:.2f} | {row['prune']:.2f} |")
    return "\n".join(lines)


def draw_growth(rows: list[dict[str, Any]], file: Path) -> None:
    """Seconds against the smallest point's, one panel for each dimension."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
    for panel, dimension in zip(panels, ("tokens", "layers", "width"), strict=True):
        others = [key for key in ("tokens", "layers", "width") if key != dimension]
        points = [row for row in rows if all(row[key] == rows[0][key] for key in others)]
        sizes = [row[dimension] for row in points]
        for name in ("forward", "training", "prune"):
            panel.plot(sizes, [row[name] for row in points], marker="o", label=name)
        panel.set(
            xlabel=dimension, xscale="log", yscale="log", xticks=sizes, xticklabels=[f"{size:,}" for size in sizes]
        )
        panel.minorticks_off()
    panels[0].yaxis.set_major_locator(LogLocator(base=2))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("seconds")
    panels[0].legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the data folder of a finished run")
    parser.add_argument(
        "--tokens", type=int, help=f"of the prune stage ({FULL.prune_tokens:,}; quick: {QUICK.prune_tokens:,})"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the training steps, in turn")
    parser.add_argument("--quick", action="store_true", help="fewer tokens and one round")
    parser.add_argument(
        "--out", type=Path, default=Path("build/roofline"), help="folder for roofline.json and growth.png"
    )
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(arguments.work, arguments)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    rounds = 1 if arguments.quick else arguments.rounds
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in STEPS}
    for _ in range(rounds):
        for name in STEPS:
            steps[name].append(start(name))
    found = {name: start(name) for name in ("teacher", "evaluate", "growth", "prune")}
    goals = summarise(found, steps)
    result = {"quick": arguments.quick, "ratios": goals, "work": found, "steps": steps}
    (arguments.out / "roofline.json").write_text(json.dumps(result, indent=2) + "\n")
    draw_growth(found["growth"]["rows"], arguments.out / "growth.png")
    print(f"\n{stage_table(found, steps)}\n\n{growth_table(found['growth']['rows'])}\n")
    for name, value in goals.items():
        print(f"{name:45} {value:.2f}")
    if arguments.quick:
        print(f"\nSo few tokens make pruning look dear: hold it against its goal at {FULL.prune_tokens:,} tokens.")


if __name__ == "__main__":
    main()
