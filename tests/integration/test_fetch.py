"""The fetch stages as DVC runs them, from a local directory and from a stand-in for the hub."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file

from sparsekd.artifacts import Artifact
from sparsekd.models import load_model, load_tokenizer
from sparsekd.sources import resolve_model
from tests.hub_server import HubServer, Repo

ROOT = Path(__file__).parents[2]
COMMIT, OTHER = "a" * 40, "b" * 40
CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
# The held-out corpora come out of a package; these tests are about the hub.
TEXTS = """
import json, sys
from pathlib import Path
from sparsekd.errors import SparseKDError
from sparsekd.sources import texts
found = texts.catalogue().model_copy(update={"held_out": ()})
texts.catalogue = lambda: found
out, sources, column = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
try:
    print(json.dumps(texts.fetch_texts(sources, None, column, out)))
except SparseKDError as error:
    sys.exit(f"error: {error}")
"""


@dataclass
class Checkout:
    """A directory that stages run in, with caches of its own."""

    root: Path
    endpoint: str = "http://127.0.0.1:9"  # nobody listens there
    offline: str = "1"

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_HUB_OFFLINE": self.offline,
            "HF_DATASETS_OFFLINE": "0",
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.root / "hf"),
            "SPARSEKD_CACHE": str(self.root / "cache"),
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        return subprocess.run(
            [sys.executable, *command], cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )

    def fetch(self, part: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "tasks.fetch", part, **variables)

    def fetch_texts(self, sources: list[str], column: str | None = None) -> subprocess.CompletedProcess[str]:
        (self.root / "texts").mkdir(exist_ok=True)
        return self.run("-c", TEXTS, str(self.root / "texts"), json.dumps(sources), json.dumps(column))

    def configure(self, **sections: Any) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(sections))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    return Checkout(tmp_path)


@pytest.fixture
def hub(checkout: Checkout, tiny_llama_dir: Path) -> Iterator[HubServer]:
    """A model (with what must not be taken beside it), a gated one, and two data sets."""
    model = {path.name: path.read_bytes() for path in tiny_llama_dir.iterdir()}
    model["README.md"] = b"---\nlicense: apache-2.0\n---\n# Tiny\n"
    beside = {"pytorch_model.bin": b"\x80", "modeling_tiny.py": b"raise SystemExit", "onnx/model.safetensors": b"?"}
    table = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2], "messages": [CHAT, CHAT]}), table)
    lines = "".join(json.dumps({"text": f"document {n}", "n": n}) + "\n" for n in range(5))
    repos = {
        "models/me/tiny": Repo(COMMIT, model | beside),
        "models/me/locked": Repo(OTHER, model, gated=True),
        "models/me/pickled": Repo(OTHER, {"config.json": b"{}", "pytorch_model.bin": b"\x80"}),
        "datasets/me/talks": Repo(COMMIT, {"train.jsonl": lines.encode()}),
        "datasets/me/chats": Repo(COMMIT, {"data/train-00000-of-00001.parquet": table.getvalue()}),
    }
    with HubServer(repos) as server:
        checkout.endpoint, checkout.offline = server.endpoint, "0"
        yield server


def test_a_local_model_becomes_an_artifact(checkout: Checkout, tiny_llama_dir: Path) -> None:
    source = shutil.copytree(tiny_llama_dir, checkout.root / "mine")
    checkout.configure(model={"source": "mine"})
    done = checkout.fetch("model")
    assert done.returncode == 0, done.stderr
    artifact = Artifact.read(checkout.root / "data/raw/model")
    source_facts = artifact.facts["source"]
    assert (source_facts["name"], source_facts["kind"]) == ("mine", "local")
    assert source_facts["revision"] == resolve_model(str(source)).revision
    load_model(artifact.path)
    load_tokenizer(artifact.path)
    manifest = (artifact.path / "manifest.json").read_bytes()
    assert checkout.fetch("model").returncode == 0
    assert (artifact.path / "manifest.json").read_bytes() == manifest, "a second run writes the same bytes"


def test_a_changed_local_model_fails_in_a_sentence_and_keeps_the_earlier_output(
    checkout: Checkout, tiny_llama_dir: Path
) -> None:
    source = shutil.copytree(tiny_llama_dir, checkout.root / "mine")
    checkout.configure(model={"source": "mine", "revision": resolve_model(str(source)).revision})
    assert checkout.fetch("model").returncode == 0
    (source / "config.json").write_text((source / "config.json").read_text() + "\n")
    done = checkout.fetch("model")
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.revision is ")
    assert "Traceback" not in done.stderr
    Artifact.read(checkout.root / "data/raw/model")
    assert not (checkout.root / "data/raw/model.partial").exists()


@pytest.mark.parametrize("damage", ["NaN or infinity", "missing keys"])
def test_a_damaged_model_is_refused_before_work_is_built_on_it(
    checkout: Checkout, tiny_llama_dir: Path, damage: str
) -> None:
    source = shutil.copytree(tiny_llama_dir, checkout.root / "mine")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    if damage == "missing keys":
        del tensors[name]
    else:
        tensors[name][0, 0] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    checkout.configure(model={"source": "mine"})
    done = checkout.fetch("model")
    assert done.returncode == 2
    assert done.stderr.startswith("error: mine")
    assert damage in done.stderr
    assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert not (checkout.root / "data/raw/model").exists()


def test_a_hub_model_is_fetched_by_commit_and_then_offline(checkout: Checkout, hub: HubServer) -> None:
    checkout.configure(model={"source": "me/tiny"})
    done = checkout.fetch("model")
    assert done.returncode == 0, done.stderr
    artifact = Artifact.read(checkout.root / "data/raw/model")
    facts = artifact.facts["source"]
    assert (facts["name"], facts["kind"], facts["revision"]) == ("me/tiny", "hub", COMMIT)
    assert (facts["licence"], facts["base_model"]) == ("apache-2.0", "me/tiny")
    names = set(artifact.manifest.files)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling_tiny.py", "onnx/model.safetensors", "README.md"}
    asked = " ".join(hub.requests)
    assert "pytorch_model.bin" not in asked, "no pickle is even downloaded"
    assert ".py" not in asked
    load_model(artifact.path)

    checkout.configure(model={"source": "me/tiny", "revision": COMMIT})
    asked_before = len(hub.requests)
    assert checkout.fetch("model", HF_HUB_OFFLINE="1").returncode == 0
    assert checkout.fetch("model").returncode == 0
    assert [r for r in hub.requests[asked_before:] if "/me/tiny" in r] == [], "a pinned model asks for nothing again"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"source": "me/locked"}, "gated repository: accept its terms on its page on the hub, then set HF_TOKEN"),
        (
            {"source": "me/absent"},
            "the hub shows no such repository: correct the name, or, if it is private or gated, set HF_TOKEN",
        ),
        ({"source": "me/tiny", "revision": "v9"}, "has no revision 'v9'"),
        ({"source": "hf:me/tiny@v9"}, "has no revision 'v9'"),
        ({"source": "me/pickled"}, "has no model.safetensors and no index of shards; pickled weights are not read"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_a_sentence(
    checkout: Checkout, hub: HubServer, model: dict[str, str], message: str
) -> None:
    checkout.configure(model=model)
    done = checkout.fetch("model")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (checkout.root / "data/raw/model").exists()


def test_a_token_opens_a_gated_model(checkout: Checkout, hub: HubServer) -> None:
    checkout.configure(model={"source": "me/locked"})
    done = checkout.fetch("model", HF_TOKEN="hf_of_a_test")
    assert done.returncode == 0, done.stderr


def test_offline_is_said_in_a_sentence(checkout: Checkout) -> None:
    checkout.configure(model={"source": "me/tiny"})
    done = checkout.fetch("model")
    assert done.returncode == 2
    assert "the hub cannot be reached (offline?)" in done.stderr
    assert "Traceback" not in done.stderr


def test_hub_data_sets_are_streamed_once(checkout: Checkout, hub: HubServer) -> None:
    done = checkout.fetch_texts(["me/talks", "hf:me/chats"])
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert {name: fact["revision"] for name, fact in facts.items()} == {"talks": COMMIT, "chats": COMMIT}
    talks = (checkout.root / "texts/talks.jsonl").read_bytes()
    assert [json.loads(line) for line in talks.splitlines()] == [{"text": f"document {n}"} for n in range(5)]
    chats = (checkout.root / "texts/chats.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in chats] == [{"messages": CHAT}] * 2

    before = len(hub.requests)
    again = checkout.fetch_texts(["me/talks", "hf:me/chats"])
    assert json.loads(again.stdout) == facts
    assert not [request for request in hub.requests[before:] if "/resolve/" in request], "its rows are kept"
    assert (checkout.root / "texts/talks.jsonl").read_bytes() == talks

    named = checkout.fetch_texts(["me/talks"], column="body")
    assert named.returncode == 1
    assert "has no column 'body'; its columns are text, n" in named.stderr


def test_an_unknown_part_is_told_the_parts(checkout: Checkout) -> None:
    done = checkout.fetch("weights")
    assert done.returncode != 0
    assert "usage: python -m tasks.fetch {model|texts|benchmarks}" in done.stderr
