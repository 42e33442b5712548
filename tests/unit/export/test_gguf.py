"""GGUF files of tiny models, loaded in llama.cpp itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsekd.errors import ExportError, ModelError
from sparsekd.export import export_gguf
from sparsekd.export import run as exporting
from sparsekd.export.check import Comparison, compare, reference, verdict
from sparsekd.export.formats import GGUF_TYPES, check_types
from sparsekd.export.llama_cpp import LlamaCpp
from sparsekd.export.write import write_gguf
from sparsekd.models import load_model, read_config
from tests.runtimes import with_llama_cpp


@pytest.fixture(scope="module")
def checkpoint(make_model: Callable[..., Path]) -> Path:
    return make_model("llama", tie_word_embeddings=True, dtype=torch.bfloat16)


@pytest.mark.slow
@with_llama_cpp
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
def test_llama_cpp_computes_what_the_checkpoint_does(
    model_type: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """In float32 to rounding: whatever else differs is the file's type."""
    path = make_model(model_type, vocab_size=400)  # more than the tokenizer has, as many checkpoints do
    write_gguf(path, {"f32": tmp_path / "model.gguf"})
    found = compare(tmp_path / "model.gguf", path, reference(path))
    assert found.difference < 1e-3
    assert found.tokens > 300
    assert found.perplexity == pytest.approx(found.checkpoint_perplexity, rel=1e-5)
    assert found.same_tokens > 0


@pytest.mark.slow
@with_llama_cpp
def test_every_type_is_written_checked_and_told_of(checkpoint: Path, tmp_path: Path) -> None:
    report = export_gguf(checkpoint, tmp_path, list(GGUF_TYPES))
    assert report == json.loads((tmp_path / "export.json").read_text())
    names = {f"model-{name}.gguf" for name in GGUF_TYPES}
    assert {file.name for file in tmp_path.iterdir()} == names | {"export.json"}
    sizes = {entry["type"]: entry["bytes"] for entry in report["files"].values()}
    assert sizes["f32"] > sizes["f16"] > sizes["q8_0"] > sizes["q4_0"]
    assert report["tools"]["xllamacpp"]
    kl = {entry["type"]: entry["compared"]["kl"] for entry in report["files"].values()}
    assert kl["f16"] < kl["q8_0"] < kl["q4_0"]


@with_llama_cpp
def test_logits_after_a_token_do_not_depend_on_how_many_are_read_at_once(checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(checkpoint, {"f32": tmp_path / "model.gguf"})
    tokens = list(range(40, 60))
    with LlamaCpp(tmp_path / "model.gguf", context=32, threads=1) as runtime:
        together = runtime.read(tokens, every=True)
        runtime.reset()
        one_by_one = torch.cat([runtime.read([token]) for token in tokens])
        with pytest.raises(ExportError, match="do not fit a context of 32"):
            runtime.read(tokens)
        runtime.keep(10)
        again = runtime.read(tokens[10:], every=True)
    with torch.inference_mode():
        expected = load_model(checkpoint)(input_ids=torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, together[10:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@with_llama_cpp
@pytest.mark.parametrize("name", ["f16", "q8_0"])
def test_another_model_than_the_checkpoint_is_not_kept(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One projection of one layer is another one than the checkpoint's: the converter's mistake, say."""
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in checkpoint.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    tensors = load_file(changed / "model.safetensors")
    key = "model.layers.1.mlp.down_proj.weight"
    tensors[key] = tensors[key].roll(1, dims=1)
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(exporting, "write_gguf", lambda path, files: write_gguf(changed, files))
    with pytest.raises(ExportError, match=r"is not what .* is: .* is allowed"):
        export_gguf(checkpoint, tmp_path / "out", [name])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@with_llama_cpp
def test_a_tokenizer_that_llama_cpp_takes_otherwise_is_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model("llama")
    file = path / "tokenizer.json"
    described = json.loads(file.read_text())
    described["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[aeiou]"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    }
    file.write_text(json.dumps(described))
    with pytest.raises(ExportError, match=r"does not take .*pre-tokenizer was not recognized"):
        export_gguf(path, tmp_path, ["f16"])
    assert list(tmp_path.iterdir()) == []
    write_gguf(make_model("llama"), {"f16": tmp_path / "model.gguf"})  # splits as GPT-2 does
    with pytest.raises(ExportError, match="splits text into other tokens"):
        compare(tmp_path / "model.gguf", path, reference(path))


@with_llama_cpp
def test_a_file_that_is_cut_off_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(checkpoint, {"f16": file})
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ExportError, match="does not load"):
        LlamaCpp(file, context=16, threads=1)


def test_rows_must_fit_the_blocks(make_model: Callable[..., Path]) -> None:
    config = read_config(make_model("llama", intermediate_size=72))
    check_types(["f16"], config)
    with pytest.raises(ExportError, match=r"intermediate_size is 72, and q8_0 .* divisible by 32.*multiple_of"):
        check_types(["f16", "q8_0"], config)
    with pytest.raises(ExportError, match="no type 'q5_1'"):
        check_types(["q5_1"], config)
    with pytest.raises(ModelError, match="supported are"):
        check_types(["f16"], config | {"model_type": "bert"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"difference": 0.2}, "log-probability differs by 0.2"),
        ({"difference": float("nan")}, "log-probability differs by nan"),
        ({"kl": 0.01}, "KL to the checkpoint is 0.01"),
        ({"perplexity": 21.0}, r"perplexity differs by \+5.0%"),
        ({"same_tokens": 3, "tie": 0.5}, "0.5 nats surer"),
    ],
)
def test_each_bound_is_held(changes: dict[str, float], words: str | None) -> None:
    values = {"difference": 0.01, "kl": 1e-6, "perplexity": 20.0, "checkpoint_perplexity": 20.0, "tokens": 9}
    found = Comparison(**({**values, "text": "", "same_tokens": 24, "tie": 0.0} | changes))  # type: ignore[arg-type]
    said = verdict(found, GGUF_TYPES["f16"].bounds)
    if words is None:
        assert said is None
    else:
        assert said is not None
        assert re.search(words, said)
