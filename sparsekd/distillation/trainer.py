"""The training loop: passes over packed sequences with the teacher beside them.

Every choice that the bits depend on is made before the first step; a run that is killed and started again ends with the
same bits as an undisturbed one on the same machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsekd.calibration.packing import Packed
from sparsekd.config import Distill
from sparsekd.distillation.curve import append_rows, write_curve
from sparsekd.distillation.head import HeadLoss
from sparsekd.distillation.state import CheckpointStore, Position
from sparsekd.distillation.strategy import Alone
from sparsekd.distillation.targets import Target, TargetSource
from sparsekd.errors import TrainingError
from sparsekd.progress import Progress, silent
from sparsekd.runtime import mixed_precision

_DIVERGED = 3.0  # nats above the best smoothed loss
_SMOOTHING = 0.9


@dataclass(frozen=True)
class Lesson:
    """Sequences and the teacher for them."""

    packed: Packed
    teacher: TargetSource

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Target]:
        """input_ids, mask of the positions that predict a scored token, those tokens, the teacher there."""
        index = torch.as_tensor(rows)
        ids, scored = self.packed.input_ids[index].to(device), self.packed.scored[index].to(device)
        return ids, scored, ids[:, 1:][scored], self.teacher(rows, ids, scored)


def learning_rate(step: int, steps: int, config: Distill) -> float:
    """Rate of optimiser step `step` (0-based): linear warm-up, then cosine to 0 at the end."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def batches(sequences: int, config: Distill) -> list[list[int]]:
    """The rows of every step: each epoch a seeded permutation; a last, smaller batch is kept."""
    plan: list[list[int]] = []
    for epoch in range(config.epochs):
        order = torch.randperm(sequences, generator=torch.Generator().manual_seed(config.seed + epoch)).tolist()
        plan += [order[start : start + config.batch_size] for start in range(0, sequences, config.batch_size)]
    return plan


