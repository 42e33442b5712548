"""Stage evaluate, for the dense, the pruned or the distilled model: what was kept.

Perplexity, agreement with the dense model, lm-eval tasks and the fixed prompts. It alone reads the test parts.
"""

import sys

from tasks.process import Stage, run_stage


def evaluate(stage: Stage) -> None:
    # torch is imported here, after run_stage has set allocator and OpenMP
    from sparsekd.calibration.packing import CalibrationSet
    from sparsekd.distillation.teacher import TeacherCache
    from sparsekd.evaluation.evaluate import evaluate_model
    from sparsekd.runtime import resolve_device, use_threads

    use_threads(stage.config.runtime)
    variant = stage.spec.out.name
    model = next(path for path in stage.inputs if path in _MODELS)
    found = evaluate_model(
        stage.artifact(model).path,
        stage.config.evaluate,
        stage.out,
        variant=variant,
        test=CalibrationSet.load(stage.artifact("data/calibration").path).test,
        teacher=TeacherCache.open(stage.artifact("data/teacher").path),
        benchmarks=stage.artifact("data/raw/benchmarks").path,
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
