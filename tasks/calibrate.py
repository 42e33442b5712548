"""Stage calibrate: raw documents to packed sequences, split into calibration, validation and test."""

from functools import partial

from tasks.process import Stage, run_stage
from tasks.quick import importing


def calibrate(stage: Stage) -> None:
    # torch is imported here, after run_stage has set allocator and OpenMP
    with importing():
        from sparsekd.calibration.build import build_calibration
        from sparsekd.calibration.corpora import read_corpora
        from sparsekd.models import load_model, load_tokenizer
        from sparsekd.runtime import resolve_device, use_threads

    use_threads(stage.config.runtime)
    dense = stage.artifact("data/raw/model").path
    texts = stage.artifact("data/raw/texts")
    built = build_calibration(
        read_corpora(texts.path, texts.facts),
        load_tokenizer(dense),
        stage.config.calibrate,
        partial(load_model, dense),
        resolve_device(stage.config.runtime),
        stage.progress,
    )
    for warning in built.warnings:
        stage.warn(warning)
    built.data.save(stage.out)
    stage.facts.update(built.facts)


if __name__ == "__main__":
    run_stage(["tasks.calibrate"], calibrate)
