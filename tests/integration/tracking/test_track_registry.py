"""The registry: versions whose bytes stay, with a real model and a real server."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from sparsekd.artifacts import Artifact, hash_file
from tasks.cache import dvc_objects
from tasks.track import TrackResult, track
from tasks.tracking.links import place
from tests.tracked_project import Project, Server, client, runs, stored, versions

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's, at its import


def test_as_root_or_without_reflinks_bytes_are_copied(project: Project, tmp_path: Path) -> None:
    track(project.root)
    file = stored(project.database) / "model.safetensors"
    assert file.stat().st_nlink == 1
    assert file.stat().st_ino != project.weights.stat().st_ino
    assert file.stat().st_mode & 0o222 == 0


def test_a_user_gets_read_only_hard_links_to_dvc_objects(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("tasks.tracking.links._reflink", lambda source, target: False)
    cache = project.root / "elsewhere"
    (project.root / ".dvc").mkdir()
    (project.root / ".dvc/config").write_text("[core]\n    analytics = false\n['remote \"x\"']\n    url = /x\n")
    (project.root / ".dvc/config.local").write_text('[cache]\n    dir = "../elsewhere"\n')
    dvc_object = cache / "files/md5/ab/cdef"
    dvc_object.parent.mkdir(parents=True)
    shutil.copy(project.weights, dvc_object)
    digest = Artifact.read(project.root / "data/distilled").manifest.sha256()[:32]
    listing = cache / "files/md5" / digest[:2] / f"{digest[2:]}.dir"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text(json.dumps([{"relpath": "model.safetensors", "md5": "abcdef"}, {"relpath": "gone", "md5": "x"}]))
    assert dvc_objects(project.root, "data/distilled") == {
        "model.safetensors": project.root / ".dvc/../elsewhere/files/md5/ab/cdef"
    }

    track(project.root)

    file = stored(project.database) / "model.safetensors"
    assert file.stat().st_ino == dvc_object.stat().st_ino
    assert file.stat().st_mode & 0o222 == 0
    assert (stored(project.database) / "config.json").stat().st_nlink == 1, "no object of it: copied"


def test_a_damaged_dvc_object_is_not_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("tasks.tracking.links._reflink", lambda source, target: False)
    source, damaged, target = tmp_path / "source", tmp_path / "object", tmp_path / "out/target"
    source.write_bytes(b"right")
    damaged.write_bytes(b"wrong")
    assert place(source, target, hash_file(source), damaged) == "copy"
    assert target.read_bytes() == b"right"
    assert damaged.read_bytes() == b"wrong"


def test_only_a_passed_gate_makes_a_champion_and_the_old_one_stays(project: Project) -> None:
    def champion() -> Any:
        return client(project.database).get_registered_model("tiny").aliases.get("champion")

    states = ["no limits", "passed", "not passed", "not enough evidence", "passed"]
    champions = []
    for number, state in enumerate(states):
        project.run(weights=f"weights {number}".encode(), gate=state)
        result = track(project.root)
        assert result.run_id is not None
        assert client(project.database).get_run(result.run_id).data.tags["sparsekd.gate"] == state
        champions.append(champion())
    assert [None if version is None else int(version) for version in champions] == [None, 2, 2, 2, 5]
    assert [version.tags["sparsekd.gate"] for version in versions(project.database)] == states


def test_what_is_older_or_of_a_sweep_takes_no_champions_place(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def champion() -> int:
        return int(client(project.database).get_registered_model("tiny").aliases["champion"])

    project.run(weights=b"one", gate="passed")
    track(project.root)
    project.run(weights=b"two", gate="passed")
    track(project.root)
    assert champion() == 2
    project.run(weights=b"one", gate="passed", kl=0.4)  # its bytes are version 1
    assert track(project.root).model_version == "1"
    assert champion() == 2
    monkeypatch.setenv("SPARSEKD_SWEEP", "widths")
    project.run(weights=b"three", gate="passed")
    result = track(project.root)
    assert (result.model_version, champion()) == ("3", 2)
    monkeypatch.delenv("SPARSEKD_SWEEP")
    project.run(weights=b"three", gate="passed", kl=0.3)  # chosen from the sweep and run by itself
    track(project.root)
    assert champion() == 3


# The registry, with a real model and a real server


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny random Llama checkpoints in bfloat16 with one real tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["hello world, how are you"] * 10, vocab_size=300, special_tokens=["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, **shape)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp(f"checkpoint{seed}")
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return folders[0], folders[1]


def load(uri: str, version: str, folder: Path) -> tuple[str, Any]:
    """The sha256 of a version's weights as a client of `uri` gets them, and its pipeline."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    got = Path(mlflow.artifacts.download_artifacts(f"models:/tiny/{version}", dst_path=str(folder)))
    return hash_file(got / "model/model.safetensors"), mlflow.transformers.load_model(f"models:/tiny/{version}")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["database", "upload"])
def test_version_1_loads_through_a_server_also_after_the_next_run(
    server: Server,
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """`database`: logged to the database that the server shows. `upload`: logged through it to its own store."""
    import torch

    project = server.project
    if where == "database":
        tracked, uri = "sparsekd", project.database
    else:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tracked := "uploaded")
        uri = server.uri
        for version in versions(project.database):
            client(project.database).delete_model_version("tiny", version.version)
    hashes: list[str] = []
    results: list[TrackResult] = []
    for width, checkpoint in zip((0.75, 0.5), checkpoints, strict=True):
        project.run(width=width, checkpoint=checkpoint)
        hashes.append(hash_file(project.weights))
        started = time.monotonic()
        results.append(track(project.root, uri=uri))
        assert time.monotonic() - started < 15, "torch is not loaded for it"
    first, second = [result.model_version or "" for result in results]
    assert hashes[0] != hashes[1]
    assert where != "database" or (first, second) == ("1", "2")
    run = client(server.uri).get_run(results[0].run_id)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:" if where == "upload" else "file:")
    assert len(runs(server.uri, tracked)) == 2

    for source in (server.uri, project.database) if where == "database" else (server.uri,):
        got, pipeline = load(source, first, tmp_path)
        assert got == hashes[0]
        weights = pipeline.model.model.layers[0].mlp.down_proj.weight
        assert weights.dtype == torch.bfloat16
        assert torch.equal(weights, _down_proj(checkpoints[0]))
        assert not torch.equal(weights, _down_proj(checkpoints[1]))
        assert pipeline.tokenizer.decode(pipeline.tokenizer("hello world")["input_ids"]) == "hello world"
        assert load(source, second, tmp_path / "second")[0] == hashes[1]


def _down_proj(checkpoint: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]


@pytest.mark.slow
def test_a_version_predicts_as_a_python_function_and_ships_the_card(
    project: Project, checkpoints: tuple[Path, Path]
) -> None:
    import mlflow

    project.run(checkpoint=checkpoints[0])
    result = track(project.root)

    version = client(project.database).get_model_version("tiny", "1")
    assert version.description == "# The card"
    assert version.run_id == result.run_id
    assert version.tags["model.safetensors.sha256"] == hash_file(project.weights)
    assert version.tags["sparsekd.export.model-f16.gguf"] == "e" * 64
    folder = stored(project.database)
    assert (folder / "README.md").read_text().endswith("# The card\n")
    assert not (folder / "curve.csv").exists()
    assert not list(folder.parent.rglob("*.pkl"))
    mlflow.set_tracking_uri(project.database)
    mlflow.set_registry_uri(project.database)
    answer = mlflow.pyfunc.load_model("models:/tiny/1").predict("hello")
    assert isinstance(answer, list)
    assert isinstance(answer[0], str)
