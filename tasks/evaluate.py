"""Stage evaluate, for the dense, the pruned or the distilled model: what was kept.

Perplexity, agreement with the dense model, lm-eval tasks and the fixed prompts. It alone reads the test parts.
"""

import sys

from tasks.process import Stage, run_stage
from tasks.quick import importing


def evaluate(stage: Stage) -> None:
    # torch is imported here, after run_stage has set allocator and OpenMP
    with importing():
        from sparsekd.calibration.packing import CalibrationSet
        from sparsekd.distillation.teacher import TeacherCache
        from sparsekd.evaluation.evaluate import evaluate_model
        from sparsekd.evaluation.overlap import benchmark_overlap, read_benchmark_rows
        from sparsekd.models import load_tokenizer
        from sparsekd.runtime import resolve_device, use_threads

    use_threads(stage.config.runtime)
    variant = stage.spec.out.name
    model = stage.artifact(next(path for path in stage.inputs if path in _MODELS)).path
    data = CalibrationSet.load(stage.artifact("data/calibration").path)
    benchmarks = stage.artifact("data/raw/benchmarks")
    if variant == "dense":  # it is the same for all three
        rows = read_benchmark_rows(benchmarks.path, benchmarks.facts)
        for task, shared in benchmark_overlap(data.calibration, load_tokenizer(model), rows).items():
            stage.warn(f"{shared} rows of {task} share 13 words with the calibration texts; its score may be too good.")
    found = evaluate_model(
        model,
        stage.config.evaluate,
        stage.out,
        variant=variant,
        test=data.test,
        validation={} if variant == "pruned" else data.validation,  # the gate judges what is shipped
        teacher=TeacherCache.open(stage.artifact("data/teacher").path),
        benchmarks=benchmarks.path,
        prompts=stage.config.report.prompts,
        prompt_tokens=stage.config.report.prompt_tokens,
        device=resolve_device(stage.config.runtime),
        home=stage.spec.out,
        progress=stage.progress,
    )
    for corpus, perplexity in found.perplexity.items():
        stage.say(f"{corpus}: perplexity {perplexity.value:.2f} ({perplexity.low:.2f} to {perplexity.high:.2f})")
    for task, score in found.tasks.items():
        stage.say(
            f"{task}: {score.metric} {score.value:.3f} ± {score.stderr or 0:.3f} ({score.n} of {score.n_total} rows)"
        )


_MODELS = ("data/raw/model", "data/pruned", "data/distilled")


if __name__ == "__main__":
    run_stage(["tasks.evaluate", *sys.argv[1:]], evaluate)
