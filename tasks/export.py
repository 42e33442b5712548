"""Stage export: the distilled model for other runtimes, each file compared there with the checkpoint."""

import json
from pathlib import Path

from tasks.process import Stage, run_stage
from tasks.quick import importing


def export(stage: Stage) -> None:
    """Fill data/export. What llama.cpp does not take is a warning; a file that computes something else, an error."""
    from sparsekd.export.formats import gguf_types

    types = gguf_types(stage.config.export.formats)
    stage.facts["exports"] = {}
    if not types:
        stage.say("export.formats is empty: nothing to write")
        return
    with importing():
        from sparsekd.errors import NotExportableError
        from sparsekd.export.run import export_gguf
        from sparsekd.runtime import use_threads

    use_threads(stage.config.runtime)
    try:
        report = export_gguf(stage.artifact("data/distilled").path, stage.out, types, progress=stage.progress)
    except NotExportableError as error:
        stage.warn(f"no GGUF file was written. {error}")
        return
    stage.facts["exports"] = {name: entry["sha256"] for name, entry in report["files"].items()}
    for name, entry in report["files"].items():
        found = entry["compared"]
        stage.say(f"{name}: {entry['bytes'] / 1e6:.0f} MB, KL to the checkpoint {found['kl']:.2g} nats a token")
    if stage.config.export.compare:
        _compare(stage, {entry["type"]: stage.out / name for name, entry in report["files"].items()})


def _compare(stage: Stage, written: dict[str, Path]) -> None:
    """quantised.json: the dense model and this one in llama.cpp, in the types of export.compare and those written."""
    from sparsekd.calibration.packing import CalibrationSet
    from sparsekd.distillation.teacher import TeacherCache
    from sparsekd.errors import ExportError
    from sparsekd.export.formats import check_types
    from sparsekd.export.quality import QUALITY, quantised
    from sparsekd.models import read_config

    models = {"dense": stage.artifact("data/raw/model").path, "distilled": stage.artifact("data/distilled").path}
    configs, types = [read_config(path) for path in models.values()], []
    for name in stage.config.export.compare:
        try:
            for config in configs:
                check_types([name], config)
            types.append(name)
        except ExportError as error:
            stage.warn(f"export.compare: {error}")
    rows = quantised(
        models,
        types,
        {("distilled", kind): file for kind, file in written.items()},
        CalibrationSet.load(stage.artifact("data/calibration").path),
        TeacherCache.open(stage.artifact("data/teacher").path),
        stage.config.export,
        stage.config.evaluate,
        stage.artifact("data/raw/benchmarks").path,
        stage.progress,
    )
    (stage.out / QUALITY).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    run_stage(["tasks.export"], export)
