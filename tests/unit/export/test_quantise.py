"""The comparison with quantisation: log-likelihoods of llama.cpp are lm-eval's own, and who is on the frontier."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quantise
from benchmarks.jobs import read
from benchmarks.quantise import Job, on_frontier
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
    from benchmarks.llama_lm import LlamaLM
    from sparsekd.evaluation.shared_context import SharedContextLM

    path = make_model("llama")
    tokenizer = load_tokenizer(path)
    requests = [(pair, *(tokenizer(text)["input_ids"] for text in pair)) for pair in PAIRS]
    write_gguf(path, {"f32": tmp_path / "model.gguf"})
    with LlamaCpp(tmp_path / "model.gguf", context=64, threads=1) as runtime:
        found = LlamaLM(runtime, tokenizer, 2)._loglikelihood_tokens(requests)
    expected = SharedContextLM(load_model(path), tokenizer, 2)._loglikelihood_tokens(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)


def test_who_is_smaller_and_nearer_takes_the_frontier() -> None:
    rows = {Job("dense", "f16"): (200.0, 0.0), Job("dense", "q8_0"): (100.0, 0.1), Job("ours", "f16"): (150.0, 0.2)}
    assert on_frontier(rows) == {Job("dense", "f16"), Job("dense", "q8_0")}
    assert on_frontier(rows | {Job("ours", "q8_0"): (90.0, 0.2)}) == {*on_frontier(rows), Job("ours", "q8_0")}
    alike = {Job("dense", "q8_0"): (1.0, 1.0), Job("ours", "q8_0"): (1.0, 1.0)}
    assert on_frontier(alike) == set(alike)


def test_the_table_has_a_row_a_file_and_the_median_speed(tmp_path: Path) -> None:
    def line(model: str, name: str, size: float, kl: float) -> dict[str, Any]:
        test = {name: {"perplexity": {"value": 20.0}, "kl": {"value": kl}} for name in ("wiki", "c4")}
        test["code"] = {"perplexity": {"value": 9.0}, "kl": {"value": 2 * kl}}
        tasks = {"sciq": {"value": 0.5}, "piqa": {"value": 0.7}}
        return {"model": model, "type": name, "bytes": size, "test": test, "tasks": tasks}

    speed = {"dense q8_0": {"prefill": [100.0, 900.0, 120.0], "decode": [10.0, 12.0, 90.0]}}
    lines = [line("dense", "q8_0", 145e6, 0.01), line("ours", "f16", 231e6, 0.4)]
    lines += [{"model": "speed", "type": "", "tokens_per_second": speed}]
    file = tmp_path / "quantise.jsonl"
    file.write_text("".join(json.dumps(values) + "\n" for values in lines))
    rows = quantise.table(read(file, Job)).splitlines()[2:]
    assert rows[0] == "| dense Q8_0 | 145 | 0.010 | 0.020 | 20.00 | 60.0 | 120 | 12 | yes |"
    assert rows[1] == "| ours F16 | 231 | 0.400 | 0.800 | 20.00 | 60.0 | – | – | no |"


def test_every_file_is_measured_and_then_the_speed_of_all() -> None:
    named = list(quantise.jobs())
    assert {(job.model, job.type) for job in named[:-1]} == {(m, t) for m in ("dense", "ours") for t in quantise.TYPES}
    assert named[-1] == Job(quantise.SPEED)
