"""Stages fetch-model, fetch-texts and fetch-benchmarks: from their pinned sources to data/raw/."""

import sys
from pathlib import Path

from tasks.corpora import own_corpora
from tasks.process import Stage, run_stage
from tasks.quick import importing


def model(stage: Stage) -> None:
    """The dense model as a stock checkpoint."""
    from sparsekd.errors import ModelError
    from sparsekd.sources import fetch_model

    config = stage.config.model
    source = stage.facts["source"] = fetch_model(config.source, config.revision, stage.out, stage.progress, stage.say)
    if source["kind"] != "catalogue":  # whose bytes are known; any other is loaded once, before work is built on it
        with importing():
            from sparsekd.models import load_model

        try:
            load_model(stage.out)
        except ModelError as error:
            raise ModelError(str(error).replace(str(stage.out), config.source)) from None


def texts(stage: Stage) -> None:
    """Calibration and held-out corpora, one document a line."""
    from sparsekd.sources import fetch_texts

    config, own = stage.config.texts, own_corpora(Path())
    stage.facts["corpora"] = fetch_texts(
        config.sources, config.revisions, config.column, stage.out, stage.progress, stage.say, own
    )


def benchmarks(stage: Stage) -> None:
    """The rows of the packaged lm-eval tasks."""
    from sparsekd.sources import fetch_benchmarks

    stage.facts["benchmarks"] = fetch_benchmarks(stage.config.evaluate.tasks, stage.out, stage.progress, stage.say)


PARTS = {"model": model, "texts": texts, "benchmarks": benchmarks}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: python -m tasks.fetch {{{'|'.join(PARTS)}}}")
    run_stage(["tasks.fetch", sys.argv[1]], PARTS[sys.argv[1]])
