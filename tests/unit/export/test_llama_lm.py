"""A GGUF file as a model of lm-eval: log-likelihoods of llama.cpp are those of the evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sparsekd.export.llama_cpp import LlamaCpp
from sparsekd.export.write import write_gguf
from sparsekd.models import load_model, load_tokenizer
from tests.runtimes import with_llama_cpp

PAIRS = [
    ("the river", " and the"),
    ("the river", " walks slowly"),
    ("a stone sees", " light"),
    ("water", " under a tree"),
]


@pytest.mark.slow
@with_llama_cpp
def test_log_likelihoods_are_those_of_the_evaluation(make_model: Callable[..., Path], tmp_path: Path) -> None:
    from sparsekd.evaluation.shared_context import SharedContextLM
    from sparsekd.export.llama_lm import LlamaLM

    path = make_model("llama")
    tokenizer = load_tokenizer(path)
    requests = [(pair, *(tokenizer(text)["input_ids"] for text in pair)) for pair in PAIRS]
    write_gguf(path, {"f32": tmp_path / "model.gguf"})
    with LlamaCpp(tmp_path / "model.gguf", context=64, threads=1) as runtime:
        found = LlamaLM(runtime, tokenizer, 2)._loglikelihood_tokens(requests)
    expected = SharedContextLM(load_model(path), tokenizer, 2)._loglikelihood_tokens(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)
