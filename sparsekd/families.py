"""Where every supported family keeps its feed-forward block, and what its config.json amounts to in parameters.

Needs no torch: the command line checks a model by its config.json before anything heavy loads. How to add a family:
docs/families.md.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsekd.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Where a family keeps its feed-forward block, and how its output reaches the residual stream and the logits.

    Names are attribute paths below a decoder layer; the defaults describe Llama. Linear or Conv1D, and which biases
    there are, is read off the modules.
    """

    model_types: tuple[str, ...]
    layers: str = "model.layers"
    norm: str = "post_attention_layernorm"  # first module of the branch: it reads the residual stream
    block: str = "mlp"  # "" where the projections hang on the layer itself
    gate: str | None = "gate_proj"  # None without a gate, and where `up` holds it
    up: str = "up_proj"
    down: str = "down_proj"
    fused: bool = False  # `up` holds gate rows, then up rows

    # What happens between `down` and the residual stream, where it is more than a sum
    post_norm: str | None = None  # a norm of the block's output
    multiplier: str | None = None  # attribute of the layer: a factor of the block's output
    beside: str | None = None  # a parallel block: the attention that adds to the stream together with it
    layer_scale: str | None = None  # attribute of the layer: a factor of all that it gives on

    # config.json: its own names of fields, and those that make another logit of the LM head's output
    names: Mapping[str, str] = field(default_factory=dict)  # standard name -> the family's
    default_width: int = 0  # times hidden_size, where config.json leaves the width open
    logit_factor: str | None = None
    logit_divisor: str | None = None
    softcap: str | None = None
    required: Mapping[str, tuple[Any, str]] = field(default_factory=dict)  # field -> its value, what another one means

    recurrent: bool = False  # layers carry a state along the sequence: a mask cannot hide what came before
    attention: str | None = None  # plain, qkv_bias or qk_norm: parameters are counted by formula, without torch

    @property
    def width(self) -> str:
        """The field of config.json that holds the width."""
        return self.names.get("intermediate_size", "intermediate_size")


_GEMMA_NORMS: dict[str, Any] = {"norm": "pre_feedforward_layernorm", "post_norm": "post_feedforward_layernorm"}
_NO_PRE_NORM: dict[str, Any] = {"norm": "mlp", "post_norm": "post_feedforward_layernorm"}
_FUSED: dict[str, Any] = {"gate": None, "up": "gate_up_proj", "fused": True}
_GPT2_NAMES = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
}  # fmt: skip
_SOFTCAP = "final_logit_softcapping"

FAMILIES = (
    Family(("llama", "mistral"), attention="plain"),
    Family(("qwen2",), attention="qkv_bias"),
    Family(("qwen3",), attention="qk_norm"),
    Family(("phi3",), **_FUSED, attention="plain"),
    Family(("glm",), **_FUSED),
    Family(("ministral", "ministral3", "smollm3", "seed_oss", "gemma")),
    Family(("qwen3_5", "qwen3_5_text"), recurrent=True),
    Family(("gemma2", "gemma3_text"), **_GEMMA_NORMS, softcap=_SOFTCAP),
    Family(
        ("gemma4_text", "gemma4_unified_text"),
        **_GEMMA_NORMS,
        softcap=_SOFTCAP,
        layer_scale="layer_scalar",
        required={
            "use_double_wide_mlp": (False, "some layers are twice as wide as the others"),
            "num_kv_shared_layers": (0, "layers share keys and values, which pruning layer by layer cannot follow"),
            "hidden_size_per_layer_input": (0, "layers read embeddings of their own, which pruning cannot follow"),
        },
    ),
    Family(("olmo2", "olmo3", "exaone4"), **_NO_PRE_NORM),
    Family(("granite",), multiplier="residual_multiplier", logit_divisor="logits_scaling"),
    Family(("glm4",), **_FUSED, post_norm="post_mlp_layernorm"),
    Family(("cohere", "cohere2"), norm="input_layernorm", beside="self_attn", logit_factor="logit_scale"),
    Family(("nemotron",), gate=None),
    Family(("phi",), norm="input_layernorm", gate=None, up="fc1", down="fc2", beside="self_attn"),
    Family(
        ("gpt2",),
        layers="transformer.h",
        norm="ln_2",
        gate=None,
        up="c_fc",
        down="c_proj",
        names=_GPT2_NAMES,
        default_width=4,
        required={"add_cross_attention": (False, "its layers attend to an encoder")},
    ),
    Family(
        ("opt",),
        layers="model.decoder.layers",
        norm="final_layer_norm",
        block="",
        gate=None,
        up="fc1",
        down="fc2",
        names={"intermediate_size": "ffn_dim"},
        required={"do_layer_norm_before": (True, "it normalises after the residual sum")},
    ),
)

_WIDTHS_DIFFER = "its layers have a width each, and stock runtimes take one intermediate_size for all"
REFUSED = {
    "gemma3n": _WIDTHS_DIFFER,
    "gemma3n_text": _WIDTHS_DIFFER,
    "lfm2": "its code makes another width of the one in config.json",
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "enable_moe_block")


