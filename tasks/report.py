"""Stage report: summary.json, metrics.json, pictures, an offline page and the model card from what the stages wrote."""

from pathlib import Path

from tasks.git import code_state
from tasks.graph import read_graph
from tasks.process import Stage, run_stage
from tasks.quick import quicken
from tasks.state import context_path, read_state


def report(stage: Stage) -> None:
    """Fill data/report. The manifest keeps the verdict, so that a log can show it without opening the page."""
    quicken()  # no torch here
    from sparsekd.report import Context, write_report

    artifacts = {path.removeprefix("data/"): artifact for path, artifact in stage.inputs.items()}
    commit, edited = code_state(Path())
    beside = {"seconds": _seconds(), "commit": commit, "edited": edited}
    known = Context.read(context_path(Path())).model_copy(update=beside)
    summary = write_report(artifacts, stage.out, stage.config.report.name, stage.config.gate, known)
    stage.facts["verdict"] = summary.verdict
    stage.facts["gate"] = summary.gate.state
    for warning in summary.warnings:
        stage.say(f"note: {warning}")
    stage.say(summary.verdict)
    stage.say(summary.gate.sentence())


def _seconds() -> dict[str, float | None]:
    """Wall time of each stage of the run that goes on; without one (`dvc repro`), none is known."""
    if not context_path(Path()).is_file():
        return {}
    states = {name: read_state(Path(), name) for name in read_graph(Path())}
    ended = {name: state for name, state in states.items() if state and state.state in {"done", "cached"}}
    return {name: state.seconds if state.state == "done" else None for name, state in ended.items()}


if __name__ == "__main__":
    run_stage(["tasks.report"], report)
