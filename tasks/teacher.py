"""Stage teacher: one pass of the dense model fills the teacher cache."""

from tasks.process import Stage, run_stage
from tasks.quick import importing


def teacher(stage: Stage) -> None:
    # torch is imported here, after run_stage has set allocator and OpenMP
    with importing():
        import torch

        from sparsekd.calibration.packing import CalibrationSet
        from sparsekd.distillation.teacher import write_teacher_cache
        from sparsekd.models import load_model
        from sparsekd.runtime import resolve_device, use_threads

    use_threads(stage.config.runtime)
    data = CalibrationSet.load(stage.artifact("data/calibration").path)
    model = load_model(stage.artifact("data/raw/model").path, torch.float32, resolve_device(stage.config.runtime))
    write_teacher_cache(model, data, stage.out, stage.config.teacher, stage.progress, stage.say)


if __name__ == "__main__":
    run_stage(["tasks.teacher"], teacher)
