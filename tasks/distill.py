"""Stage distill: the pruned model matches the dense model's distribution from the teacher cache."""

from tasks.process import Stage, run_stage
from tasks.quick import importing


def distill(stage: Stage) -> None:
    # torch is imported here, after run_stage has set allocator and OpenMP
    with importing():
        from sparsekd.calibration.packing import CalibrationSet
        from sparsekd.distillation.card import write_card
        from sparsekd.distillation.run import Curriculum, distill_checkpoint
        from sparsekd.distillation.teacher import TeacherCache
        from sparsekd.runtime import resolve_device, use_threads

    use_threads(stage.config.runtime)
    calibration = stage.artifact("data/calibration")
    data = CalibrationSet.load(calibration.path)
    trained_on = {corpus: data.validation[corpus] for corpus in calibration.facts["trained_on"]}
    pruned = stage.artifact("data/pruned")
    facts = distill_checkpoint(
        pruned.path,
        stage.out,
        Curriculum(
            data.calibration,
            trained_on,
            TeacherCache.open(stage.artifact("data/teacher").path),
            stage.artifact("data/raw/model").path,
        ),
        stage.config.distill,
        resolve_device(stage.config.runtime),
        stage.checkpoints,
        stage.identity,
        stage.progress,
        stage.say,
    )
    stage.facts.update(facts)
    stage.facts["reduction"] = pruned.facts["reduction"]
    write_card(stage.out, pruned.facts, stage.config.distill)


if __name__ == "__main__":
    run_stage(["tasks.distill"], distill)
