"""ONNX files of tiny models, loaded in ONNX Runtime itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sparsekd.errors import ExportError
from sparsekd.export import export_onnx
from tests.runtimes import with_onnx

pytestmark = [pytest.mark.slow, with_onnx]


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_onnx_runtime_computes_what_the_checkpoint_does(
    model_type: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    report = export_onnx(make_model(model_type), tmp_path)
    assert report == json.loads((tmp_path / "export.json").read_text())
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data", "export.json"}
    found = report["files"]["model.onnx"]["compared"]
    assert found["difference"] < 1e-4
    assert found["tokens"] > 300
    assert report["tools"]["onnxruntime"]


def test_another_model_than_the_checkpoint_is_not_kept(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsekd.export import onnx_model

    checkpoint, changed = make_model("llama"), make_model("llama")
    tensors = load_file(changed / "model.safetensors")
    key = "model.layers.1.mlp.down_proj.weight"
    tensors[key] = tensors[key].roll(1, dims=1)
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    write = onnx_model.write_onnx
    monkeypatch.setattr(onnx_model, "write_onnx", lambda path, file: write(changed, file))
    with pytest.raises(ExportError, match=r"model.onnx is not what .* is: .* is allowed"):
        export_onnx(checkpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []
