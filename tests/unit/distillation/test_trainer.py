"""The trainer: schedule, order, what trains, and a resume that ends with the same bits."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sparsekd.calibration.packing import CalibrationSet, Packed
from sparsekd.config import Distill, Prune, Teacher
from sparsekd.distillation.run import Curriculum, distill_checkpoint
from sparsekd.distillation.student import checkpoint_activations, choose_attention, freeze_all_but_ffn_and_norms
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.distillation.trainer import batches, learning_rate
from sparsekd.errors import TrainingError
from sparsekd.models import final_hidden, load_model
from sparsekd.pruning import walk
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")
LENGTH = 32
SETTINGS: dict[str, Any] = {
    "compile": "never", "checkpoint_every": 3, "validate_every": 4, "validation_tokens": 64, "learning_rate": 3e-3,
}  # fmt: skip


def packed(seed: int, sequences: int) -> Packed:
    ids = torch.randint(4, 300, (sequences, LENGTH), generator=torch.Generator().manual_seed(seed))
    return Packed(ids, torch.zeros_like(ids))


@pytest.fixture(scope="module")
def school(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Curriculum]:
    """A tiny student that differs from its teacher, and what it learns from."""
    data = CalibrationSet(packed(1, 10), {"wiki": packed(2, 2)}, {})
    cache = tmp_path_factory.mktemp("teacher")
    write_teacher_cache(load_model(make_model(seed=1)), data, cache, Teacher())
    return make_model(seed=2), Curriculum(data.calibration, data.validation, TeacherCache.open(cache))


class Killed(Exception):
    pass


def run(school: tuple[Path, Curriculum], folder: Path, kill_at: int | None = None, **settings: Any) -> dict[str, Any]:
    def progress(done: float, total: float, unit: str, **values: float) -> None:
        assert unit == "tokens"
        if kill_at is not None and done == kill_at * LENGTH:
            raise Killed

    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    config = Distill(**(SETTINGS | settings))
    return distill_checkpoint(school[0], out, school[1], config, CPU, folder / "checkpoints", "x", progress)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "model.safetensors")


def measured(folder: Path, name: str) -> dict[int, float]:
    """A column of the curve by step, where it has a value."""
    with (folder / "out" / "curve.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


def its_own_school(model: Path, folder: Path, data: CalibrationSet) -> tuple[Path, Curriculum]:
    """The model as the student of itself."""
    cache = folder / "cache"
    cache.mkdir()
    write_teacher_cache(load_model(model), data, cache, Teacher())
    return model, Curriculum(data.calibration, data.validation, TeacherCache.open(cache))


@pytest.mark.parametrize("kill_at", [1, 3, 5, 9, 10])
def test_a_killed_run_ends_with_the_same_bits(school: tuple[Path, Curriculum], tmp_path: Path, kill_at: int) -> None:
    whole = run(school, tmp_path / "whole")
    with pytest.raises(Killed):
        run(school, tmp_path / "cut", kill_at=kill_at)
    assert run(school, tmp_path / "cut") == whole
    for name in ("model.safetensors", "curve.csv"):
        assert (tmp_path / "cut/out" / name).read_bytes() == (tmp_path / "whole/out" / name).read_bytes()
    assert not list((tmp_path / "cut/checkpoints").iterdir()), "the checkpoint goes when the output is whole"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (install g++)")
@pytest.mark.skipif(" " in sys.prefix, reason="the environment's path holds a space; stages start through a link")
@pytest.mark.filterwarnings("ignore")  # torch's own, from inside its compiler
def test_a_compiled_run_resumes_with_the_same_bits_and_learns_as_the_eager_one(
    school: tuple[Path, Curriculum], tmp_path: Path
) -> None:
    whole = run(school, tmp_path / "whole", compile="always")
    assert whole["compiled"]
    with pytest.raises(Killed):
        run(school, tmp_path / "cut", kill_at=5, compile="always")
    assert run(school, tmp_path / "cut", compile="always") == whole
    assert (tmp_path / "cut/out/model.safetensors").read_bytes() == (
        tmp_path / "whole/out/model.safetensors"
    ).read_bytes()
    run(school, tmp_path / "eager")
    losses = {name: list(measured(tmp_path / name, "loss").values()) for name in ("whole", "eager")}
    assert losses["whole"] == pytest.approx(losses["eager"], rel=2e-2)


def test_activations_that_are_computed_again_change_no_bit(school: tuple[Path, Curriculum], tmp_path: Path) -> None:
    run(school, tmp_path / "kept")
    run(school, tmp_path / "again", activation_checkpointing=True)
    for name in ("model.safetensors", "curve.csv"):
        assert (tmp_path / "again/out" / name).read_bytes() == (tmp_path / "kept/out" / name).read_bytes()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3_5_text"])
def test_a_layer_keeps_no_more_than_its_input(family: str) -> None:
    """In eval mode, where dropout sleeps; and the gradients are the same bits."""
    ids = torch.arange(4, 36)[None]
    kept, gradients = [], []
    for again in (False, True):
        model = tiny_model(family)
        names = freeze_all_but_ffn_and_norms(model)
        if again:
            checkpoint_activations(model)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            hidden = final_hidden(model, ids)
        hidden.square().sum().backward()
        kept.append(sum(sizes))
        gradients.append([p.grad for p in names.values()])
    assert kept[1] < 0.5 * kept[0]
    assert all(gradient is not None for gradient in gradients[0]), "DDP waits for the gradient of every parameter"
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_computed_as_the_setting_says(attention: str) -> None:
    model = tiny_model("llama")
    choose_attention(model, Distill(attention=attention), compiled=True, device=CPU)
    assert model.config._attn_implementation == attention


def test_a_resume_under_other_conditions_starts_again_and_says_so(
    school: tuple[Path, Curriculum], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Killed):
        run(school, tmp_path, kill_at=5)
    torch.set_num_threads(2)
    assert run(school, tmp_path)["steps"] == 10
    assert "made under another threads; distillation starts again" in capsys.readouterr().out


def test_the_curve_is_written_as_it_goes(school: tuple[Path, Curriculum], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(school, tmp_path, kill_at=5)
    [curve] = (tmp_path / "checkpoints").glob("*/curve.csv")
    assert [row.split(",")[0] for row in curve.read_text().splitlines()[1:]] == ["1", "2", "3", "4", "5"]


def test_a_checkpoint_that_was_being_written_is_passed_over(school: tuple[Path, Curriculum], tmp_path: Path) -> None:
    whole = run(school, tmp_path / "whole")
    with pytest.raises(Killed):
        run(school, tmp_path / "cut", kill_at=7)
    [store] = (tmp_path / "cut/checkpoints").iterdir()
    (store / "step-00000009.partial").mkdir()
    (store / "step-00000009.partial" / "state.json").write_text('{"conditions": {')
    assert run(school, tmp_path / "cut") == whole
    cut, undisturbed = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(cut[name], undisturbed[name]) for name in undisturbed)


def test_checkpoints_that_nobody_went_on_with_go(school: tuple[Path, Curriculum], tmp_path: Path) -> None:
    recent, old = tmp_path / "checkpoints/recent", tmp_path / "checkpoints/old"
    recent.mkdir(parents=True)
    old.mkdir()
    os.utime(old, (0, 0))
    run(school, tmp_path)
    assert recent.is_dir()
    assert not old.exists()


def test_only_ffn_and_norms_change_and_kl_falls(school: tuple[Path, Curriculum], tmp_path: Path) -> None:
    run(school, tmp_path, epochs=6, alpha=1.0)
    before, after = load_file(school[0] / "model.safetensors"), weights(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("mlp" in name or "norm" in name for name in changed)
    seen = list(measured(tmp_path, "validation_kl").values())
    assert seen[-1] < 0.9 * seen[0]


def test_training_stops_where_validation_kl_no_longer_falls(
    school: tuple[Path, Curriculum], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty passes over ten sequences of noise: the student learns these by heart."""
    settings = {"epochs": 30, "validate_every": 5, "learning_rate": 1e-2}
    to_the_end = run(school, tmp_path / "whole", patience=0, **settings)
    assert to_the_end["steps"] == 300
    best = to_the_end["best_step"]
    stopped = run(school, tmp_path / "stopped", patience=3, **settings)
    assert (stopped["steps"], stopped["best_step"]) == (best + 15, best)
    assert f"stopped after step {best + 15} of 300" in capsys.readouterr().out
    curves = [(tmp_path / name / "out/curve.csv").read_text().splitlines() for name in ("whole", "stopped")]
    assert curves[1] == curves[0][: best + 16]
    kl = measured(tmp_path / "whole", "validation_kl")
    assert min(kl, key=kl.__getitem__) == best
    expected, kept = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    for kill_at in (best + 14, best + 15):
        with pytest.raises(Killed):
            run(school, tmp_path / f"cut{kill_at}", kill_at=kill_at, patience=3, **settings)
        assert run(school, tmp_path / f"cut{kill_at}", patience=3, **settings) == stopped


