"""The real stages on a tiny random model by plain `dvc repro`: no Prefect, no command of ours, one kill on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from flows import params
from sparsekd.artifacts import hash_file, writing
from sparsekd.sources.checkpoint import stock_files
from tests.conftest import make_documents
from tests.miniature import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
HOUSE = Path(__file__).parents[2]
SETTINGS = [
    "runtime.threads=1", "calibrate.tokens=8192", "calibrate.sequence_length=64", "calibrate.held_out_tokens=128",
    "calibrate.held_out_share=0.2", "calibrate.minimum_characters=10", "calibrate.chat_prompts=2",
    "calibrate.chat_tokens=4", "prune.width=0.5", "prune.multiple_of=8", "prune.statistics_tokens=512",
    "distill.compile=never", "distill.checkpoint_every=1", "distill.validate_every=50", "distill.validation_tokens=64",
    "evaluate.tasks=[]", "benchmark.rounds=1", "benchmark.prefill_tokens=8", "benchmark.decode_tokens=2",
    "benchmark.openmp_wait=passive", "report.prompts=[the river]", "report.prompt_tokens=4",
]  # fmt: skip


def dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "true"}


def fetched(root: Path, name: str, facts: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """What a stage that fetches leaves: its own work needs a package index (tests/integration/test_fetch.py)."""
    with writing(root / "data/raw" / name, f"fetch-{name}", {}, {}) as draft:
        fill(draft.path)
        draft.facts |= facts


@pytest.fixture
def checkout(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    """A clone with tiny settings whose sources are fetched."""
    root = tmp_path / "checkout"
    for name in subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=HOUSE, text=True
    ).splitlines():
        if not name.startswith(("tests/", "docs/")) and (HOUSE / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HOUSE / name, root / name)
    (root / "params.yaml").write_text(params.full_text(params.with_settings(params.load(root), SETTINGS)))
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q", "."], ["add", "."], [*identity, "commit", "-qm", "clone"]):
        subprocess.run(["git", *command], cwd=root, check=True)

    def copy_model(out: Path) -> None:
        for name, file in stock_files(make_model("llama", tie_word_embeddings=True), "model").items():
            shutil.copy(file, out / name)

    def write_texts(out: Path) -> None:
        for seed, name in enumerate(("wiki", "stories")):
            lines = [json.dumps({"text": text}) for text in make_documents(200, seed)]
            (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    source = {"name": "tiny", "label": "tiny", "kind": "local", "revision": "1", "licence": None, "base_model": None}
    roles = {"wiki": "calibration", "stories": "held_out"}
    corpora = {name: {"role": role, "documents": 200, "characters": 1, "licence": None} for name, role in roles.items()}
    fetched(root, "model", {"source": source}, copy_model)
    fetched(root, "texts", {"corpora": corpora}, write_texts)
    fetched(root, "benchmarks", {"benchmarks": {}}, lambda out: None)
    dvc(root, "commit", "--force", "fetch-model", "fetch-texts", "fetch-benchmarks")
    return root


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

    resumed = [hash_file(checkout / "data/distilled" / name) for name in ("model.safetensors", "curve.csv")]
    shutil.rmtree(checkout / "data/distilled")
    subprocess.run([sys.executable, "-m", "tasks.distill"], cwd=checkout, env=environment(), check=True)
    undisturbed = [hash_file(checkout / "data/distilled" / name) for name in ("model.safetensors", "curve.csv")]
    assert resumed == undisturbed
