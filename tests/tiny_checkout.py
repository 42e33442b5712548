"""A whole checkout with the real stages, on a tiny random model and made-up texts: a run takes seconds of computing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flows.settings import params, params_text
from sparsekd.artifacts import writing
from tasks.environment import dvc_command
from tests.tiny_models import make_documents, make_tokenizer, write_model

HOUSE = Path(__file__).parents[1]
SETTINGS = [
    "runtime.threads=1", "calibrate.tokens=8192", "calibrate.sequence_length=64", "calibrate.held_out_tokens=128",
    "calibrate.held_out_share=0.2", "calibrate.minimum_characters=10", "calibrate.chat_prompts=2",
    "calibrate.chat_tokens=4", "prune.width=0.5", "prune.multiple_of=8", "prune.statistics_tokens=512",
    "distill.compile=never", "distill.checkpoint_every=1", "distill.validate_every=50", "distill.validation_tokens=64",
    "evaluate.tasks=[]", "benchmark.rounds=1", "benchmark.prefill_tokens=8", "benchmark.decode_tokens=2",
    "benchmark.openmp_wait=passive", "export.formats=[]", "report.prompts=[the river]", "report.prompt_tokens=4",
]  # fmt: skip
_DOCUMENTS = 800


def make_tiny_checkout(root: Path, settings: Iterable[str] = ()) -> Path:
    """A clone of this repository at `root`, with SETTINGS and `settings` on top, whose sources are fetched.

    What the stages that fetch would do needs a package index (tests/integration/test_fetch.py); here their outputs are
    made up and committed to the clone's DVC cache.
    """
    for name in subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=HOUSE, text=True
    ).splitlines():
        if not name.startswith(("tests/", "docs/")) and (HOUSE / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HOUSE / name, root / name)
    changed = params.with_settings(params.load(root), [*SETTINGS, *settings])
    (root / "params.yaml").write_text(params_text.full_text(changed.model_dump(mode="json")))
    commit = ["-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm"]
    for command in (["init", "-q", "."], ["add", "."], [*commit, "clone"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    source = {"name": "tiny", "label": "tiny", "kind": "local", "revision": "1", "licence": None, "base_model": None}
    roles = {"wiki": "calibration", "stories": "held_out"}
    corpora = {
        name: {"role": role, "documents": _DOCUMENTS, "characters": 1, "licence": None} for name, role in roles.items()
    }
    _fetched(root, "model", {"source": source}, _write_model)
    _fetched(root, "texts", {"corpora": corpora}, _write_texts)
    _fetched(root, "benchmarks", {"benchmarks": {}}, lambda out: None)
    dvc(root, "commit", "--force", "fetch-model", "fetch-texts", "fetch-benchmarks")
    subprocess.run(["git", "add", "dvc.lock"], cwd=root, check=True)
    subprocess.run(["git", *commit, "fetched"], cwd=root, check=True)
    return root


def dvc(root: Path, *arguments: str) -> str:
    """What `dvc arguments…` prints in the checkout."""
    done = subprocess.run(dvc_command(*arguments), cwd=root, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    """For a command in such a checkout: `python` is this one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "true"}


def _fetched(root: Path, name: str, facts: dict[str, Any], fill: Callable[[Path], object]) -> None:
    with writing(root / "data/raw" / name, f"fetch-{name}", {}, {}) as draft:
        fill(draft.path)
        draft.facts |= facts


def _write_model(out: Path) -> None:
    write_model(out, make_tokenizer(), tie_word_embeddings=True)


def _write_texts(out: Path) -> None:
    for seed, name in enumerate(("wiki", "stories")):
        lines = [json.dumps({"text": text}) for text in make_documents(_DOCUMENTS, seed)]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
