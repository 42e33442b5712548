"""Estimates: right about sizes, monotone in work, and corrected by what earlier runs took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.checks import estimate as module
from flows.checks.estimate import Estimate, compressed, estimate, predicted_seconds, remember_timings
from flows.settings import params
from sparsekd.config import RunConfig
from sparsekd.sources import model_config
from tasks.graph import read_graph
from tasks.state import StageState, read_json

CHECKOUT = Path(__file__).parents[3]
DENSE = model_config("smollm2-135m-instruct-q4_1")


@pytest.fixture(autouse=True)
def _cores_with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures here are those of a machine that computes in bfloat16."""
    monkeypatch.setattr(module.machine, "cores_have_bfloat16", lambda: True)


def test_the_compressed_default_model_and_its_four_reductions() -> None:
    made = compressed(RunConfig(), DENSE)
    assert (made.old_width, made.new_width) == (1536, 1152)
    assert made.dense_bytes == 2 * 134_515_008
    assert made.reduction["width"] == made.reduction["ffn"] == 0.25
    assert 0.147 < made.reduction["total"] < 0.149
    assert made.reduction["total"] < made.reduction["non_embedding"] < made.reduction["ffn"]
    identity = compressed(params.with_settings(RunConfig(), ["prune.width=1"]), DENSE)
    assert set(identity.reduction.values()) == {0.0}


def test_every_stage_of_dvc_yaml_has_an_estimate() -> None:
    known = predicted_seconds(RunConfig(), DENSE, compressed(RunConfig(), DENSE), 4e11)
    assert {name.partition("@")[0] for name in read_graph(CHECKOUT)} == set(known)


def test_presets_are_ordered_and_within_what_is_promised() -> None:
    stages = list(read_graph(CHECKOUT))
    totals = {}
    for name in params.PRESETS:
        config = params.load_preset(name)
        seconds = predicted_seconds(config, DENSE, compressed(config, DENSE), 4e11)
        totals[name] = sum(seconds[stage.partition("@")[0]] for stage in stages)
    assert totals["smoke"] < totals["default"] < totals["quality"]
    assert totals["default"] < 40 * 60


def test_more_tokens_rows_and_rounds_take_longer(tmp_path: Path) -> None:
    def seconds(stage: str, *settings: str) -> float:
        config = params.with_settings(RunConfig(), list(settings))
        return estimate(tmp_path, config, DENSE, [stage], measure=False).seconds[stage]

    assert seconds("distill", "distill.epochs=2") > 1.5 * seconds("distill")
    assert seconds("evaluate@dense", "evaluate.rows=400") > seconds("evaluate@dense")
    assert seconds("benchmark", "benchmark.rounds=20") > seconds("benchmark")
    assert seconds("prune", "prune.statistics_tokens=1024") < seconds("prune")
    assert seconds("calibrate") > seconds("calibrate", "calibrate.self_generated=0") + 30


def test_what_the_model_writes_itself_is_bounded_in_memory() -> None:
    def needed(share: float) -> float:
        config = params.with_settings(RunConfig(), [f"calibrate.self_generated={share}", "calibrate.tokens=10000000"])
        return module.stage_memory(config, DENSE, compressed(config, DENSE))["calibrate"]

    assert needed(0.01) < needed(0.5) < needed(0) + 3e9


def test_each_kind_of_teacher_cache_is_counted(tmp_path: Path) -> None:
    def needed(kind: str, *stages: str) -> Estimate:
        config = params.with_settings(RunConfig(), [f"teacher.cache={kind}"])
        return estimate(tmp_path, config, DENSE, list(stages), measure=False)

    disk = [needed(kind, "teacher").disk for kind in ("hidden", "sampled", "online")]
    assert [disk[0] - disk[1], disk[1] - disk[2]] == [2 * 122_880 * (1152 - 264), 2 * 122_880 * 264]
    hidden, online = needed("hidden", "teacher", "distill"), needed("online", "teacher", "distill")
    assert online.seconds["teacher"] < hidden.seconds["teacher"] < needed("sampled", "teacher").seconds["teacher"]
    assert online.seconds["distill"] > hidden.seconds["distill"]
    assert needed("online", "distill").memory > needed("hidden", "distill").memory


def test_only_what_runs_counts(tmp_path: Path) -> None:
    all_of_it = estimate(tmp_path, RunConfig(), DENSE, list(read_graph(CHECKOUT)), measure=False)
    report = estimate(tmp_path, RunConfig(), DENSE, ["report"], measure=False)
    assert set(report.seconds) == {"report"}
    assert report.disk < all_of_it.disk
    assert 1e9 < all_of_it.memory < 6e9


