"""Tiny random models of every family, a real tokenizer, small texts; offline for the whole session."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "true",
    "TOKENIZERS_PARALLELISM": "false",
}

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from flows.servers import free_port, start_prefect

# Started in the background by a shell, this process and so its children would ignore Ctrl-C, which tests send
signal.signal(signal.SIGINT, signal.default_int_handler)

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With SPARSEKD_NO_SKIPS set, as in CI, a skipped test is a failure: it means that something is not installed."""
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("SPARSEKD_NO_SKIPS") and skipped:
        for report in skipped:
            terminalreporter.line(f"skipped: {report.nodeid}: {report.longrepr[-1]}", red=True)
        pytest.exit("tests were skipped although SPARSEKD_NO_SKIPS is set", returncode=1)


def make_documents(count: int, seed: int, words: int = 120) -> list[str]:
    """Distinct documents of random sentences."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(words)) + f". document {seed}-{n}." for n in range(count)]


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """Tiny models are faster on one thread, and the tests' bits do not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
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


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Write a tiny random stock checkpoint of a family and return its directory; further arguments go to its config."""

    def make(model_type: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
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
        path = tmp_path_factory.mktemp(model_type) / "model"
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server for one module's tests: a run that starts its own takes 8 s longer."""
    server = start_prefect(tmp_path_factory.mktemp("prefect"), free_port(), ui=False)
    try:
        server.wait_until_ready("/api/health")
        yield f"{server.url}/api"
    finally:
        server.end()


@pytest.fixture(scope="session")
def tiny_llama_dir(make_model: Callable[..., Path]) -> Path:
    """A tiny random Llama checkpoint with tied embeddings; read only."""
    return make_model("llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 80 documents."""
    file = tmp_path_factory.mktemp("texts") / "sentences.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_documents(80, seed=1)))
    return file
