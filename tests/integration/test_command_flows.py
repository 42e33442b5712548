"""The flows `evaluate` and `preview`, for real: page and MLflow show what they found."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from tests.miniature import make_miniature, started
from tests.prefect_api import ask

pytestmark = pytest.mark.slow

EVALUATE = """
import json, sys
from flows.evaluate import evaluate
state = evaluate(**json.loads(sys.argv[1]), return_state=True)
print("ended", state.name, state.message)
"""
SETTINGS = [
    "runtime.threads=1", "calibrate.tokens=1024", "calibrate.sequence_length=64", "calibrate.held_out_tokens=128",
    "calibrate.held_out_share=0.2", "calibrate.minimum_characters=10", "calibrate.chat_prompts=2",
    "calibrate.chat_tokens=4", "evaluate.tasks=[]", "report.prompts=[the river]", "report.prompt_tokens=4",
]  # fmt: skip


def test_a_checkpoint_is_measured(api: str, tmp_path: Path, tiny_llama_dir: Path, tiny_texts: Path) -> None:
    checkout = make_miniature(tmp_path / "check out")
    settings = [*SETTINGS, f"texts.sources=[{tiny_texts}]"]
    asked = {"model": str(tiny_llama_dir), "dense": str(tiny_llama_dir), "preset": "smoke", "settings": settings}
    with started(checkout, EVALUATE, json.dumps(asked), PREFECT_API_URL=api) as process:
        output, _ = process.communicate()
    assert "ended Completed" in output, output

    [artifact] = ask(api, "artifacts/filter", {"artifacts": {"key": {"any_": ["evaluation"]}}})
    rows = [[cell.strip() for cell in line.split("|")] for line in artifact["data"].splitlines()]
    figures = {row[1]: row[2] for row in rows if len(row) == 5}
    assert float(figures["KL to dense sentences, nats"]) < 1e-3
    assert float(figures["perplexity sentences"]) > 1
    [folder] = (checkout.root / ".sparsekd" / "evaluations").iterdir()
    evaluation = json.loads((folder / "evaluate" / "evaluation.json").read_text())
    with contextlib.closing(sqlite3.connect(checkout.root / "mlflow" / "mlflow.db")) as database:
        logged = dict(database.execute("select key, value from latest_metrics"))
    assert logged["perplexity/sentences"] == evaluation["perplexity"]["sentences"]["value"]
    assert not checkout.processes()


def test_progress_is_said_as_it_comes(tmp_path: Path) -> None:
    from flows.flow_runs.apart import new_lines

    said: list[str] = []
    log = tmp_path / "log"
    look = new_lines(log, "evaluate", said.append)
    look()
    log.write_text("evaluate: 10 %, 5 row")
    look()
    assert said == []
    log.write_text('evaluate: 10 %, 5 rows\nwarning: few rows\n{"value": 3}\nevaluate: 2')
    look()
    look()
    assert said == ["10 %, 5 rows", "warning: few rows"]


PREVIEW = EVALUATE.replace("evaluate", "preview")


def test_a_model_is_priced(api: str, tmp_path: Path, tiny_llama_dir: Path, tiny_texts: Path) -> None:
    checkout = make_miniature(tmp_path / "check out")
    settings = [*SETTINGS, f"texts.sources=[{tiny_texts}]", "prune.multiple_of=8"]
    asked = {"model": str(tiny_llama_dir), "widths": "0.75,0.5", "preset": "smoke", "settings": settings}
    with started(checkout, PREVIEW, json.dumps(asked), PREFECT_API_URL=api) as process:
        output, _ = process.communicate()
    assert "ended Completed" in output, output
    [artifact] = ask(api, "artifacts/filter", {"artifacts": {"key": {"any_": ["price-list"]}}})
    shown = [line for line in artifact["data"].splitlines() if line.startswith("| ")]
    assert [line.split("|")[2].strip() for line in shown] == ["of neurons", "100%", "75%", "50%"]
    assert "](data:image/png;base64," in artifact["data"]
    [kept] = (checkout.root / ".sparsekd" / "prices").iterdir()
    assert [offer["share"] for offer in json.loads(kept.read_text())["offers"]] == [0.75, 0.5]
    assert not checkout.processes()