def find_family(model_type: str) -> Family:
    """The description of `model_type`. Raises ModelError for a layout that nobody has described yet."""
    family = _described(model_type)
    if family is not None:
        return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ModelError(
        f"The model's layout is {model_type!r}; supported are {known}. A family is one entry in sparsekd/families.py: "
        "where its layers, norm, gate, up and down projections are (docs/families.md)."
    )


def _described(model_type: Any) -> Family | None:
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def family_of(config: Mapping[str, Any]) -> Family:
    """The description of the model with this config.json.

    Raises ModelError with the reason where its feed-forward blocks cannot be pruned to one width, and for an unknown
    layout.
    """
    values = standard_config(config)
    reason = _obstacle(values)
    if reason is not None:
        raise ModelError(f"The model's layout is {values.get('model_type')!r}, and {reason}. Choose another model.")
    return find_family(str(values.get("model_type")))


def _obstacle(values: Mapping[str, Any]) -> str | None:
    """Why a model with these values cannot be pruned, as far as that is known."""
    model_type = values.get("model_type")
    if model_type in REFUSED:
        return REFUSED[model_type]
    language = {**values, **(values.get("text_config") or {})}
    if any(isinstance(language.get(name), int) and language[name] > 0 for name in _EXPERTS):
        return "it is a mixture of experts, whose feed-forward blocks are not pruned yet"
    if _widths_differ(language):
        return _WIDTHS_DIFFER
    family = _described(model_type)
    if family is not None:
        return next((why for name, (must, why) in family.required.items() if values.get(name, must) != must), None)
    return "Transformers loads it only as a whole, not its language model alone" if "text_config" in values else None


def _widths_differ(values: Mapping[str, Any]) -> bool:
    """Whether config.json gives the layers widths of their own."""
    layers = values.get("per_layer_config") or ()
    own = layers.values() if isinstance(layers, Mapping) else layers
    listed = isinstance(values.get("intermediate_size"), (list, tuple))
    return listed or any(isinstance(layer, Mapping) and "intermediate_size" in layer for layer in own)


def standard_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's values under the names that most families use: hidden_size, intermediate_size and so on.

    Of a model with a nested text_config whose language model loads alone, that one's. Whatever else there is stays.
    """
    values = dict(config)
    family = _described(values.get("model_type"))
    if family is None:
        return values
    values |= values.pop("text_config", None) or {}
    values |= {standard: values[own] for standard, own in family.names.items() if values.get(own) is not None}
    if family.default_width and values.get("intermediate_size") is None and "hidden_size" in values:
        values["intermediate_size"] = family.default_width * values["hidden_size"]
    return values


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")


def parameters_from_config(config: Mapping[str, Any], intermediate_size: int | None = None) -> dict[str, int]:
    """Parameters in all, without the embeddings and the LM head, and in the feed-forward blocks; tied ones once.

    From config.json alone, with another `intermediate_size` if given. The same numbers as models.count_parameters on
    the loaded model. The commonest layouts are counted by formula; of others Transformers builds the model without
    memory for its weights, which imports torch. Raises ModelError for an unknown layout or a config.json without the
    fields that this takes.
    """
    family = family_of(config)
    values = check_fields(config)
    width = intermediate_size or values["intermediate_size"]
    if family.attention is not None:
        return _by_formula(values, width, family.attention)
    own = {name: value for name, value in values.items() if name not in family.names} | {family.width: width}
    return dict(_by_building(json.dumps(own, sort_keys=True)))


def check_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` under standard names. Raises ModelError where one that says how large the model is, is no number."""
    values = standard_config(config)
    for name in _SIZES:
        if not isinstance(values.get(name), int) or values[name] < 1:
            raise ModelError(f"config.json of the model has no usable {name!r}; it must describe a decoder.")
    return values


def head_widths(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Width of a layer's queries, of its keys, and of one head, where all layers are alike; standard names."""
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return heads * head, (config.get("num_key_value_heads") or heads) * head, head


def _by_formula(config: Mapping[str, Any], width: int, kind: str) -> dict[str, int]:
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    queries, keys, head = head_widths(config)
    attention = hidden * (2 * queries + 2 * keys)
    if config.get("attention_bias"):
        attention += queries + 2 * keys + hidden
    elif kind == "qkv_bias":  # always there, whatever config.json says
        attention += queries + 2 * keys
    if kind == "qk_norm":
        attention += 2 * head
    ffn = layers * (3 * hidden * width + ((2 * width + hidden) if config.get("mlp_bias") else 0))
    non_embedding = ffn + layers * (attention + 2 * hidden) + hidden
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return {"total": non_embedding + embeddings, "non_embedding": non_embedding, "ffn": ffn}


@functools.lru_cache(maxsize=64)
def _by_building(config: str) -> Mapping[str, int]:
    from sparsekd.models import count_parameters, empty_model

    return count_parameters(empty_model(json.loads(config)))
