"""Several processes distil what one does: DDP on two machines, FSDP on one, a process that fails, what cannot be."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flows.server.servers import free_port
from sparsekd.calibration.packing import NOT_SCORED, CalibrationSet, Packed
from sparsekd.config import Distill, RunConfig, Teacher
from sparsekd.distillation import launch, run
from sparsekd.distillation.processes import Machines, Processes, plan_processes
from sparsekd.distillation.run import Curriculum, distill_checkpoint
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.errors import ConfigError, ResourceError
from sparsekd.models import load_model
from sparsekd.progress import silent

CPU = torch.device("cpu")
LENGTH, SEQUENCES, EPOCHS = 32, 9, 2
"""In steps of 4 sequences the last one of an epoch has a single sequence: one process has nothing to do."""
SETTINGS: dict[str, Any] = {
    "compile": "never", "precision": "fp32", "batch_size": 4, "epochs": EPOCHS, "checkpoint_every": 3,
    "validate_every": 4, "validation_tokens": 3 * LENGTH, "learning_rate": 3e-3,
}  # fmt: skip


def packed(seed: int, sequences: int) -> Packed:
    ids = torch.randint(4, 300, (sequences, LENGTH), generator=torch.Generator().manual_seed(seed))
    return Packed(ids, torch.zeros_like(ids))


class School:
    """A tiny student with tied embeddings, what it learns from, and what one process makes of it."""

    def __init__(self, folder: Path, make_model: Callable[..., Path]) -> None:
        self.folder = folder
        self.student = make_model(seed=2, tie_word_embeddings=True)
        calibration = packed(1, SEQUENCES)
        calibration.document[3, 5:] = calibration.document[7, 20:] = NOT_SCORED  # unequal numbers of tokens
        self.data = CalibrationSet(calibration, {"wiki": packed(2, 3)}, {})
        self.cache = folder / "teacher"
        self.cache.mkdir()
        write_teacher_cache(load_model(make_model(seed=1)), self.data, self.cache, Teacher(batch_size=4))
        self.alone = self.distil("alone")

    def distil(self, name: str, strategy: str = "none", machines: Machines | None = None, **more: Any) -> list[float]:
        """The loss after each step, unrounded; the checkpoint is `self.out(name)`."""
        losses: list[float] = []
        config = Distill(
            **(SETTINGS | more), distributed={"strategy": strategy, "processes": 0 if strategy == "none" else 2}
        )
        out, checkpoints = self.out(name), self.folder / name / "checkpoints"
        out.mkdir(parents=True, exist_ok=True)

        def note(done: float, total: float, unit: str, **values: float) -> None:
            losses.append(values["loss"])

        curriculum = Curriculum(self.data.calibration, self.data.validation, TeacherCache.open(self.cache))
        distill_checkpoint(self.student, out, curriculum, config, CPU, checkpoints, "x", note, machines=machines)
        assert not list(checkpoints.iterdir()), "checkpoints and jobs go when the output is whole"
        return losses

    def out(self, name: str) -> Path:
        return self.folder / name / "out"

    def curve(self, name: str) -> list[float]:
        rows = csv.reader((self.out(name) / "curve.csv").read_text().splitlines()[1:])
        return [float(cell or 0) for row in rows for cell in row]

    def check(self, name: str, losses: list[float]) -> None:
        """As one process within rounding: losses, validation, weights; and a stock checkpoint."""
        assert losses == pytest.approx(self.alone, rel=1e-6)
        assert self.curve(name) == pytest.approx(self.curve("alone"), rel=1e-5)
        found, wanted = (load_file(self.out(n) / "model.safetensors") for n in (name, "alone"))
        assert found.keys() == wanted.keys()
        before = load_file(self.student / "model.safetensors")
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key], rtol=1e-3, atol=5e-5)
            assert ("mlp" in key or "norm" in key) != torch.equal(found[key], before[key])
        stock = AutoModelForCausalLM.from_pretrained(self.out(name))
        assert stock.get_input_embeddings().weight is stock.get_output_embeddings().weight


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> School:
    torch.set_num_threads(1)
    return School(tmp_path_factory.mktemp("school"), make_model)


def test_ddp_on_two_machines_distils_what_one_process_does(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each machine has folders of its own and ends with the same checkpoint."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    # Two machines never share a process: from_pretrained swaps a method of a class while it loads, and of two threads
    # that load at once one may leave it swapped for good
    one_at_a_time = threading.Lock()

    def load(*arguments: Any) -> Any:
        with one_at_a_time:
            return load_model(*arguments)

    monkeypatch.setattr(run, "load_model", load)
    port = free_port()
    with ThreadPoolExecutor(2) as machines:
        runs = [
            machines.submit(school.distil, name, "ddp", Machines(2, index, "127.0.0.1", port))
            for index, name in enumerate(("first", "second"))
        ]
        first, second = (each.result() for each in runs)
    assert first == second
    school.check("first", first)
    for name in ("model.safetensors", "curve.csv"):
        assert (school.out("first") / name).read_bytes() == (school.out("second") / name).read_bytes()


@pytest.mark.parametrize(
    ("strategy", "best", "process", "tensors"),
    [
        ("ddp", "best.partial", 1, ["tensors.safetensors"]),
        ("fsdp", "best-1-of-2.partial", 2, ["tensors-0-of-2.safetensors", "tensors-1-of-2.safetensors"]),
    ],
)
def test_it_goes_on_with_the_same_bits_after_a_process_has_failed(
    strategy: str, best: str, process: int, tensors: list[str], school: School, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, cut = f"whole {strategy}", f"cut {strategy}"
    school.check(whole, school.distil(whole, strategy))

    config = Distill(**SETTINGS, distributed={"strategy": strategy, "processes": 2})
    store = school.folder / cut / "checkpoints" / run._key(config, "x")
    obstacle = store / best
    obstacle.mkdir(parents=True)  # that process cannot write its best weights after step 4
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=rf"Distillation: process {process} of 2 failed: .*directory"):
        school.distil(cut, strategy)
    assert time.monotonic() - began < 60
    assert not psutil.Process().children(), "the others are gone too"
    assert not list(school.out(cut).iterdir())
    assert sorted(path.name for path in (store / "step-00000003").iterdir()) == ["state.json", *tensors]
    obstacle.rmdir()
    capfd.readouterr()
    losses = school.distil(cut, strategy)
    assert "resuming after step 3" in capfd.readouterr().out
    assert losses == school.alone[3:] or losses == pytest.approx(school.alone[3:], rel=1e-6)
    for name in ("model.safetensors", "curve.csv"):
        assert (school.out(cut) / name).read_bytes() == (school.out(whole) / name).read_bytes()


def test_a_process_that_is_killed_is_named_whatever_the_others_say() -> None:
    reader, writer = os.pipe()
    ranks = {rank: subprocess.Popen(["sleep", "60"]) for rank in (0, 1)}
    os.write(writer, b'{"failed": null, "text": "RuntimeError: Connection closed by peer", "rank": 0, "errno": null}\n')
    try:
        ranks[1].send_signal(signal.SIGKILL)
        ranks[1].wait()
        with pytest.raises(ResourceError, match=r"Process 2 of 2 of the distillation was ended by SIGKILL.*Run again"):
            launch._watch(ranks, 2, reader, silent, print)
    finally:
        for process in ranks.values():
            process.kill()
            process.wait()
        os.close(reader)
        os.close(writer)


def test_a_process_ends_with_the_one_that_started_it() -> None:
    """Even by kill -9, and before torch is there."""
    rank = (
        "import os, time; from sparsekd.distillation.rank import end_with_parent; end_with_parent(os.getppid());"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    stage = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
    with subprocess.Popen([sys.executable, "-c", stage], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        started = psutil.Process(int(process.stdout.readline()))
        process.kill()
    started.wait(timeout=5)


@pytest.mark.parametrize(
    ("settings", "devices", "machines", "planned"),
    [
        ({}, 8, Machines(), Processes()),
        ({"strategy": "ddp"}, 0, Machines(), Processes()),
        ({"strategy": "fsdp"}, 4, Machines(), Processes(4, 4, 0, "nccl")),
        ({"strategy": "ddp"}, 4, Machines(2, 1, "a", 1), Processes(8, 4, 4, "nccl", Machines(2, 1, "a", 1))),
        ({"strategy": "ddp", "processes": 2, "backend": "gloo"}, 2, Machines(), Processes(2, 2, 0, "gloo")),
    ],
)
def test_how_many_processes(settings: dict[str, Any], devices: int, machines: Machines, planned: Processes) -> None:
    assert plan_processes(Distill(batch_size=8, distributed=settings), devices, machines) == planned


@pytest.mark.parametrize(
    ("settings", "devices", "machines", "kind", "message"),
    [
        ({"strategy": "ddp"}, 3, Machines(), ConfigError, "distill.batch_size is 8; .* multiple of their number, 3"),
        ({"strategy": "ddp", "processes": 4}, 2, Machines(), ResourceError, r"asks for 4 .*, which has 2 CUDA .*Set"),
        ({"strategy": "ddp", "backend": "nccl"}, 0, Machines(), ResourceError, "is nccl; no CUDA device .*Set it to"),
        ({"strategy": "fsdp", "backend": "gloo"}, 2, Machines(), ConfigError, "is gloo, which .*fsdp needs .*Set it"),
        ({"strategy": "ddp", "processes": 4}, 0, Machines(3, 0, "a", 1), ConfigError, "is 4; .*SPARSEKD_NODES = 3"),
        ({}, 0, Machines(2, 0, "a", 1), ConfigError, "SPARSEKD_NODES is 2, but distill.distributed.strategy is none"),
    ],
)
def test_what_cannot_be_is_refused_with_the_setting_to_change(
    settings: dict[str, Any], devices: int, machines: Machines, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        plan_processes(Distill(batch_size=8, distributed=settings), devices, machines)


def test_the_machines_are_in_the_environment() -> None:
    named = {"SPARSEKD_NODES": "2", "SPARSEKD_NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert Machines.from_environment(named) == Machines(2, 1, "10.0.0.1", 29500)
    assert Machines.from_environment({"MASTER_ADDR": "elsewhere"}) == Machines()
    for wrong, message in [
        ({"SPARSEKD_NODE_RANK": "2"}, "SPARSEKD_NODE_RANK is 2; number the machines from 0 to 1"),
        ({"SPARSEKD_NODE_RANK": ""}, "number the machines"),
        ({"MASTER_PORT": ""}, "MASTER_ADDR or MASTER_PORT is not set"),
        ({"SPARSEKD_NODES": "two"}, "SPARSEKD_NODES is 'two'; it must be a whole number"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Machines.from_environment(named | wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distill": {"batch_size": 3, "distributed": {"strategy": "ddp", "processes": 2}}}, "batch_size is 3; .*= 2"),
        ({"distill": {"batch_size": 2, "distributed": {"processes": 2}}}, "processes is 2; with .*strategy = none"),
        ({"runtime": {"device": "cpu"}, "distill": {"distributed": {"backend": "nccl"}}}, "backend is 'nccl', which"),
    ],
)
def test_settings_that_do_not_fit_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(values)
