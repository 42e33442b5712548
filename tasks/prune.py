"""Stage prune: neurons are selected and the rest is refitted, layer by layer."""

from tasks.process import Stage, run_stage
from tasks.quick import importing


def prune(stage: Stage) -> None:
    # torch is imported here, after run_stage has set allocator and OpenMP
    with importing():
        from sparsekd.calibration.packing import CalibrationSet
        from sparsekd.pruning.budget import describe_reduction
        from sparsekd.pruning.checkpoint import prune_checkpoint
        from sparsekd.runtime import resolve_device, use_threads

    use_threads(stage.config.runtime)
    data = CalibrationSet.load(stage.artifact("data/calibration").path)
    facts = prune_checkpoint(
        stage.artifact("data/raw/model").path,
        stage.out,
        data.calibration,
        stage.config.prune,
        resolve_device(stage.config.runtime),
        stage.checkpoints,
        stage.identity,
        stage.progress,
        stage.say,
    )
    stage.facts.update(facts)
    width = facts["intermediate_size"]
    stage.say(
        f"{width['dense']} to {width['pruned']} neurons a layer: {describe_reduction(facts['reduction'])} removed"
    )


if __name__ == "__main__":
    run_stage(["tasks.prune"], prune)
