"""The dtype of matrix products: bfloat16 where the device has units for it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ceiling import Products
from sparsekd import runtime
from sparsekd.calibration.build import build_calibration
from sparsekd.calibration.corpora import Corpus
from sparsekd.config import Calibrate, Distill, Evaluate, Prune, Teacher
from sparsekd.distillation.run import Curriculum, distill_checkpoint
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.evaluation.evaluate import evaluate_model
from sparsekd.models import load_model, load_tokenizer, save_checkpoint
from sparsekd.pruning.walk import prune_model
from tests.tiny_models import make_documents

CPU = torch.device("cpu")
CALIBRATE = Calibrate(
    tokens=256, sequence_length=64, held_out_tokens=128, held_out_share=0.2, minimum_characters=10, chat_prompts=0,
    self_generated=0.5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("onednn", "units", "expected"),
    [
        (True, {"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        (True, {"avx512_f": True, "avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        (True, {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),  # emulated
        (False, {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        (True, {"neon": True, "bf16": True}, torch.bfloat16),
        (False, {"neon": True, "bf16": True}, torch.float32),  # torch was built without kernels for it
    ],
)
def test_a_cpu_without_units_computes_in_float32(
    onednn: bool, units: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert runtime.compute_dtype(CPU) is expected
    assert runtime.mixed_precision(CPU)._enabled is (expected is torch.bfloat16)


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("bf16", torch.bfloat16), ("bfloat16", torch.bfloat16), ("fp32", torch.float32), ("float32", torch.float32)],
)
def test_what_is_asked_for_is_done(
    chosen: str, expected: torch.dtype, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "has_bfloat16", lambda device: here)
    assert runtime.compute_dtype(CPU, chosen) is expected


@pytest.mark.parametrize("cache", ["hidden", "sampled", "online"])
@pytest.mark.parametrize("units", [True, False])
def test_every_stage_multiplies_in_what_the_device_is_fast_in(
    units: bool, cache: Any, make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "has_bfloat16", lambda device: units)
    dense = make_model(seed=1)
    seen = {}

    def stage(name: str) -> Products:
        seen[name] = Products()
        return seen[name]

    with stage("calibrate"):
        corpora = [Corpus("wiki", "calibration", list(make_documents(60, 1)))]
        data = build_calibration(corpora, load_tokenizer(dense), CALIBRATE, partial(load_model, dense), CPU).data
    with stage("teacher"):
        write_teacher_cache(load_model(dense), data, _folder(tmp_path / "teacher"), Teacher(cache=cache, top_k=8))
    teacher = TeacherCache.open(tmp_path / "teacher")
    with stage("prune"):
        model = load_model(dense)
        prune_model(model, data.calibration.input_ids, 40, Prune())
    save_checkpoint(model, dense, tmp_path / "pruned")
    with stage("distill"):
        curriculum = Curriculum(data.calibration, data.validation, teacher, dense)
        settings = Distill(compile="never")
        out = _folder(tmp_path / "distilled")
        facts = distill_checkpoint(tmp_path / "pruned", out, curriculum, settings, CPU, tmp_path / "checkpoints")
    assert facts["precision"] == ("bf16" if units else "fp32")
    with stage("evaluate"):
        settings = Evaluate(tasks=())
        scores = evaluate_model(out, settings, tmp_path / "scores", test=data.test, teacher=teacher, device=CPU)
    assert scores.dtype == ("bfloat16" if units else "float32")
    for name, products in seen.items():
        assert (torch.bfloat16 in {product.dtype for product in products.seen}) is units, name


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
