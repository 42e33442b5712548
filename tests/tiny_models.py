"""Tiny random models of every family with a real tokenizer, and small texts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sparsekd import families

FAMILIES = ("llama", "qwen2", "qwen3", "phi3")
WORDS = [
    "the",
    "a",
    "river",
    "stone",
    "light",
    "small",
    "great",
    "old",
    "house",
    "tree",
    "walks",
    "sees",
    "finds",
    "under",
    "over",
    "near",
    "and",
    "but",
    "then",
    "morning",
    "evening",
    "water",
    "bread",
    "music",
    "letter",
    "window",
    "garden",
    "child",
    "teacher",
    "road",
    "winter",
    "summer",
    "blue",
    "green",
    "quiet",
    "bright",
    "slowly",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_documents(count: int, seed: int, words: int = 120) -> list[str]:
    """Distinct documents of random sentences."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(words)) + f". document {seed}-{n}." for n in range(count)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the tests' own sentences, with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(make_documents(50, seed=99), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": _GEMMA | _SLIDING | {"final_logit_softcapping": 3.0},
    "gemma3_text": _GEMMA | _SLIDING | {"final_logit_softcapping": 3.0},
    "gemma4_text": _SLIDING
    | {"head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 3.0},
    "olmo3": _SLIDING,
    "exaone4": _SLIDING,
    "ministral": {"head_dim": 8} | _SLIDING,
    "ministral3": {
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "seed_oss": {"head_dim": 8, "mlp_bias": True},
    "nemotron": {"mlp_bias": True},
    "cohere": {"logit_scale": 0.25, "tie_word_embeddings": False},
    "cohere2": {"logit_scale": 0.25, "head_dim": 8} | _SLIDING,
    "granite": {
        "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "logits_scaling": 4.0, "attention_multiplier": 0.3,
        "mlp_bias": True,
    },
    "opt": {"word_embed_proj_dim": 32},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "qwen3_5_text": {
        "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
}  # fmt: skip
"""What a tiny model of a family needs beside the sizes; with all that a family can have between a block and logits."""
OF_FAMILY["gemma4_unified_text"] = OF_FAMILY["gemma4_text"]
EVERY_FAMILY = [name for family in families.FAMILIES for name in family.model_types if name != "qwen3_5"]
"""Every model type that makes a text model; qwen3_5 is one with a picture model beside it."""


_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "initializer_range": 0.2,
}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The config of a tiny model; `changes` by the names that most families use."""
    sizes = {
        "vocab_size": 384,
        **_SIZES,
        "pad_token_id": 0,
        "eos_token_id": 0,
    }
    if model_type in {"gpt2", "opt"}:
        del sizes["num_key_value_heads"]  # their configs know no such field
    names = families.find_family(model_type).names
    values = {names.get(name, name): value for name, value in (sizes | OF_FAMILY.get(model_type, {}) | changes).items()}
    return AutoConfig.for_model(model_type, **values)


def tiny_model(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny random model in eval mode whose norms, biases and scales are random too, so that a forgotten one shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.7)
    return model


def write_model(
    path: Path,
    tokenizer: PreTrainedTokenizerFast,
    model_type: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Write a tiny random stock checkpoint of a family to `path` and return it; `changes` go to its config."""
    sizes = {
        "vocab_size": len(tokenizer),
        **_SIZES,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **(sizes | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
