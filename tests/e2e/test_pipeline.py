"""The real stages on a tiny random model by plain `dvc repro`: no Prefect, no command of ours, one kill on the way."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from flows.settings import params, params_text
from sparsekd.artifacts import hash_file
from tests.miniature import wait_until
from tests.tiny_checkout import dvc, environment, make_tiny_checkout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    # distillation long enough, some seconds, to be met while it works
    return make_tiny_checkout(tmp_path / "checkout", ["calibrate.tokens=24576"])


def test_every_stage_with_a_kill_in_distillation(checkout: Path) -> None:
    with (checkout / "repro.log").open("w") as log:
        killed = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=checkout,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    steps = checkout / ".checkpoints" / "distill"

    def distilling() -> bool:
        assert killed.poll() is None, (checkout / "repro.log").read_text()
        return any(int(path.name[5:13]) > 4 for path in steps.glob("*/step-????????"))

    wait_until(distilling, "distillation", 200)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (checkout / "data/distilled").exists(), "nothing half done stands in the place of a model"

    again = dvc(checkout, "repro")
    assert "resuming after step" in again
    for stage in ("calibrate", "teacher", "prune"):
        assert f"Stage '{stage}' didn't change, skipping" in again
    assert "Data and pipelines are up to date" in dvc(checkout, "repro")

    model, info = AutoModelForCausalLM.from_pretrained(checkout / "data/distilled", output_loading_info=True)
    assert not any(info.values())
    dense = json.loads((checkout / "data/raw/model/config.json").read_text())["intermediate_size"]
    assert model.config.intermediate_size == dense // 2
    summary = json.loads((checkout / "data/report/summary.json").read_text())
    assert set(summary["variants"]["distilled"]["perplexity"]) == {"wiki", "stories", "chat"}
    assert (checkout / "data/report/index.html").is_file()

    benchmark = json.loads((checkout / "data/benchmark/benchmark.json").read_text())
    assert set(benchmark["models"]) == {"dense", "pruned", "distilled"}
    assert len(benchmark["ratio"]["distilled"]["decode"]["rounds"]) == benchmark["settings"]["rounds"]
    assert "distilled: prefill ×" in again

    resumed = [hash_file(checkout / "data/distilled" / name) for name in ("model.safetensors", "curve.csv")]
    distilled(checkout)
    undisturbed = [hash_file(checkout / "data/distilled" / name) for name in ("model.safetensors", "curve.csv")]
    assert resumed == undisturbed

    alone = distilled(checkout, "distill.batch_size=2", "distill.precision=fp32", "distill.tokens=1024")
    for strategy in ("ddp", "fsdp"):
        together = distilled(checkout, f"distill.distributed.strategy={strategy}", "distill.distributed.processes=2")
        assert together == pytest.approx(alone, rel=1e-4), strategy


def distilled(checkout: Path, *settings: str) -> list[float]:
    """The losses, step by step, of stage distill with these settings on top."""
    changed = params.with_settings(params.load(checkout), settings)
    (checkout / "params.yaml").write_text(params_text.full_text(changed.model_dump(mode="json")))
    shutil.rmtree(checkout / "data/distilled")
    subprocess.run([sys.executable, "-m", "tasks.distill"], cwd=checkout, env=environment(), check=True)
    with (checkout / "data/distilled/curve.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]
