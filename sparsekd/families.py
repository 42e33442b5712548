"""Where every supported family keeps its feed-forward block, and what its config.json amounts to in parameters.

Needs no torch: the command line checks a model by its config.json before anything heavy loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsekd.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Where a family keeps its feed-forward block. Names are attribute paths below a decoder layer."""

    model_types: tuple[str, ...]
    layers: str = "model.layers"
    norm: str = "post_attention_layernorm"  # its input is the residual stream before the feed-forward block
    block: str = "mlp"
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused: bool = False  # `up` holds gate rows, then up rows
    width: str = "intermediate_size"  # the field of config.json


FAMILIES = (
    Family(("llama", "mistral", "qwen2", "qwen3")),
    Family(("phi3",), gate=None, up="gate_up_proj", fused=True),
)


def find_family(model_type: str) -> Family:
    """The description of `model_type`. Raises ModelError for a layout that nobody has described yet."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ModelError(
        f"The model's layout is {model_type!r}; supported are {known}. A family is one entry in sparsekd/families.py: "
        "where its layers, norm, gate, up and down projections are."
    )


_QKV_BIAS = ("qwen2",)  # always there, whatever attention_bias says
_QK_NORM = ("qwen3",)


def parameters_from_config(config: dict[str, Any], intermediate_size: int | None = None) -> dict[str, int]:
    """Parameters in all, without the embeddings and the LM head, and in the feed-forward blocks; tied ones once.

    From config.json alone, with another `intermediate_size` if given. The same numbers as models.count_parameters on
    the loaded model. Raises ModelError for an unknown layout or a config.json without the fields that this takes.
    """
    family = find_family(str(config.get("model_type")))
    try:
        hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        vocabulary, width = config["vocab_size"], intermediate_size or config[family.width]
        key_heads = config.get("num_key_value_heads") or heads
        head = config.get("head_dim") or hidden // heads
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"config.json of the model has no usable {error}; it must describe a decoder.") from None
    queries, keys = heads * head, key_heads * head
    attention = hidden * (2 * queries + 2 * keys)
    if config.get("attention_bias"):
        attention += queries + 2 * keys + hidden
    elif config["model_type"] in _QKV_BIAS:
        attention += queries + 2 * keys
    if config["model_type"] in _QK_NORM:
        attention += 2 * head
    ffn = layers * (3 * hidden * width + ((2 * width + hidden) if config.get("mlp_bias") else 0))
    non_embedding = ffn + layers * (attention + 2 * hidden) + hidden
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return {"total": non_embedding + embeddings, "non_embedding": non_embedding, "ffn": ffn}
