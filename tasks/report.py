"""Stage report: summary.json, metrics.json, pictures, an offline page and the model card from what the stages wrote."""

from tasks.process import Stage, run_stage
from tasks.quick import quicken


def report(stage: Stage) -> None:
    """Fill data/report. The manifest keeps the verdict, so that a log can show it without opening the page."""
    quicken()  # no torch here
    from sparsekd.report import write_report

    artifacts = {path.removeprefix("data/"): artifact for path, artifact in stage.inputs.items()}
    summary = write_report(artifacts, stage.out, stage.config.report.name, stage.config.gate)
    stage.facts["verdict"] = summary.verdict
    stage.facts["gate"] = summary.gate.state
    for warning in summary.warnings:
        stage.say(f"note: {warning}")
    stage.say(summary.verdict)
    stage.say(summary.gate.sentence())


if __name__ == "__main__":
    run_stage(["tasks.report"], report)
