"""Pruning layer by layer from disk: the bytes of the walk in memory, one layer there at a time, and a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsekd.calibration.packing import Packed
from sparsekd.config import Prune
from sparsekd.errors import ModelError
from sparsekd.models import load_model, save_checkpoint
from sparsekd.pruning import state, walk
from sparsekd.pruning.checkpoint import prune_checkpoint
from sparsekd.pruning.walk import prune_model, write_layers
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")
SETTINGS = Prune(width=40, batch_size=4)
IDS = torch.randint(4, 384, (6, 24), generator=torch.Generator().manual_seed(0))


class Killed(Exception):
    pass


def write(path: Path, family: str, dtype: torch.dtype, shard: str = "50GB", **changes: Any) -> Path:
    """A random checkpoint with `dtype` declared and norms in float32, as some are."""
    model = tiny_model(family, **changes).to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = 1.001 * parameter.data.float()
    model.config.dtype = dtype
    model.save_pretrained(path, max_shard_size=shard)
    return path


def prune(dense: Path, folder: Path, kill_at: int | None = None, identity: str = "x") -> dict[str, bytes]:
    """The files that come of it; `kill_at` layers it ends with Killed."""

    def progress(done: float, total: float, unit: str, **values: float) -> None:
        assert unit == "layers"
        if done == kill_at:
            raise Killed

    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    prune_checkpoint(dense, out, Packed(IDS, IDS), SETTINGS, CPU, folder / "work", identity, progress)
    assert not list((folder / "work").iterdir()), "the layers go when the output is whole"
    return files(out)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def in_memory(dense: Path, out: Path) -> dict[str, bytes]:
    model = load_model(dense)
    reports = prune_model(model, IDS, 40, SETTINGS)
    save_checkpoint(model, dense, out)
    write_layers(reports, out / "layers.csv")
    return files(out)


@pytest.mark.parametrize(
    ("family", "dtype", "options"),
    [
        ("llama", torch.bfloat16, {"shard": "20KB", "tie_word_embeddings": True}),
        ("phi3", torch.float32, {}),
        ("gpt2", torch.float16, {}),
        ("opt", torch.bfloat16, {}),
        ("gemma4_unified_text", torch.bfloat16, {}),
        ("cohere2", torch.bfloat16, {"shard": "20KB"}),
    ],
)
def test_it_gives_the_bytes_of_the_walk_in_memory(
    family: str, dtype: torch.dtype, options: dict[str, Any], tmp_path: Path
) -> None:
    dense = write(tmp_path / "dense", family, dtype, **options)
    assert prune(dense, tmp_path) == in_memory(dense, tmp_path / "expected")


def test_names_that_differ_from_the_modules_are_followed(tmp_path: Path) -> None:
    """Qwen3.5's text model lies in a checkpoint with a picture model, below another prefix."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    text = tiny_model("qwen3_5_text").config.to_dict()
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision))
    whole.save_pretrained(tmp_path / "dense")
    assert prune(tmp_path / "dense", tmp_path) == in_memory(tmp_path / "dense", tmp_path / "expected")


def mapped_files() -> list[tuple[int, int]]:
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if len(line) > 5 and line[5].endswith(".safetensors")]
    return [(int(start, 16), int(end, 16)) for start, end in spans]


def test_one_layer_is_in_memory_and_nothing_else_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all its parameters only that layer's belong to the process; the others are empty or pages of a file."""
    seen: list[tuple[list[str], list[str]]] = []
    models: list[Any] = []
    layers_of, prune_block = walk.layer_arguments, walk._prune_block

    def watch(*arguments: Any) -> Any:
        files, own, empty = mapped_files(), [], []
        for name, parameter in models[0].named_parameters():
            if parameter.is_meta:
                empty.append(name)
            elif not any(start <= parameter.data_ptr() < end for start, end in files):
                own.append(name)
        seen.append((own, empty))
        return prune_block(*arguments)

    def arguments(model: Any, *more: Any) -> Any:
        models.append(model)
        return layers_of(model, *more)

    monkeypatch.setattr(walk, "_prune_block", watch)
    monkeypatch.setattr(walk, "layer_arguments", arguments)
    dense = write(tmp_path / "dense", "llama", torch.bfloat16, num_hidden_layers=4, tie_word_embeddings=True)
    prune(dense, tmp_path)
    assert len(seen) == 4
    for number, (own, empty) in enumerate(seen):
        assert len(own) == 7, "its norms are float32 on disk already, and so pages of the checkpoint"
        assert all(name.startswith(f"model.layers.{number}.") for name in own)
        assert {name.split(".")[2] for name in empty} == {str(later) for later in range(number + 1, 4)}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A checkpoint of four layers, and what pruning it without a disturbance gives."""
    folder = tmp_path_factory.mktemp("deep")
    dense = write(folder / "dense", "gemma3_text", torch.bfloat16, num_hidden_layers=4, layer_types=None)
    return dense, prune(dense, folder)


@pytest.mark.parametrize("kill_at", [1, 2, 4])
def test_a_killed_run_ends_with_the_same_bytes(
    deep: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    kill_at: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(state, "SECONDS", 0.0)
    with pytest.raises(Killed):
        prune(deep[0], tmp_path, kill_at)
    [store] = (tmp_path / "work").iterdir()
    (store / "step-00000099.partial").mkdir()  # the next position was being written
    assert prune(deep[0], tmp_path) == deep[1]
    assert f"resuming after layer {kill_at} of 4" in capsys.readouterr().out


def test_other_conditions_and_a_damaged_position_start_again_and_say_so(
    deep: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(state, "SECONDS", 0.0)
    for name in ("threads", "damaged"):
        with pytest.raises(Killed):
            prune(deep[0], tmp_path / name, 2)
    [position] = (tmp_path / "damaged/work").glob("*/step-*")
    (position / "streams.safetensors").write_bytes(b"")
    assert prune(deep[0], tmp_path / "damaged") == deep[1]
    assert "cannot be read; pruning starts again" in capsys.readouterr().out
    torch.set_num_threads(2)
    prune(deep[0], tmp_path / "threads")
    assert "was done under another threads; it starts again" in capsys.readouterr().out


def test_another_model_or_setting_does_not_go_on_from_it(
    deep: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SECONDS", 0.0)
    for identity in ("x", "y"):
        with pytest.raises(Killed):
            prune(deep[0], tmp_path, 2, identity)
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_positions_are_kept_seldom(deep: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """Layers of a small model take less time than the streams of many tokens take to write."""
    with pytest.raises(Killed):
        prune(deep[0], tmp_path, 3)
    assert not list((tmp_path / "work").glob("*/step-*"))


def poisoned(path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")), "holds NaN or infinity in"),
        (lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"), "missing keys: model.layers.1.mlp.up_proj"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "unexpected keys: more"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), "does not load"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_any_work(
    change: Callable[[dict[str, Tensor]], object], said: str, tmp_path: Path
) -> None:
    dense = poisoned(write(tmp_path / "dense", "llama", torch.float32), change)
    with pytest.raises(ModelError, match=said):
        prune(dense, tmp_path)
    assert not (tmp_path / "work").exists()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    dense = write(tmp_path / "dense", "llama", torch.float32, shard="20KB")
    first = min(dense.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(ModelError, match=rf"lacks {first.name}, which model\.safetensors\.index\.json lists"):
        prune(dense, tmp_path)
