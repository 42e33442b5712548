"""How tokens spread, and the worst passages, against slow versions of their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsekd.calibration.packing import CalibrationSet, Packed, pack, pad
from sparsekd.config import Teacher
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.evaluation.passages import COUNT, LENGTH, Place, choose_places, worst_passages, worst_places
from sparsekd.evaluation.perplexity import TokenScores, token_scores
from sparsekd.evaluation.tokens import CONFIDENCE_BINS, KL_EDGES, divergence, reliability
from sparsekd.models import load_model, load_tokenizer

SHARE = st.floats(0, 1)


def scores_of(kl: list[float], confidence: list[float], right: list[float]) -> TokenScores:
    columns = [kl, kl, kl, confidence, right]
    return TokenScores(*(torch.tensor(column, dtype=torch.float64) for column in columns))


@given(st.lists(st.tuples(SHARE, st.booleans()), min_size=1, max_size=60))
def test_reliability_is_that_of_the_definition(tokens: list[tuple[float, bool]]) -> None:
    confidence, right = [c for c, _ in tokens], [float(r) for _, r in tokens]
    found = reliability(scores_of(confidence, confidence, right))
    error = 0.0
    for number in range(CONFIDENCE_BINS):
        inside = [i for i, c in enumerate(confidence) if min(int(c * CONFIDENCE_BINS), CONFIDENCE_BINS - 1) == number]
        assert found.tokens[number] == len(inside)
        if inside:
            assert found.confidence[number] == pytest.approx(np.mean([confidence[i] for i in inside]), abs=2e-6)
            assert found.accuracy[number] == pytest.approx(np.mean([right[i] for i in inside]), abs=2e-6)
            error += abs(sum(right[i] - confidence[i] for i in inside)) / len(tokens)
    assert found.error == pytest.approx(error, abs=2e-6)


@given(st.lists(st.floats(-1e-6, 40), min_size=1, max_size=60))
def test_divergence_adds_up(kl: list[float]) -> None:
    found = divergence(scores_of(kl, [0.0] * len(kl), [0.0] * len(kl)))
    ends = (*KL_EDGES[1:], math.inf)
    for number, (low, high) in enumerate(zip(KL_EDGES, ends, strict=True)):
        inside = [value for value in kl if low <= max(value, 0.0) < high]
        assert found.tokens[number] == len(inside)
        assert found.nats[number] == pytest.approx(sum(inside), abs=2e-6)


def test_the_worst_places_are_those_of_a_slow_search() -> None:
    draw = np.random.default_rng(1)
    packed = pad([(draw.integers(4, 380, length).tolist(), asked) for length, asked in ((150, 6), (97, 60))], padding=0)
    kl = torch.from_numpy(draw.exponential(0.4, int(packed.scored.sum())))
    values = iter(kl.tolist())
    windows: dict[tuple[int, int], list[float]] = {}
    for row in range(2):
        for place in range(1, packed.input_ids.shape[1]):
            if packed.scored[row, place - 1]:
                windows.setdefault((row, 1 + (place - 1) // LENGTH * LENGTH), []).append(next(values))
    expected = {place: np.mean(found) for place, found in windows.items() if len(found) >= LENGTH / 2}
    found = worst_places("chat", packed, kl)
    assert {(place.row, place.first): place.kl for place in found} == pytest.approx(expected)
    assert [place.kl for place in found] == pytest.approx(sorted(expected.values(), reverse=True))
    assert len(found) < len(windows)  # the second text's first window is mostly its prompt


def test_every_corpus_has_its_worst_place_before_any_has_its_second() -> None:
    far = [Place("code", row, 1, 5.0 - row) for row in range(3)] + [Place("code", row, 1, 0.5) for row in range(20)]
    near = [Place("wiki", row, 1, 0.4 - row / 10) for row in range(2)]
    chosen = choose_places({"code": far, "wiki": near})
    assert len(chosen) == COUNT
    assert [place for place in chosen if place.corpus == "wiki"] == near
    assert [place.kl for place in chosen] == sorted((place.kl for place in chosen), reverse=True)


@pytest.fixture(scope="module")
def packed() -> Packed:
    ids = np.random.default_rng(0).integers(4, 380, 3 * 120).tolist()
    return pack([ids], length=120, tokens=360)


@pytest.fixture(scope="module")
def teacher(make_model: Callable[..., Path], packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    out = tmp_path_factory.mktemp("teacher")
    everything = CalibrationSet(packed, {}, {"wiki": packed})
    write_teacher_cache(load_model(make_model("llama", seed=5)), everything, out, Teacher(batch_size=2))
    return TeacherCache.open(out)


def test_a_passage_says_what_both_models_expected(tiny_llama_dir: Path, packed: Packed, teacher: TeacherCache) -> None:
    model = load_model(tiny_llama_dir)
    tokenizer = load_tokenizer(tiny_llama_dir)
    scores = token_scores(model, packed, 2, teacher, "test-wiki")
    found = worst_passages(model, tokenizer, {"wiki": packed}, {"wiki": scores}, teacher)
    places = choose_places({"wiki": worst_places("wiki", packed, scores.kl)})
    assert len(found) == len(places) == 3 * 3 - 3 * (119 % LENGTH < LENGTH / 2)
    for passage, place in zip(found, places, strict=True):
        ids = packed.input_ids[place.row]
        assert passage.kl == pytest.approx(place.kl, abs=1e-4)
        with torch.inference_mode():
            dense = teacher.logits(teacher.hidden("test-wiki", range(place.row, place.row + 1))[0])
            theirs, ours = dense.float().softmax(-1), model(ids[None]).logits[0].softmax(-1)
        kl = (theirs * (theirs.log() - ours.log())).sum(-1)
        for offset, token in enumerate(passage.tokens):
            at = place.first + offset
            assert token.text == tokenizer.decode([int(ids[at])])
            assert token.kl == pytest.approx(float(kl[at - 1]), rel=1e-3, abs=1e-4)
            for choices, expected in ((token.dense, theirs[at - 1]), (token.model, ours[at - 1])):
                assert [p for _, p in choices] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-3)
            assert token.model[0][0] == tokenizer.decode([int(ours[at - 1].argmax())])


def test_a_model_that_is_its_teacher_has_no_worst_passage(
    make_model: Callable[..., Path], packed: Packed, teacher: TeacherCache
) -> None:
    path = make_model("llama", seed=5)
    model = load_model(path)
    scores = token_scores(model, packed, 2, teacher, "test-wiki")
    assert worst_passages(model, load_tokenizer(path), {"wiki": packed}, {"wiki": scores}, teacher) == []
