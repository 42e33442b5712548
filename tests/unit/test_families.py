"""What config.json says about a model's size agrees with the model that Transformers builds from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sparsekd.errors import ModelError
from sparsekd.families import FAMILIES, find_family, parameters_from_config
from sparsekd.models import count_parameters

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "pad_token_id": 0,
}
CASES = [(name, {}) for family in FAMILIES for name in family.model_types] + [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 16}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, "head_dim": 24}),
    ("phi3", {"tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_parameters_from_config_are_those_of_the_model(model_type: str, changes: dict[str, Any]) -> None:
    config = AutoConfig.for_model(model_type, **TINY, **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert parameters_from_config(config.to_dict()) == count_parameters(model)


def test_another_width_changes_the_feed_forward_blocks_alone() -> None:
    values = AutoConfig.for_model("llama", **TINY).to_dict()
    before, after = parameters_from_config(values), parameters_from_config(values, 24)
    assert after["ffn"] == before["ffn"] // 2
    assert before["total"] - after["total"] == before["ffn"] - after["ffn"]


def test_the_default_model_has_its_published_size() -> None:
    from sparsekd.sources import model_config

    assert parameters_from_config(model_config("smollm2-135m-instruct-q4_1"))["total"] == 134_515_008


def test_an_unknown_layout_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"The model's layout is 'gpt2'; supported are llama, .*phi3"):
        find_family("gpt2")
    with pytest.raises(ModelError, match=r"config\.json of the model has no usable 'vocab_size'"):
        parameters_from_config(
            {key: value for key, value in TINY.items() if key != "vocab_size"} | {"model_type": "llama"}
        )