@dataclass
class Trainer:
    """Trains `parameters` of `model` on `lesson`; validates on `validation`."""

    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]
    loss: HeadLoss
    lesson: Lesson
    validation: Mapping[str, Lesson]
    config: Distill
    store: CheckpointStore
    progress: Progress = silent
    say: Callable[[str], None] = print
    strategy: Alone = field(default_factory=Alone)

    def run(self) -> Position:
        """Train from the last checkpoint, if there is one; leaves the best weights in the model.

        Ends before the last step where `patience` validations in a row found nothing better. Raises TrainingError when
        the loss is not finite or diverges.
        """
        plan = batches(len(self.lesson.packed.input_ids), self.config)
        optimizer = self._optimizer()
        position = self._resume(optimizer)
        self.store.directory.mkdir(parents=True, exist_ok=True)
        if self.strategy.rank == 0:
            write_curve(position.curve, self.store.curve)
        total = self.lesson.packed.tokens * self.config.epochs
        smoothed = best = float("inf")
        started, before = time.perf_counter(), position.curve[-1]["tokens"] if position.curve else 0
        while position.step < len(plan) and not self._out_of_patience(position):
            row = self._step(optimizer, plan[position.step], position, len(plan))
            self._check(row, position, smoothed, best)
            smoothed = row["loss"] if math.isinf(smoothed) else _SMOOTHING * smoothed + (1 - _SMOOTHING) * row["loss"]
            best = min(best, smoothed)
            position.step += 1
            position.curve.append(row)
            self._milestones(optimizer, position, len(plan))
            if self.strategy.rank == 0:
                append_rows(position.curve[-1:], self.store.curve)
            # Wall time stays out of the curve, whose bytes repeat
            speed = (row["tokens"] - before) / (time.perf_counter() - started)
            self.progress(row["tokens"], total, "tokens", loss=row["loss"], kl=row["kl"], tokens_per_second=speed)
        if position.step < len(plan):
            self.say(
                f"stopped after step {position.step} of {len(plan)}: the last {self.config.patience} validations were "
                f"no better than that after step {position.best_step} (distill.patience)"
            )
        if position.best_step not in (0, position.step):
            self.store.load_best(self.parameters)
            self.say(f"the weights after step {position.best_step} were best on validation text and are kept")
        return position

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters.values(),
            lr=self.config.learning_rate,
            betas=(self.config.beta1, self.config.beta2),
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def _resume(self, optimizer: torch.optim.Optimizer) -> Position:
        position, reason = self.store.load(self.parameters, optimizer)
        if reason:
            self.say(reason)
        if position:
            self.say(f"resuming after step {position.step}")
        return position or Position()

    def _step(
        self, optimizer: torch.optim.Optimizer, rows: list[int], position: Position, steps: int
    ) -> dict[str, Any]:
        own = self.strategy.own(rows)
        # A process without a row goes through the motions with another's: the rest wait for it in each layer
        ids, scored, targets, teacher = self.lesson.batch(own or rows[:1], self.model.device)
        with self._autocast():
            hidden = self.strategy.hidden(self.model, ids)
        student = hidden[:, :-1][scored]
        with torch.no_grad():
            kl, ce, gradient = self.loss(student, teacher, targets)
            kl, ce, weight = self.strategy.share(kl, ce, len(targets) if own else 0)
            gradient = (gradient * weight).to(student.dtype)
        student.backward(gradient)  # type: ignore[no-untyped-call]
        norm = self.strategy.clip(self.parameters, self.config.gradient_clip)
        rate = learning_rate(position.step, steps, self.config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen = len(rows) * ids.shape[1] + (position.curve[-1]["tokens"] if position.curve else 0)
        figures = {"step": position.step + 1, "tokens": seen, "loss": self._weigh(kl, ce), "kl": kl, "ce": ce}
        return figures | {"gradient_norm": norm, "learning_rate": rate, "validation_kl": None, "validation_ce": None}

    def _milestones(self, optimizer: torch.optim.Optimizer, position: Position, steps: int) -> None:
        """Validate and write a checkpoint where they are due."""
        last = position.step == steps
        if self.validation and (last or position.step % self.config.validate_every == 0):
            kl, ce = self.validate()
            position.curve[-1] |= {"validation_kl": kl, "validation_ce": ce}
            # KL is what is to be kept; a model trained on cross-entropy alone is not meant to keep it
            value = kl if self.config.alpha else ce
            if value < position.best_value:
                position.best_value, position.best_step = value, position.step
                if not last:
                    self.store.save_best(self.parameters)
        if last or position.step % self.config.checkpoint_every == 0:
            self.store.save(position, self.parameters, optimizer)

    def _out_of_patience(self, position: Position) -> bool:
        """Whether the last `patience` validations found nothing better. Asked at every step, so it counts no rows."""
        every = self.config.validate_every
        since_best = position.step // every - position.best_step // every
        return bool(self.validation) and 0 < self.config.patience <= since_best

    def validate(self) -> tuple[float, float]:
        """KL and cross-entropy, nats a token, each the mean over the validation corpora.

        The forward pass is the training one (gradients on, never used): without them layers would compile once more.
        """
        kls, ces = [], []
        for lesson in self.validation.values():
            kl = ce = 0.0
            sequences = len(lesson.packed.input_ids)
            for start in range(0, sequences, self.strategy.processes):
                rows = range(start, min(start + self.strategy.processes, sequences))
                own = self.strategy.own(rows)
                ids, scored, targets, teacher = lesson.batch(own or rows[:1], self.model.device)
                with self._autocast():
                    student = self.strategy.hidden(self.model, ids)[:, :-1][scored].detach()
                if own:
                    with torch.no_grad():
                        more = self.loss.values(student, teacher, targets)
                    kl, ce = kl + more[0], ce + more[1]
            kl, ce = self.strategy.totals(kl, ce)
            count = int(lesson.packed.scored.sum())
            kls.append(kl / count)
            ces.append(ce / count)
        return sum(kls) / len(kls), sum(ces) / len(ces)

    def _weigh(self, kl: float, ce: float) -> float:
        return (1 - self.config.alpha) * ce + self.config.alpha * self.config.temperature**2 * kl

    def _autocast(self) -> torch.autocast:
        return mixed_precision(self.model.device, self.config.precision)

    def _check(self, row: dict[str, Any], position: Position, smoothed: float, best: float) -> None:
        finite = math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])
        if finite and not (smoothed > best + _DIVERGED):
            return
        what = f"the loss is {row['loss']:.4g}" if finite else "the loss or its gradient is not finite"
        last = position.step // self.config.checkpoint_every * self.config.checkpoint_every
        kept = (
            f"The last good checkpoint, of step {last}, is in {self.store.directory}" if last else "No checkpoint yet"
        )
        raise TrainingError(
            f"Distillation diverged at step {row['step']}: {what} at learning rate {row['learning_rate']:.3g}. "
            f"{kept}; the curve is {self.store.curve}. Lower distill.learning_rate "
            f"(now {self.config.learning_rate:g}) or distill.gradient_clip, or raise distill.warmup."
        )
