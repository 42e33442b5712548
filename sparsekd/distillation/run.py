"""Distil a checkpoint on disk: load student and teacher cache, train, save a stock checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekd.artifacts import forget_work, library_versions, require_disk
from sparsekd.calibration.packing import CalibrationSet, Packed
from sparsekd.config import Distill, Divergence
from sparsekd.distillation.curve import write_curve
from sparsekd.distillation.head import HeadLoss, SampledTerms, Terms
from sparsekd.distillation.launch import launch
from sparsekd.distillation.losses import distillation_terms, sampled_terms
from sparsekd.distillation.processes import Machines, plan_processes
from sparsekd.distillation.result import Trained
from sparsekd.distillation.state import CheckpointStore
from sparsekd.distillation.strategy import Alone, whole
from sparsekd.distillation.student import freeze_all_but_ffn_and_norms, prepare, should_compile
from sparsekd.distillation.targets import Online, cached
from sparsekd.distillation.teacher import TeacherCache
from sparsekd.distillation.teacher.cache import CALIBRATION
from sparsekd.distillation.trainer import Lesson, Trainer
from sparsekd.errors import ArtifactError
from sparsekd.models import count_parameters, lm_head, load_model, save_checkpoint
from sparsekd.progress import Progress, silent
from sparsekd.runtime import compute_dtype, conditions


@dataclass(frozen=True)
class Curriculum:
    """What a student learns from: packed sequences, and the teacher by part name.

    `dense` is the dense model's checkpoint, read only where the cache is `online`.
    """

    calibration: Packed
    validation: Mapping[str, Packed]
    cache: TeacherCache
    dense: Path | None = None

    def lesson(self, config: Distill, device: torch.device) -> Lesson:
        """The calibration sequences to train on. Raises ArtifactError where their teacher is missing or damaged."""
        packed = self.calibration.head(config.tokens)
        if self.cache.index.kind != "online":
            return Lesson(packed, cached(self.cache, CALIBRATION))
        if self.dense is None:
            raise ArtifactError(
                f"{self.cache.directory} was made for teacher.cache=online and holds no calibration tokens; give the "
                "dense model's checkpoint, or make a cache with teacher.cache=hidden."
            )
        return Lesson(packed, Online(load_model(self.dense, torch.float32, device)))

    def validation_lessons(self, config: Distill) -> dict[str, Lesson]:
        """What the student is validated on, always against exact hidden states."""
        return {
            corpus: Lesson(packed.head(config.validation_tokens), cached(self.cache, f"validation-{corpus}"))
            for corpus, packed in self.validation.items()
        }


def distill_checkpoint(
    student: Path,
    out: Path,
    curriculum: Curriculum,
    config: Distill,
    device: torch.device,
    checkpoints: Path,
    identity: str = "",
    progress: Progress = silent,
    say: Callable[[str], None] = print,
    machines: Machines | None = None,
) -> dict[str, Any]:
    """Train the student and write a stock checkpoint and curve.csv into `out`; return what the manifest records.

    Resumes from the folder of `checkpoints` that belongs to this configuration and `identity` (the hash of the inputs).
    Starts processes where `config.distributed` asks for several, on `machines`, by default those of the environment.
    """
    devices = torch.cuda.device_count() if device.type == "cuda" else 0
    processes = plan_processes(config, devices, machines or Machines.from_environment())
    place = checkpoints / _key(config, identity)
    if processes.total == 1:
        trained = train(student, curriculum, config, device, place, Alone(), progress, say)
    else:
        data = CalibrationSet(curriculum.calibration, dict(curriculum.validation), {})
        teacher = curriculum.cache.directory, curriculum.dense
        trained = launch(processes, student, data, *teacher, config, device, place, progress, say)
    _save(trained.weights, student, out)
    write_curve(trained.curve, out / "curve.csv")
    forget_work(place)
    return trained.facts


def train(
    student: Path,
    curriculum: Curriculum,
    config: Distill,
    device: torch.device,
    place: Path,
    strategy: Alone,
    progress: Progress,
    say: Callable[[str], None],
) -> Trained:
    """Train in this process, the only one or one of several; resumes from `place`.

    Of several processes on a machine only the first one gets the weights.
    """
    curriculum.cache.check(config)
    lesson, validation = curriculum.lesson(config, device), curriculum.validation_lessons(config)
    compiled, warning = should_compile(config, device)
    if warning:
        say(f"warning: {warning}")
    model = load_model(student, torch.float32, strategy.loads_on(device))
    chosen = freeze_all_but_ffn_and_norms(model)
    facts: dict[str, Any] = {
        "parameters": count_parameters(model),
        "trained_parameters": sum(p.numel() for p in chosen.values()),
        "warnings": [warning] if warning else [],
    }
    made_under = _conditions(device, compiled, config) | strategy.conditions()
    store = CheckpointStore(place, made_under, strategy)
    if strategy.leads:
        _require_disk(place.parent, facts["trained_parameters"])
    dtype = compute_dtype(device, config.precision)
    head = lm_head(model).to(device, dtype)
    prepare(model, config, compiled, device)
    parameters = strategy.wrap(model, chosen)
    trainer = Trainer(
        model,
        parameters,
        HeadLoss(
            head,
            curriculum.cache.head.to(device, dtype),
            config.alpha,
            config.temperature,
            *head_terms(compiled, config.divergence),
        ),
        lesson,
        validation,
        config,
        store,
        progress,
        say,
        strategy,
    )
    position = trainer.run()
    reached = {
        "steps": position.step,
        "tokens": position.curve[-1]["tokens"],
        "best_step": position.best_step or position.step,
    }
    return Trained(_gathered(parameters, strategy.leads), position.curve, reached | facts | made_under)


def _conditions(device: torch.device, compiled: bool, config: Distill) -> dict[str, Any]:
    """All that the bits depend on beside configuration and inputs."""
    precision = "bf16" if compute_dtype(device, config.precision) is torch.bfloat16 else "fp32"
    settled = {"precision": precision, "compiled": compiled, "torch": library_versions()["torch"]}
    return conditions(device) | settled


def _key(config: Distill, identity: str) -> str:
    text = json.dumps([config.model_dump(mode="json"), identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def head_terms(compiled: bool, divergence: Divergence = "forward_kl") -> tuple[Terms, SampledTerms]:
    """The loss at the head against hidden states and against samples, compiled or not."""
    whole, sampled = distillation_terms, sampled_terms
    if compiled:
        whole, sampled = torch.compile(whole, dynamic=False), torch.compile(sampled, dynamic=False)
    return partial(whole, divergence=divergence), sampled


def _require_disk(directory: Path, trained: int) -> None:
    """A checkpoint holds weights and two moments; old and new stand side by side for a moment, the best beside them."""
    needed = 4 * trained * (3 + 3 + 1)
    require_disk(directory, needed, f"resumable checkpoints need {needed / 1e9:.1f} GB")


def _gathered(parameters: Mapping[str, nn.Parameter], keep: bool) -> dict[str, Tensor]:
    """The trained weights, all of each, one after the other; only who keeps them needs the memory."""
    kept = {}
    for name, parameter in parameters.items():
        tensor = whole(parameter.detach())
        if keep:
            kept[name] = tensor.cpu()
    return kept


def _save(parameters: Mapping[str, Tensor], student: Path, out: Path) -> None:
    """Write the student with the trained parameters: what was frozen keeps its bytes, whatever it was computed in."""
    model = load_model(student)
    names = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            names[name].copy_(parameter)
    save_checkpoint(model, student, out)
