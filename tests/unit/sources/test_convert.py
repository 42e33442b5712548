"""GGUF to a stock checkpoint, on a tiny random Llama in Q4_1: the same numbers, the same text, the same names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsekd.errors import SourceError
from sparsekd.sources.catalogue import CatalogueModel
from sparsekd.sources.convert import convert_gguf

Q4_1 = gguf.GGMLQuantizationType.Q4_1
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of each rotary pair side by side."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)


def _write_gguf(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write `model` as llama.cpp would, matrices in Q4_1, and set its own weights to what that leaves of them."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in bpe["added_tokens"]}
    tokens = sorted(bpe["model"]["vocab"], key=bpe["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL for n in range(len(tokens))]
    )
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        ours, weight = _gguf_name(name), parameter.detach().numpy().copy()
        if weight.ndim == 1:
            writer.add_tensor(ours, weight)
            continue
        packed = gguf.quants.quantize(weight, Q4_1)
        parameter.data = torch.tensor(gguf.quants.dequantize(packed, Q4_1))
        rotary = next((n for key, n in heads.items() if key in ours), None)
        stored = _interleave(weight, rotary) if rotary else weight
        writer.add_tensor(ours, gguf.quants.quantize(stored, Q4_1), raw_dtype=Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def example(
    make_model: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], LlamaForCausalLM]:
    """A GGUF file, the catalogue entry for it, and the model that it holds."""
    directory = make_model("llama", tie_word_embeddings=True, rms_norm_eps=1e-5)
    model = AutoModelForCausalLM.from_pretrained(directory)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    _write_gguf(model, tokenizer, path)
    keys = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "tie_word_embeddings")
    values = {key: getattr(model.config, key) for key in keys}
    entry = {
        "label": "tiny",
        "base_model": "me/tiny",
        "licence": "mit",
        "quantization": "Q4_1",
        "individual_digits": True,
        "parameters": model.num_parameters(),
        "checkpoint_bytes": 0,
        "config": {**values, "max_position_embeddings": 256, "dtype": "bfloat16"},
        "file": {"name": "tiny.gguf", "sha256": "", "bytes": 0, "parts": []},
    }
    return path, entry, model


@pytest.fixture(scope="module")
def converted(example: tuple[Path, dict[str, Any], LlamaForCausalLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    convert_gguf(example[0], CatalogueModel.model_validate(example[1]), out)
    return out


def test_weights_are_the_file_s_rounded_once(
    example: tuple[Path, dict[str, Any], LlamaForCausalLM], converted: Path
) -> None:
    expected = example[2].to(torch.bfloat16)
    model, info = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for (name, found), (_, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(found, wanted), name


def test_config_names_nothing_of_the_conversion(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    assert str(converted.parent) not in json.dumps(config)
    assert sorted(path.name for path in converted.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_tokenizer_splits_numbers_into_digits_and_loses_nothing(
    converted: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded = AutoTokenizer.from_pretrained(converted)
    text = "the old house, 1984 – naïve\n\n  water 3.14"
    assert loaded.decode(loaded(text).input_ids) == text
    pieces = [piece for piece, _ in loaded.backend_tokenizer.pre_tokenizer.pre_tokenize_str("x 1984y")]
    assert pieces == ["x", "Ġ", "1", "9", "8", "4", "y"]
    assert loaded("the quiet river walks").input_ids == tokenizer("the quiet river walks").input_ids
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.model_max_length == 256
    assert loaded.eos_token == tokenizer.eos_token
    settings = json.loads((converted / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "local_files_only" not in settings, "it says how this process was started"


def test_a_conversion_to_another_model_is_refused(
    example: tuple[Path, dict[str, Any], LlamaForCausalLM], tmp_path: Path
) -> None:
    path, entry, _ = example
    wrong = CatalogueModel.model_validate({**entry, "config": {**entry["config"], "intermediate_size": 96}})
    with pytest.raises(
        SourceError, match=r"another model than the catalogue describes .intermediate_size 64 instead of 96"
    ):
        convert_gguf(path, wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []
