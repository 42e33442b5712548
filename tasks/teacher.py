"""Stage teacher: one pass of the dense model; its final hidden states are the exact teacher cache."""

from tasks.process import Stage, run_stage


def teacher(stage: Stage) -> None:
    # torch is imported here, after run_stage has set allocator and OpenMP
    import torch

    from sparsekd.calibration.packing import CalibrationSet
    from sparsekd.distillation.teacher import write_teacher_cache
    from sparsekd.models import load_model
    from sparsekd.runtime import resolve_device, use_threads

    use_threads(stage.config.runtime)
    data = CalibrationSet.load(stage.artifact("data/calibration").path)
    model = load_model(stage.artifact("data/raw/model").path, torch.float32, resolve_device(stage.config.runtime))
    size = 2 * model.config.hidden_size * sum(packed.tokens for packed in data.parts().values())
    stage.say(f"teacher cache: {size / 1e6:.0f} MB for {sum(p.tokens for p in data.parts().values()):,} tokens")
    write_teacher_cache(model, data, stage.out, stage.config.teacher.batch_size, stage.progress)


if __name__ == "__main__":
    run_stage(["tasks.teacher"], teacher)
