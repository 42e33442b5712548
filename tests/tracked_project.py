"""A checkout whose run is over, and what MLflow holds of it: for the tests of the tracking task."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparsekd.artifacts import Artifact, writing
from tasks.graph import read_graph
from tasks.process import select
from tasks.tracking import pending, registry
from tasks.tracking.store import resolve_uri

REPOSITORY = Path(__file__).parents[1]
CURVE = """step,tokens,loss,kl,ce,gradient_norm,learning_rate,validation_kl,validation_ce
0,512,3.5,1.0,6.0,2.0,0.0001,,
1,1024,3.25,0.75,5.75,1.5,0.0003,0.8,5.9
2,1536,3.0,0.5,5.5,1.25,0.0,,
"""


@dataclass(frozen=True)
class Project:
    """A checkout whose stages have all run: the real dvc.yaml, made-up outputs. `settings` lie below those of a run."""

    root: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def run(
        self,
        width: float = 0.75,
        weights: bytes = b"weights",
        checkpoint: Path | None = None,
        kl: float = 0.5,
        gate: str = "no limits",
    ) -> None:
        """What `dvc repro` leaves: every stage's output with its manifest, and dvc.lock."""
        values = {**self.settings, "preset": "smoke"}
        for section, value in {"prune": {"width": width}, "report": {"name": "tiny"}}.items():
            values[section] = {**values.get(section, {}), **value}
        (self.root / "params.yaml").write_text(yaml.safe_dump(values))
        lock: dict[str, Any] = {"schema": "2.0", "stages": {}}
        for stage in read_graph(self.root).values():
            out = self.root / stage.out
            inputs = {dep: Artifact.read(self.root / dep).manifest.sha256() for dep in stage.data_deps}
            with writing(out, stage.name, select(values, stage.params), inputs) as draft:
                self._fill(stage.name, draft.path, draft.facts, weights, checkpoint, kl)
                if stage.name == "report":
                    shown = summary(kl) | {"gate": {"state": gate, "checks": []}}
                    (draft.path / "summary.json").write_text(json.dumps(shown))
            digest = Artifact.read(out).manifest.sha256()[:32]
            lock["stages"][stage.name] = {"outs": [{"path": str(stage.out), "md5": f"{digest}.dir"}]}
        (self.root / "dvc.lock").write_text(yaml.safe_dump(lock))

    def _fill(
        self, stage: str, out: Path, facts: dict[str, Any], weights: bytes, checkpoint: Path | None, kl: float
    ) -> None:
        if stage == "fetch-model":
            (out / "model.safetensors").write_bytes(b"dense weights")
            facts["source"] = {"name": "smol", "kind": "catalogue", "revision": "abc", "sha256": "def"}
        elif stage == "fetch-benchmarks":
            (out / "arc_easy.arrow").write_bytes(b"rows")
            facts["benchmarks"] = {"arc_easy": {"file": "arc_easy.arrow", "rows": 570, "licence": "cc-by-sa-4.0"}}
        elif stage == "fetch-texts":
            (out / "wiki.jsonl").write_text('{"text": "a"}\n')
            facts["corpora"] = {"wiki": {"role": "calibration", "documents": 1, "characters": 1, "source": "here"}}
            facts["corpora"]["wiki"]["revision"] = "123"
        elif stage == "calibrate":
            facts["tokens"] = {"calibration": 1536}
        elif stage == "distill":
            if checkpoint:
                shutil.copytree(checkpoint, out, dirs_exist_ok=True)
            else:
                (out / "config.json").write_text('{"model_type": "llama", "dtype": "bfloat16"}')
                (out / "tokenizer.json").write_text("{}")
                (out / "model.safetensors").write_bytes(weights)
            (out / "README.md").write_text("short card")
            (out / "curve.csv").write_text(CURVE)
        elif stage == "prune":
            (out / "layers.csv").write_text("layer,error_before,error_after\n0,0.2,0.1\n")
        elif stage == "export":
            (out / "export.json").write_text('{"format": "gguf"}')
            facts["exports"] = {"model-f16.gguf": "e" * 64}
        elif stage == "report":
            (out / "index.html").write_text("<html>")
            (out / "loss.png").write_bytes(b"png")
            (out / "README.md").write_text("---\nbase_model: x\n---\n# The card\n")
            (out / "metrics.json").write_text(json.dumps({"kl": kl, "total_reduction": 0.25}))
        (out / "data").write_text(stage)

    @property
    def weights(self) -> Path:
        return self.root / "data/distilled/model.safetensors"

    @property
    def database(self) -> str:
        return resolve_uri(self.root)

    @property
    def marker(self) -> Path:
        return pending.marker_path(self.root)


@dataclass(frozen=True)
class Server:
    """A tracking server started as mlflow/README.md says."""

    uri: str
    project: Project


def summary(kl: float) -> dict[str, Any]:
    """A summary.json with one of everything that has a shape of its own."""
    task = {"metric": "acc", "value": 0.5, "stderr": 0.03, "n": 200, "n_total": 570, "chance": 0.25, "in_mean": True}
    task["difference"] = {"value": -0.02, "low": -0.05, "high": None}
    variant = {
        "parameters": {"total": 100, "non_embedding": 80, "ffn": 60},
        "bytes": 200,
        "dtype": "bfloat16",
        "perplexity": {"wiki": {"value": 36.5, "low": 35.0, "high": 38.0}},
        "agreement": {"wiki": {"kl": {"value": kl, "low": 0.4, "high": 0.6}}},
        "tasks": {"arc_easy": task},
    }
    return {
        "schema_version": 1,
        "model": {
            "name": "tiny",
            "label": "Tiny",
            "source": {"name": "smol", "revision": "abc", "quantization": "Q4_1"},
        },
        "reduction": {"width": 0.25, "ffn": 0.25, "non_embedding": 0.2, "total": 0.15},
        "verdict": "15 % smaller.",
        "variants": {"dense": variant, "pruned": variant, "distilled": variant},
        "warnings": [],
    }


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def runs(uri: str, experiment: str = "sparsekd") -> list[Any]:
    store = client(uri)
    return list(store.search_runs([store.get_experiment_by_name(experiment).experiment_id]))


def versions(uri: str) -> list[Any]:
    return sorted(client(uri).search_model_versions("name = 'tiny'"), key=lambda version: int(version.version))


def stored(uri: str, version: str = "1") -> Path:
    """The checkpoint directory behind a version in a local store."""
    found = registry.local_path(client(uri).get_model_version("tiny", version).source)
    assert found is not None
    return found / "model"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def command(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m tasks.track` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-m", "tasks.track", *arguments]
    return subprocess.Popen(line, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
