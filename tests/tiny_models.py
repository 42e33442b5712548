"""Tiny random models of every family with a real tokenizer, and small texts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

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
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **(sizes | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