def test_a_student_of_the_text_alone_is_judged_on_the_text(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """Not on KL, which is not what it learns: here KL to the model it begins as only rises."""
    data = CalibrationSet(packed(1, 4), {"wiki": packed(1, 4)}, {})
    facts = run(its_own_school(make_model(seed=1), tmp_path, data), tmp_path, alpha=0.0, epochs=4)
    kl, ce = measured(tmp_path, "validation_kl"), measured(tmp_path, "validation_ce")
    assert facts["best_step"] == min(ce, key=ce.__getitem__) != min(kl, key=kl.__getitem__)


def test_kl_only_against_itself_changes_nothing(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """Claim A's control: the gradient of KL(model ‖ itself) is zero, up to rounding."""
    data = CalibrationSet(packed(1, 4), {"wiki": packed(2, 2)}, {})
    school = its_own_school(make_model(seed=1), tmp_path, data)
    run(school, tmp_path, alpha=1.0, precision="fp32", learning_rate=1e-4)
    kl = measured(tmp_path, "kl")
    assert kl
    assert all(value < 1e-3 for value in kl.values()), "only the cache's bfloat16 rounding is left"


def test_divergence_stops_with_step_checkpoint_and_advice(school: tuple[Path, Curriculum], tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError,
        match=r"at step \d+: .* The last good checkpoint, of step \d+, is in .*Lower distill.learning_rate",
    ):
        run(school, tmp_path, learning_rate=1e6, gradient_clip=1e9, epochs=20, checkpoint_every=1)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_what_trains(family: str, make_model: Callable[..., Path]) -> None:
    model = load_model(make_model(family, tie_word_embeddings=True))
    names = freeze_all_but_ffn_and_norms(model)
    assert all("mlp" in name or "norm" in name for name in names)
    assert any("mlp" in name for name in names)
    assert "model.norm.weight" in names
    assert not model.get_input_embeddings().weight.requires_grad


def test_learning_rate_warms_up_and_ends_at_nothing() -> None:
    config = Distill(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def test_each_epoch_is_a_permutation_of_all_sequences() -> None:
    plan = batches(7, Distill(epochs=2, batch_size=2, seed=3))
    first, second = ([row for rows in plan[start : start + 4] for row in rows] for start in (0, 4))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "phi", "gpt2", "qwen3_5_text"])
def test_a_student_whose_logits_are_scaled_capped_or_shifted_learns_from_its_cache(family: str, tmp_path: Path) -> None:
    """From a checkpoint on disk to one: KL to the dense model falls, and what is frozen keeps its bytes."""
    teacher = tiny_model(family)
    data = CalibrationSet(packed(1, 12), {"wiki": packed(2, 4)}, {})
    write_teacher_cache(teacher, data, tmp_path, Teacher())
    walk.prune_model(teacher, data.calibration.input_ids, 40, Prune())
    teacher.save_pretrained(tmp_path / "student")
    curriculum = Curriculum(data.calibration, data.validation, TeacherCache.open(tmp_path))
    settings = {"alpha": 1.0, "epochs": 6, "learning_rate": 1e-3, "validation_tokens": 128}
    run((tmp_path / "student", curriculum), tmp_path, **settings)
    found = list(measured(tmp_path, "validation_kl").values())
    assert min(found) < 0.99 * found[0]
    assert found[0] < 0.5
    before, after = load_file(tmp_path / "student" / "model.safetensors"), weights(tmp_path)
    assert before.keys() == after.keys()
    attention = [name for name in before if "attn" in name and "norm" not in name and "ln" not in name]
    assert attention
    assert all(torch.equal(before[name], after[name]) for name in attention)
