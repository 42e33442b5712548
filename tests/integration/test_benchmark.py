"""The speed benchmark with real processes: rounds, idle processes that stand still, failures, nobody left behind."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from sparsekd.config import Benchmark, Runtime
from sparsekd.errors import ResourceError
from sparsekd.evaluation.speed import Worker, run_benchmark

SETTINGS = Benchmark(rounds=3, prefill_tokens=16, decode_tokens=4, batch_size=2, dtype="float32")
RUNTIME = Runtime(threads=1, device="cpu")


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_rounds_ratios_and_profile(tiny_llama_dir: Path) -> None:
    seen: list[tuple[float, float, str]] = []
    found = run_benchmark(
        {"dense": tiny_llama_dir, "pruned": tiny_llama_dir, "distilled": tiny_llama_dir},
        SETTINGS,
        RUNTIME,
        lambda done, total, unit, **_: seen.append((done, total, unit)),
    )
    assert seen[0] == (1, 9, "timings")
    assert seen[-1] == (9, 9, "timings")
    assert found["settings"] == {
        "rounds": 3,
        "prefill_tokens": 16,
        "decode_tokens": 4,
        "batch_size": 2,
        "dtype": "float32",
        "threads": 1,
        "openmp_wait": "active",
        "device": "cpu",
    }
    for measured in found["models"].values():
        assert len(measured["prefill_tokens_per_second"]) == len(measured["decode_tokens_per_second"]) == 3
        assert min(measured["prefill_tokens_per_second"]) > 0
        assert 50e6 < measured["peak_memory_bytes"] < 4e9
    for name in ("pruned", "distilled"):
        ratio = found["ratio"][name]["decode"]
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
        assert found["predicted"][name] == {"prefill": 1.0, "decode": 1.0}  # the same model
        dense, other = (found["models"][n]["decode_tokens_per_second"] for n in ("dense", name))
        assert ratio["rounds"] == pytest.approx([b / a for a, b in zip(dense, other, strict=True)])
    assert set(found["profile"]) == {"dense", "distilled"}
    for table in found["profile"].values():
        assert set(table) == {"ffn", "attention", "lm_head", "rest"}
        assert sum(row["share"] for row in table.values()) == pytest.approx(1)
    assert not children()


@pytest.mark.slow
def test_a_process_runs_only_while_it_is_asked_and_is_named_when_it_is_killed(tiny_llama_dir: Path) -> None:
    worker = Worker.start("dense", tiny_llama_dir, SETTINGS, RUNTIME)
    try:
        worker.receive()
        process = psutil.Process(worker.process.pid)
        _wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
        before = process.cpu_times()
        time.sleep(0.3)
        assert process.cpu_times() == before
        assert worker.ask("time")["decode_tokens_per_second"] > 0
        _wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
        process.kill()
        with pytest.raises(ResourceError, match=r"process for the dense model ended with code -9 \(-9 is mostly"):
            worker.ask("time")
    finally:
        worker.end()
    assert not children()


@pytest.mark.slow
def test_a_checkpoint_that_does_not_load_is_named(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"The pruned model cannot be timed: .*has no readable config\.json"):
        run_benchmark({"dense": tiny_llama_dir, "pruned": tmp_path}, SETTINGS, RUNTIME)
    assert not children()


def _wait_for(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
