"""Greedy answers against full recomputation, and what counts as a loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from sparsekd.calibration.packing import pad
from sparsekd.decoding import greedy, stop_tokens
from sparsekd.evaluation.prompts import answer_prompts, chat_prompts, is_degenerate
from sparsekd.models import load_model, load_tokenizer


@torch.inference_mode()
def slow_greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """Without a cache, a batch or padding: the whole sequence again for each token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_greedy_equals_full_recomputation(make_model: Callable[..., Path], family: str) -> None:
    model = load_model(make_model(family, seed=3))
    prompts = [[7, 9, 30], [100, 5, 6, 8, 40, 12, 200], [50]]
    assert greedy(model, prompts, 8) == [slow_greedy(model, prompt, 8) for prompt in prompts]


def test_an_answer_ends_with_its_first_stop_token(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir)
    prompts = [[7, 9, 30], [100, 5, 6, 8]]
    free = greedy(model, prompts, 10)
    stop = free[0][3]
    for answer, whole in zip(greedy(model, prompts, 10, {stop}), free, strict=True):
        assert answer == (whole[: whole.index(stop) + 1] if stop in whole else whole)


def test_no_prompt_and_no_token_give_no_answer(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir)
    assert greedy(model, [], 5) == []
    assert greedy(model, [[7, 9]], 0) == [[]]


def test_answers_go_through_the_chat_template(tiny_llama_dir: Path) -> None:
    model, tokenizer = load_model(tiny_llama_dir), load_tokenizer(tiny_llama_dir)
    stop = stop_tokens(model, tokenizer)
    assert stop == {tokenizer.eos_token_id}
    ids = tokenizer("<|user|>the river<|end|><|assistant|>")["input_ids"]
    expected = tokenizer.decode(greedy(model, [ids], 6, stop)[0], skip_special_tokens=True).strip()
    assert answer_prompts(model, tokenizer, ["the river"], 6) == [{"prompt": "the river", "answer": expected}]


def test_a_tokenizer_without_template_answers_the_raw_text(tiny_llama_dir: Path) -> None:
    model, tokenizer = load_model(tiny_llama_dir), load_tokenizer(tiny_llama_dir)
    tokenizer.chat_template = None
    ids = tokenizer("the river")["input_ids"]
    answer = answer_prompts(model, tokenizer, ["the river"], 6)[0]["answer"]
    assert (
        answer
        == tokenizer.decode(greedy(model, [ids], 6, {tokenizer.eos_token_id})[0], skip_special_tokens=True).strip()
    )


def test_prompts_come_back_from_the_packed_chat_corpus() -> None:
    chat = pad([([5, 6, 7, 20, 21], 3), ([8, 9, 30, 31, 32, 33], 2), ([4, 4, 4], 3)], padding=0)
    prompts, most = chat_prompts(chat)
    assert prompts == [[5, 6, 7], [8, 9]]  # the third has no answer
    assert most == 4


@pytest.mark.parametrize(
    ("answer", "degenerate"),
    [
        ([], False),
        ([1, 2, 3], False),
        (list(range(48)), False),
        ([7] * 6, False),
        ([7] * 7, True),  # four overlapping 4-grams
        ([1, 2, 3, 4, 5] * 3, False),
        ([1, 2, 3, 4, 5] * 4, True),
        ([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3, 7, 1, 2, 3, 6], False),
    ],
)
def test_a_loop_is_a_4_gram_four_times(answer: list[int], degenerate: bool) -> None:
    assert is_degenerate(answer) is degenerate
