"""Stage export: the distilled model for other runtimes, each file compared there with the checkpoint."""

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


if __name__ == "__main__":
    run_stage(["tasks.export"], export)
