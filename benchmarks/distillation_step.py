"""Tokens a second of our distillation step beside a plain Transformers cross-entropy step.

    python -m benchmarks.distillation_step --model data/pruned --cache data/teacher --calibration data/calibration

Both train the same parameters of one student at the same dtype (bf16 autocast over float32) and batch, each round in
a process of its own, in turn. The plain step is shown twice: as Transformers and torch come (default allocator, default
OpenMP), and with our process settings. Prints a table and writes JSON.
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

VARIANTS = ("plain, stock process", "plain, our process", "ours")


def measure(variant: str, arguments: argparse.Namespace) -> float:
    """Tokens a second over the measured steps of one process."""
    if variant != VARIANTS[0]:
        from sparsekd.config import Runtime
        from sparsekd.runtime import prepare_process

        prepare_process(Runtime())
    import torch

    from sparsekd.calibration.packing import Packed
    from sparsekd.config import Distill
    from sparsekd.distillation import run, student, teacher
    from sparsekd.distillation.head import HeadLoss
    from sparsekd.distillation.trainer import Lesson
    from sparsekd.models import final_hidden, lm_head, load_model

    model = load_model(arguments.model)
    parameters = student.freeze_all_but_ffn_and_norms(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-6, fused=variant == VARIANTS[2])
    packed = Packed.load(arguments.calibration / "calibration.safetensors")

    def plain(rows: list[int]) -> None:
        ids = packed.input_ids[rows]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    def ours(rows: list[int]) -> None:
        ids, scored, targets, hidden_teacher = lesson.batch(rows, model.device)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = final_hidden(model, ids)
        hidden = hidden[:, :-1][scored]
        with torch.no_grad():
            _, _, gradient = loss(hidden, hidden_teacher, targets)
        hidden.backward(gradient.to(hidden.dtype))

    step = plain
    if variant == VARIANTS[2]:
        cache = teacher.TeacherCache.open(arguments.cache)
        compiled, _ = student.should_compile(Distill(), model.device)
        head = lm_head(model).to(model.device, torch.bfloat16)
        student.cast_frozen_projections(model, torch.bfloat16)
        if compiled:
            student.choose_attention(model, Distill(), compiled, model.device)
            student.compile_layers(model)
        loss = HeadLoss(head, cache.head, 0.5, 1.0, run.head_terms(compiled))
        lesson = Lesson(packed, cache.hidden("calibration"))
        step = ours
    started = time.perf_counter()
    for number in range(arguments.warmup + arguments.steps):
        if number == arguments.warmup:
            started = time.perf_counter()
        first = number * arguments.batch % (len(packed.input_ids) - arguments.batch)
        step(list(range(first, first + arguments.batch)))
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return arguments.steps * arguments.batch * packed.input_ids.shape[1] / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("data/pruned"))
    parser.add_argument("--cache", type=Path, default=Path("data/teacher"))
    parser.add_argument("--calibration", type=Path, default=Path("data/calibration"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/distillation_step.json"))
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant, arguments)))
        return
    speeds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    for number in range(arguments.rounds):
        for variant in VARIANTS:
            command = [sys.executable, "-m", "benchmarks.distillation_step", *sys.argv[1:], "--variant", variant]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            speeds[variant].append(float(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}, {variant}: {speeds[variant][-1]:.0f} tokens/s", flush=True)
    ratios = {
        variant: [ours / other for ours, other in zip(speeds[VARIANTS[2]], speeds[variant], strict=True)]
        for variant in VARIANTS[:2]
    }
    for variant, values in speeds.items():
        print(f"{variant:22} {statistics.median(values):7.0f} tokens/s  ({min(values):.0f} to {max(values):.0f})")
    for variant, values in ratios.items():
        print(f"ours / {variant:22} {statistics.median(values):.2f}  ({min(values):.2f} to {max(values):.2f})")
    arguments.out.write_text(json.dumps({"tokens_per_second": speeds, "ratio": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
