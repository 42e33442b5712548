"""What config.json says about a model: its size as Transformers builds it, and whether it can be pruned at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsekd.errors import ModelError
from sparsekd.families import FAMILIES, REFUSED, family_of, find_family, parameters_from_config, standard_config
from sparsekd.feed_forward import feed_forwards
from sparsekd.models import count_parameters
from sparsekd.sources import model_config
from tests.tiny_models import EVERY_FAMILY, tiny_config

CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in EVERY_FAMILY] + [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 16}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, "head_dim": 24}),
    ("phi3", {"tie_word_embeddings": True}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("cohere", {"use_qk_norm": True}),
]
LLAMA = tiny_config("llama").to_dict()


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_parameters_from_config_are_those_of_the_model(model_type: str, changes: dict[str, Any]) -> None:
    values = tiny_config(model_type, **changes).to_dict()
    for width in (None, 40):
        wanted = tiny_config(model_type, **changes, **({} if width is None else {"intermediate_size": width}))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(wanted)
        assert parameters_from_config(values, width) == count_parameters(model)
        assert {block.width for block in feed_forwards(model)} == {width or 64}


def test_another_width_changes_the_feed_forward_blocks_alone() -> None:
    before, after = parameters_from_config(LLAMA), parameters_from_config(LLAMA, 32)
    assert after["ffn"] == before["ffn"] // 2
    assert before["total"] - after["total"] == before["ffn"] - after["ffn"]


@pytest.mark.parametrize(
    ("name", "total"), [("smollm2-135m-instruct-q4_1", 134_515_008), ("gemma3-270m-q4_k_m", 268_098_176)]
)
def test_a_packaged_model_has_its_published_size(name: str, total: int) -> None:
    assert parameters_from_config(model_config(name))["total"] == total


def test_gpt2_as_published_leaves_its_width_to_a_rule() -> None:
    published = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_ctx": 1024}
    values = standard_config(published | {"vocab_size": 50257})
    assert (values["hidden_size"], values["intermediate_size"], values["max_position_embeddings"]) == (768, 3072, 1024)
    assert standard_config(values) == values
    assert parameters_from_config(published | {"vocab_size": 50257})["total"] == 124_439_808


def test_the_language_model_inside_qwen3_5_counts_alone() -> None:
    text = tiny_config("qwen3_5_text").to_dict()
    whole = {"model_type": "qwen3_5", "text_config": text, "vision_config": {"depth": 2}}
    assert parameters_from_config(whole) == parameters_from_config(text)
    assert standard_config(whole)["hidden_size"] == 32


def test_each_model_type_is_described_once() -> None:
    names = [name for family in FAMILIES for name in family.model_types]
    assert len(names) == len(set(names))
    assert not set(names) & set(REFUSED)


WIDTHS = "its layers have a width each"
EXPERTS = "it is a mixture of experts"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "gemma3n_text", "intermediate_size": [64, 64]}, WIDTHS),
        ({"model_type": "gemma3n", "text_config": {}}, WIDTHS),
        (LLAMA | {"intermediate_size": [64, 48]}, WIDTHS),
        (LLAMA | {"per_layer_config": {"1": {"intermediate_size": 48}}}, WIDTHS),
        ({"model_type": "gemma4_text", "use_double_wide_mlp": True}, "some layers are twice as wide as the others"),
        ({"model_type": "gemma4_text", "num_kv_shared_layers": 10}, "layers share keys and values"),
        (
            {"model_type": "gemma4_text", "hidden_size_per_layer_input": 256},
            "layers read embeddings of their own",
        ),
        ({"model_type": "gemma4_text", "enable_moe_block": True, "num_experts": 8}, EXPERTS),
        ({"model_type": "lfm2", "block_auto_adjust_ff_dim": True}, "its code makes another width"),
        ({"model_type": "mixtral", "num_local_experts": 8}, EXPERTS),
        ({"model_type": "qwen3_moe", "num_experts": 8}, EXPERTS),
        ({"model_type": "deepseek_v3", "n_routed_experts": 8}, EXPERTS),
        ({"model_type": "qwen3_5_moe", "text_config": {"num_experts": 8}}, EXPERTS),
        ({"model_type": "opt", "do_layer_norm_before": False}, "it normalises after the residual sum"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "its layers attend to an encoder"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
            "Transformers loads it only as a whole",
        ),
        ({"model_type": "mistral3", "text_config": {"model_type": "ministral3"}}, "loads it only as a whole"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_its_reason(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as error:
        family_of(values)
    assert f"The model's layout is {values['model_type']!r}, and " in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=said):
        parameters_from_config(values)


def test_an_unknown_layout_names_the_known_ones() -> None:
    with pytest.raises(
        ModelError, match=r"The model's layout is 'mamba'; supported are llama, .*opt.*docs/families\.md"
    ):
        find_family("mamba")
    with pytest.raises(ModelError, match=r"The model's layout is 'mamba'; supported are llama"):
        family_of({"model_type": "mamba"})


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "opt"])
def test_a_config_without_a_field_is_named(model_type: str) -> None:
    values = tiny_config(model_type).to_dict()
    for field in ("vocab_size", "intermediate_size", "num_hidden_layers"):
        own = find_family(model_type).names.get(field, field)
        with pytest.raises(ModelError, match=rf"config\.json of the model has no usable '{field}'"):
            parameters_from_config({key: value for key, value in values.items() if key != own})


def test_values_that_describe_no_model_are_refused_in_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"config\.json does not describe a model: "):
        parameters_from_config(tiny_config("gemma2").to_dict() | {"hidden_activation": "none of these"})
