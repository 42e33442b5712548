"""What holds for every input: intervals, chosen rows, loops, and contexts that are shared."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from sparsekd.evaluation.intervals import ratio_interval
from sparsekd.evaluation.packaged_tasks import choose_rows
from sparsekd.evaluation.prompts import is_degenerate
from sparsekd.evaluation.shared_context import Group, SharedContextLM, pack_groups, score_continuations
from sparsekd.models import lm_head
from tests.tiny_models import tiny_model

TOKENS = st.integers(0, 383)
documents = st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 2000)), min_size=1, max_size=40)
groups = st.lists(
    st.builds(
        lambda context, continuations: Group(tuple(context), list(range(len(continuations))), continuations),
        st.lists(TOKENS, min_size=1, max_size=12),
        st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


@given(documents, st.integers(0, 2**31))
def test_an_interval_lies_around_its_value_and_within_the_documents(found: list[tuple[float, int]], seed: int) -> None:
    sums, tokens = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    interval = ratio_interval(sums, tokens, seed, resamples=1000)
    slack = 1e-9 * (1 + abs(interval.value))
    assert interval.low - slack <= interval.value <= interval.high + slack
    assert (sums / tokens).min() - slack <= interval.low
    assert interval.high <= (sums / tokens).max() + slack
    assert interval == ratio_interval(sums, tokens, seed, resamples=1000)


@given(documents, st.floats(0.01, 100))
def test_an_interval_scales_with_its_numerator(found: list[tuple[float, int]], factor: float) -> None:
    sums, tokens = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    one, scaled = (ratio_interval(s, tokens, seed=0, resamples=200) for s in (sums, factor * sums))
    assert scaled.low == pytest.approx(factor * one.low)
    assert scaled.high == pytest.approx(factor * one.high)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**31), st.sampled_from(["piqa", "my task/2"]))
def test_chosen_rows_are_distinct_ordered_and_grow_with_their_number(
    total: int, rows: int, seed: int, task: str
) -> None:
    chosen = choose_rows(task, total, rows, seed)
    assert len(chosen) == min(rows, total)
    assert chosen == sorted(set(chosen))
    assert all(0 <= row < total for row in chosen)
    assert set(chosen) <= set(choose_rows(task, total, rows + 7, seed))
    others = choose_rows(task, total, rows, seed, after=rows)
    assert not set(chosen) & set(others)
    assert others == sorted(set(choose_rows(task, total, 2 * rows, seed)) - set(chosen))


@given(st.lists(TOKENS, max_size=60), st.lists(TOKENS, min_size=1, max_size=12))
def test_an_answer_that_ends_in_a_long_enough_loop_is_degenerate(answer: list[int], loop: list[int]) -> None:
    assert is_degenerate(answer + loop * (4 + 3 // len(loop) + 1))


@given(st.lists(TOKENS, max_size=60))
def test_an_answer_of_distinct_4_grams_is_not(answer: list[int]) -> None:
    numbered = [token * 1000 + place for place, token in enumerate(answer)]
    assert not is_degenerate(numbered)


@pytest.fixture(scope="session")
def load() -> Callable[[str], PreTrainedModel]:
    return cache(lambda family: tiny_model(family, seed=8, sliding_window=64))  # longer requests go to stock lm-eval


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma4_text", "cohere2", "gpt2", "opt"]
)
@given(batch=groups)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@torch.inference_mode()
def test_a_shared_context_gives_the_log_likelihoods_of_separate_sequences(
    load: Callable[[str], PreTrainedModel], family: str, batch: list[Group]
) -> None:
    model = load(family)
    packed = pack_groups(batch, model.dtype)
    output = model.base_model(
        input_ids=packed.input_ids, position_ids=packed.positions, attention_mask=packed.mask, use_cache=False
    )
    rows, columns = packed.source
    found, greedy = score_continuations(output.last_hidden_state[rows, columns], lm_head(model), packed.targets)
    expected, first = [], []
    for group in batch:
        for continuation in group.continuations:
            logits = model(torch.tensor([[*group.context, *continuation]])).logits[0, len(group.context) - 1 : -1]
            expected.append(logits.log_softmax(-1).gather(1, torch.tensor(continuation)[:, None])[:, 0])
            first.append(logits.argmax(-1) == torch.tensor(continuation))
    assert torch.allclose(found, torch.cat(expected), atol=2e-4)
    assert torch.equal(greedy, torch.cat(first))


def test_layers_that_carry_a_state_share_no_context(load: Callable[[str], PreTrainedModel]) -> None:
    """No mask hides one answer from the next one's state: stock lm-eval scores them one by one."""
    requests = [(None, [5, 6, 7], [8]), (None, [5, 6, 7], [9, 10])]
    for family, shared in (("qwen3_5_text", False), ("llama", True)):
        scorer = SimpleNamespace(model=load(family), config=load(family).config, max_length=64)
        groups, alone = SharedContextLM._groups(cast(SharedContextLM, scorer), requests)
        assert (bool(groups), alone) == ((True, []) if shared else (False, [0, 1]))
