"""What needs CUDA devices; skipped without them, and then said at the end of the tests (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsekd.calibration.packing import CalibrationSet, Packed
from sparsekd.config import Distill, Teacher
from sparsekd.distillation.run import Curriculum, distill_checkpoint
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.models import load_model
from tests.conftest import NO_GPU

DEVICES = torch.cuda.device_count()
pytestmark = [
    pytest.mark.skipif(DEVICES < 1, reason=f"{NO_GPU} here"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, from inside its compiler
]
LENGTH = 32
Distil = Callable[..., tuple[list[float], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def distil(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Distil:
    """Distil a tiny model under settings, on a device, killed after so many steps; the losses and the weights."""
    folder = tmp_path_factory.mktemp("school")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 300, (16, LENGTH), generator=generator)
    data = CalibrationSet(Packed(ids, torch.zeros_like(ids)), {"wiki": Packed(ids[:2], torch.zeros_like(ids[:2]))}, {})
    student = make_model(seed=2, tie_word_embeddings=True)
    (folder / "teacher").mkdir()
    write_teacher_cache(load_model(make_model(seed=1)), data, folder / "teacher", Teacher(batch_size=4))

    def run(name: str, device: str = "cuda", kill_at: int = 0, **settings: object) -> tuple[list[float], dict]:
        losses: list[float] = []

        def note(done: float, total: float, unit: str, **values: float) -> None:
            losses.append(values["loss"])
            if kill_at and len(losses) == kill_at:
                raise KeyboardInterrupt

        out = folder / name / "out"
        out.mkdir(parents=True, exist_ok=True)
        common = {"batch_size": 8, "epochs": 3, "checkpoint_every": 2, "compile": "never", "learning_rate": 3e-3}
        config = Distill(**(common | settings))
        school = Curriculum(data.calibration, data.validation, TeacherCache.open(folder / "teacher"))
        distill_checkpoint(student, out, school, config, torch.device(device), folder / name / "checkpoints", "x", note)
        return losses, load_file(out / "model.safetensors")

    return run


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp32", "attention": "eager"},
        {"precision": "bf16", "attention": "sdpa"},
        {"precision": "bf16", "compile": "always"},
        {"precision": "bf16", "compile": "always", "activation_checkpointing": True},
    ],
    ids=["fp32", "sdpa", "compiled", "checkpointed"],
)
def test_a_device_learns_what_a_cpu_does(distil: Distil, settings: dict[str, object]) -> None:
    name = "-".join(map(str, settings.values()))
    expected, _ = distil(f"{name}-cpu", "cpu", precision="fp32")
    losses, _ = distil(name, **settings)
    assert losses == pytest.approx(expected, rel=1e-3 if settings["precision"] == "fp32" else 3e-2)


def test_a_killed_run_goes_on_on_a_device(distil: Distil) -> None:
    whole, weights = distil("whole")
    with pytest.raises(KeyboardInterrupt):
        distil("cut", kill_at=3)
    losses, resumed = distil("cut")
    assert losses == pytest.approx(whole[2:], rel=1e-2)
    for name, expected in weights.items():
        torch.testing.assert_close(resumed[name], expected, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(DEVICES < 2, reason=f"{NO_GPU} beside the first here")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_learn_what_one_does(distil: Distil, strategy: str) -> None:
    expected, weights = distil(f"one-{strategy}", precision="fp32")
    distributed = {"strategy": strategy, "processes": 2}
    losses, found = distil(strategy, precision="fp32", distributed=distributed)
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3)
