"""Stage benchmark: interleaved speed rounds and a kernel profile; timings are never part of an equal-bytes claim."""

from tasks.process import Stage, run_stage
from tasks.quick import quicken


def benchmark(stage: Stage) -> None:
    import json

    quicken()  # the tensors are in other processes
    from sparsekd.evaluation.speed import run_benchmark

    models = {
        "dense": stage.artifact("data/raw/model").path,
        "pruned": stage.artifact("data/pruned").path,
        "distilled": stage.artifact("data/distilled").path,
    }
    found = run_benchmark(models, stage.config.benchmark, stage.config.runtime, stage.progress)
    for name, ratio in found["ratio"].items():
        stage.say(f"{name}: prefill × {ratio['prefill']['value']:.2f}, decode × {ratio['decode']['value']:.2f}")
    (stage.out / "benchmark.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    run_stage(["tasks.benchmark"], benchmark)
