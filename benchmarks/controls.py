"""Controls of the method on one model: what distillation does where nothing was pruned, and one heavier width.

    python -m benchmarks.controls --data data

Three controls at full width show how much of a gain is plain training on these texts: cross-entropy only, KL only
(which must change almost nothing: the teacher is the student) and both. Then the model is pruned to --width and
distilled. Every model is scored on the validation and the test part of each corpus, against the dense model's cache.
Reads what stages fetch, calibrate and teacher of a run left in --data. Prints Markdown tables and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsekd.config import Distill, Prune, Runtime
from sparsekd.runtime import compute_dtype, prepare_process, resolve_device, use_threads

CONTROLS = {"width 1.0, CE only": 0.0, "width 1.0, KL only": 1.0, "width 1.0, alpha 0.5": 0.5}
PARTS = ("validation", "test")


def models(arguments: argparse.Namespace, work: Path) -> Iterator[tuple[str, Path]]:
    """Name and checkpoint of each model to be scored, one after the other."""
    from sparsekd.calibration.packing import CalibrationSet
    from sparsekd.distillation.run import Curriculum, distill_checkpoint
    from sparsekd.distillation.teacher import TeacherCache
    from sparsekd.pruning.checkpoint import prune_checkpoint

    data = CalibrationSet.load(arguments.data / "calibration")
    trained = {name: data.validation[name] for name in arguments.corpora}
    curriculum = Curriculum(data.calibration, trained, TeacherCache.open(arguments.data / "teacher"))
    device = resolve_device(Runtime())
    dense = arguments.data / "raw/model"

    def distilled(name: str, student: Path, config: Distill) -> Path:
        out = work / name
        out.mkdir()
        started = time.monotonic()
        facts = distill_checkpoint(student, out, curriculum, config, device, work / "checkpoints")
        speed = facts["tokens"] / (time.monotonic() - started)
        print(f"{name}: {facts['tokens']} tokens, {speed:.0f} tokens/s with compilation and validation", flush=True)
        return out

    yield "dense", dense
    for name, alpha in CONTROLS.items() if arguments.tokens else ():
        config = Distill(tokens=arguments.tokens, alpha=alpha, learning_rate=arguments.learning_rate)
        yield name, distilled(name, dense, config)
    if arguments.width_tokens:
        pruned = work / "pruned"
        pruned.mkdir()
        prune_checkpoint(dense, pruned, data.calibration, Prune(width=arguments.width), device, work / "layers")
        yield f"width {arguments.width:g}, pruned", pruned
        name = f"width {arguments.width:g}, distilled"
        yield name, distilled(name, pruned, Distill(tokens=arguments.width_tokens))


def scores(path: Path, data: Path, parts: Sequence[str] = PARTS) -> dict[str, dict[str, Any]]:
    """Perplexity and KL to dense with their intervals, by part and corpus."""
    from sparsekd.calibration.packing import CalibrationSet
    from sparsekd.distillation.teacher import TeacherCache
    from sparsekd.evaluation.perplexity import document_sums
    from sparsekd.models import load_model

    held_out = CalibrationSet.load(data / "calibration")
    device = resolve_device(Runtime())
    model = load_model(path, compute_dtype(device), device)
    cache = TeacherCache.open(data / "teacher")
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for corpus, packed in getattr(held_out, part).items():
            sums = document_sums(model, packed, 8, cache, f"{part}-{corpus}")
            agreement = sums.agreement(0)
            assert agreement is not None
            found.setdefault(part, {})[corpus] = {
                "perplexity": sums.perplexity(0).model_dump(),
                "kl": agreement["kl"].model_dump(),
            }
    return found


def table(results: dict[str, dict[str, dict[str, Any]]], part: str) -> str:
    """One row a model, one column a corpus: perplexity, and KL to dense in brackets."""
    corpora = list(next(iter(results.values()))[part])
    lines = [f"| {part} | " + " | ".join(corpora) + " |", "|---|" + "---:|" * len(corpora)]
    for name, found in results.items():
        cells = (f"{c['perplexity']['value']:.2f} ({c['kl']['value']:.3f})" for c in found[part].values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the data folder of a finished run")
    parser.add_argument("--corpora", nargs="+", default=["wiki", "c4"], help="corpora that are trained on")
    parser.add_argument("--tokens", type=int, default=40_960, help="of each control at full width; 0 leaves them out")
    parser.add_argument("--learning-rate", type=float, default=3e-5, help="of the controls")
    parser.add_argument("--width", type=float, default=896, help="of the pruned model")
    parser.add_argument("--width-tokens", type=int, default=61_440, help="it is distilled on; 0 leaves it out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/controls.json"))
    arguments = parser.parse_args()
    prepare_process(Runtime())
    use_threads(Runtime())
    results: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.data.resolve().parent) as folder:
        for name, path in models(arguments, Path(folder)):
            results[name] = scores(path, arguments.data)
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
            print(f"{name}: scored", flush=True)
    for part in PARTS:
        print(f"\n{table(results, part)}")


if __name__ == "__main__":
    main()
