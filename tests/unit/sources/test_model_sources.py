"""Local checkpoints: resolved by content, checked before anything heavy loads, copied without what is not stock."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsekd.errors import ResourceError, SourceError
from sparsekd.sources import fetch_model, local_checkpoint, model_config, resolve_model
from sparsekd.sources import storage as storage_module

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make(tmp_path: Path) -> MakeCheckpoint:
    """A checkpoint as far as a file system can tell, with things beside it that are no part of one."""

    def build(name: str = "mine", shards: int = 1) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 4}))
        (path / "tokenizer.json").write_text("{}")
        (path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Mine\n")
        (path / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
        (path / "modeling_mine.py").write_text("raise SystemExit")
        (path / "manifest.json").write_text("{}")
        names = (
            ["model.safetensors"]
            if shards == 1
            else [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(shards)]
        )
        for number, file in enumerate(names):
            save_file({f"w{number}": np.full((3, 4), number, np.float32)}, path / file)
        if shards > 1:
            index = {"metadata": {}, "weight_map": {f"w{n}": file for n, file in enumerate(names)}}
            (path / "model.safetensors.index.json").write_text(json.dumps(index))
        return path

    return build


def test_a_directory_resolves_to_its_content(make: MakeCheckpoint) -> None:
    path = make()
    first = resolve_model(str(path))
    assert (first.kind, first.label, first.licence, first.parameters) == ("local", "mine", "apache-2.0", 12)
    assert resolve_model(f"file:{path}").revision == first.revision
    moved = shutil.copytree(path, path.with_name("moved"))
    assert resolve_model(str(moved)).revision == first.revision, "the place is no part of the content"
    (path / "pytorch_model.bin").write_bytes(b"other")
    assert resolve_model(str(path)).revision == first.revision, "what is never read does not count"
    save_file({"w0": np.ones((3, 4), np.float32)}, path / "model.safetensors")
    assert resolve_model(str(path), first.revision).revision != first.revision
    assert model_config(str(path))["hidden_size"] == 4


def test_hashes_of_large_files_are_remembered_until_they_change(
    make: MakeCheckpoint, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make()
    big = path / "model.safetensors"
    save_file({"w": np.zeros(2**19, np.float32)}, big)
    os.utime(big, (1_600_000_000, 1_600_000_000))
    first = resolve_model(str(path)).revision
    hashed: list[str] = []
    original = storage_module.hash_file
    monkeypatch.setattr(storage_module, "hash_file", lambda p: hashed.append(p.name) or original(p))
    assert resolve_model(str(path)).revision == first
    assert "model.safetensors" not in hashed
    with big.open("r+b") as stream:  # in place: the same size and inode
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    os.utime(big, (1_600_000_001, 1_600_000_001))
    assert resolve_model(str(path)).revision != first
    assert "model.safetensors" in hashed


@pytest.mark.parametrize("shards", [1, 3])
def test_fetching_copies_stock_files_only(make: MakeCheckpoint, tmp_path: Path, shards: int) -> None:
    path, out = make(shards=shards), tmp_path / "out"
    out.mkdir()
    facts = fetch_model(str(path), None, out)
    weights = ["model.safetensors"]
    if shards > 1:
        weights = [f"model-{n:05}-of-00003.safetensors" for n in range(3)] + ["model.safetensors.index.json"]
    assert sorted(p.name for p in out.iterdir()) == sorted(["config.json", "tokenizer.json", *weights])
    for file in out.iterdir():
        assert file.read_bytes() == (path / file.name).read_bytes()
    resolved = resolve_model(str(path))
    assert facts == {
        "name": "mine",
        "kind": "local",
        "label": "mine",
        "revision": resolved.revision,
        "licence": "apache-2.0",
        "file": None,
        "bytes": None,
        "quantization": None,
        "sha256": None,
        "base_model": None,
    }
    assert local_checkpoint(str(path))[0] == path


def test_fetching_refuses_content_that_is_not_what_the_parameters_say(make: MakeCheckpoint, tmp_path: Path) -> None:
    path, out = make(), tmp_path / "out"
    out.mkdir()
    revision = resolve_model(str(path)).revision
    assert fetch_model(str(path), revision, out)["revision"] == revision
    save_file({"w0": np.ones((3, 4), np.float32)}, path / "model.safetensors")
    with pytest.raises(SourceError, match=f"model.revision is {revision}, but the content hash .*sparsekd compress"):
        fetch_model(str(path), revision, out)


def _no_config(path: Path) -> None:
    (path / "config.json").unlink()


def _broken_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def _pickles_only(path: Path) -> None:
    (path / "model.safetensors").unlink()


def _nothing(path: Path) -> None:
    _pickles_only(path)
    (path / "pytorch_model.bin").unlink()


def _cut_short(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])


def _no_header(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"\xff" * 64)


def _no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_config, "model.source is .*mine', which has no config.json"),
        (_broken_config, "config.json is no JSON"),
        (_pickles_only, r"weights are pickled \(pytorch_model.bin\); no pickle is read.*save_pretrained"),
        (_nothing, "no model.safetensors and no index of shards"),
        (_cut_short, "model.safetensors is damaged or cut short"),
        (_no_header, "model.safetensors is damaged or cut short"),
        (_no_tokenizer, "has no tokenizer"),
    ],
)
def test_a_damaged_checkpoint_is_named_before_a_run(
    make: MakeCheckpoint, damage: Callable[[Path], None], message: str
) -> None:
    path = make()
    damage(path)
    with pytest.raises(SourceError, match=message):
        resolve_model(str(path))


def test_a_lost_shard_and_a_shard_outside_are_refused(make: MakeCheckpoint) -> None:
    path = make(shards=2)
    (path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"lacks model-00001-of-00002\.safetensors"):
        resolve_model(str(path))
    outside = {"weight_map": {"w0": "../../secret.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(outside))
    with pytest.raises(SourceError, match="is no index of shards"):
        resolve_model(str(path))


def test_a_missing_path_and_a_file(make: MakeCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no such directory"):
        resolve_model(str(tmp_path / "absent"))
    with pytest.raises(SourceError, match="a file; it must be a directory"):
        resolve_model(str(make() / "model.safetensors"))


def test_an_unreadable_checkpoint(make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: object, **settings: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)  # root, whom containers run tests as, may read everything
    with pytest.raises(SourceError, match=r"config\.json cannot be read \(Permission denied\)"):
        resolve_model(str(make()))


def test_a_disk_that_is_too_small_is_told_before_copying(
    make: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = make(), tmp_path / "out"
    out.mkdir()
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(storage_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"The copy of the model needs 67 MB in .*; 10 MB are free"):
        fetch_model(str(path), None, out)
    assert list(out.iterdir()) == []


def test_nothing_heavy_is_imported_for_a_local_model(make: MakeCheckpoint) -> None:
    code = (
        f"import sys; from sparsekd.sources import resolve_model; resolve_model({str(make())!r}); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