def test_two_stages_side_by_side_need_the_memory_of_both() -> None:
    made = compressed(RunConfig(), DENSE)

    def needed(*stages: str) -> int:
        return module.memory_bytes(RunConfig(), DENSE, made, list(stages))

    assert needed("distill", "evaluate@pruned") == needed("distill") + needed("evaluate@pruned")
    assert needed("distill", "evaluate@pruned", "benchmark") == needed("distill", "evaluate@pruned")
    assert 4.5e9 < needed(*read_graph(CHECKOUT)) < 6e9, "measured: 5.9 GB"


def test_weights_take_twice_the_memory_where_stages_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compressed(RunConfig(), DENSE)
    weights = 2 * made.dense["total"]

    def needed(*settings: str) -> dict[str, float]:
        return module.stage_memory(params.with_settings(RunConfig(), list(settings)), DENSE, made)

    with_units = needed()
    monkeypatch.setattr(module.machine, "cores_have_bfloat16", lambda: False)
    without = needed("runtime.device=cpu")
    assert without["evaluate"] - with_units["evaluate"] == pytest.approx(weights)
    assert without["benchmark"] - with_units["benchmark"] == pytest.approx(3 * 1.3 * weights)
    assert without["prune"] == with_units["prune"], "float32 in either case"
    chosen = needed("runtime.device=cpu", "evaluate.dtype=bfloat16", "benchmark.dtype=bfloat16")
    assert [chosen[name] for name in ("evaluate", "benchmark")] == [
        with_units[name] for name in ("evaluate", "benchmark")
    ]


def test_pruning_takes_one_layer_however_many_there_are() -> None:
    llama = {
        "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    config = params.with_settings(RunConfig(), ["prune.statistics_tokens=8192"])
    deep, deeper = (llama | {"num_hidden_layers": layers} for layers in (28, 56))
    needed = [module.stage_memory(config, model, compressed(config, model))["prune"] for model in (deep, deeper)]
    assert needed[0] == pytest.approx(needed[1], rel=1e-3)
    assert 4.3e9 < needed[0] < 6e9, "measured: 4.3 GB (benchmarks/big_model.py)"


def test_earlier_runs_correct_the_estimate(tmp_path: Path) -> None:
    before = estimate(tmp_path, RunConfig(), DENSE, ["distill", "prune"], measure=False)
    StageState("distill", "done", 100.0, 100.0 + 3 * before.seconds["distill"]).write(tmp_path)
    StageState("prune", "cached", 100.0, 101.0).write(tmp_path)
    remember_timings(tmp_path, RunConfig(), DENSE, ["distill", "prune"])
    after = estimate(tmp_path, RunConfig(), DENSE, ["distill", "prune"], measure=False)
    assert after.seconds["distill"] == pytest.approx(3 * before.seconds["distill"], rel=1e-3)
    assert after.seconds["prune"] == before.seconds["prune"]


def test_stages_side_by_side_share_the_time(tmp_path: Path) -> None:
    StageState("teacher", "done", 100.0, 140.0).write(tmp_path)
    StageState("prune", "done", 120.0, 200.0).write(tmp_path)
    remember_timings(tmp_path, RunConfig(), DENSE, ["teacher", "prune"])
    seconds = estimate(tmp_path, RunConfig(), DENSE, ["teacher", "prune"], measure=False).seconds
    assert seconds == {"teacher": pytest.approx(20 + 10, rel=1e-3), "prune": pytest.approx(10 + 60, rel=1e-3)}


def test_the_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def measure(command: list[str], **kwargs: object) -> object:
        runs.append(command)
        return type("Done", (), {"stdout": json.dumps({"flops": 8e11, "cuda": False})})

    monkeypatch.setattr(module.subprocess, "run", measure)
    slow = estimate(tmp_path, RunConfig(), DENSE, ["distill"], measure=False).seconds["distill"]
    fast = estimate(tmp_path, RunConfig(), DENSE, ["distill"]).seconds["distill"]
    assert estimate(tmp_path, RunConfig(), DENSE, ["distill"]).seconds["distill"] == fast < slow
    assert len(runs) == 1
    assert read_json(tmp_path / ".sparsekd" / "machine.json")["flops"] == 8e11


def test_the_measuring_program_runs(tmp_path: Path) -> None:
    assert module.matrix_flops(tmp_path, RunConfig()) != module._ASSUMED_FLOPS
    assert read_json(tmp_path / ".sparsekd" / "machine.json")["flops"] > 1e8
