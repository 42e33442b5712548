"""The resumable state of a distillation: weights, optimiser, position, random generator, and its conditions.

Written as safetensors and JSON (no pickle), a new step beside the old one, which goes only when the new one is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsekd.artifacts import forget_work

_STATE = "state.json"


@dataclass
class Position:
    """Where a run stands after `step` optimiser steps, and what it has seen."""

    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = float("inf")


class CheckpointStore:
    """One directory that holds the last checkpoint and the best weights of one run."""

    def __init__(self, directory: Path, conditions: Mapping[str, Any]) -> None:
        """`conditions` is all that the bits depend on beside the configuration: threads, device, dtype, compiled."""
        self.directory = directory
        self.curve = directory / "curve.csv"
        self.conditions = json.loads(json.dumps(conditions))

    def save(
        self, position: Position, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write a checkpoint after `position.step`; the one before it is deleted last."""
        self.directory.mkdir(parents=True, exist_ok=True)
        target = self.directory / f"step-{position.step:08d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        tensors = {f"weight.{name}": p.detach() for name, p in parameters.items()}
        for name, p in parameters.items():
            for key, value in optimizer.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value
        tensors["rng"] = torch.get_rng_state()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / "tensors.safetensors")
        state = {"conditions": self.conditions, "position": asdict(position)}
        (partial / _STATE).write_text(json.dumps(state))
        os.replace(partial, target)
        for old in self.directory.glob("step-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

    def load(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[Position | None, str | None]:
        """Restore the last whole checkpoint into parameters and optimiser.

        Returns the position and None, or None and, where there is a checkpoint that does not fit, the reason.
        """
        found = sorted(path for path in self.directory.glob("step-*") if path.suffix != ".partial")
        if not found:
            return None, None
        state = json.loads((found[-1] / _STATE).read_text())
        if state["conditions"] != self.conditions:
            changed = [key for key, value in self.conditions.items() if state["conditions"].get(key) != value]
            shutil.rmtree(self.directory)
            return None, f"the checkpoint was made under another {', '.join(changed)}; distillation starts again"
        tensors = load_file(found[-1] / "tensors.safetensors")
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(tensors[f"weight.{name}"])
                saved = {k.split(".", 1)[0]: v for k, v in tensors.items() if k.split(".", 1)[-1] == name}
                saved.pop("weight")
                # AdamW keeps `step` on the CPU for its fused form too
                optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in saved.items()}
        torch.set_rng_state(tensors["rng"])
        return Position(**state["position"]), None

    def save_best(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Keep these weights as the best so far."""
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.directory / "best.partial"
        save_file({name: p.detach().contiguous() for name, p in parameters.items()}, partial)
        os.replace(partial, self.directory / "best.safetensors")

    def load_best(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Put the best weights into the parameters."""
        tensors: dict[str, Tensor] = load_file(self.directory / "best.safetensors")
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(tensors[name])

    def delete(self) -> None:
        """Forget the run, whose output is whole, and those beside it that nobody has gone on with for a week."""
        forget_work(self.directory)
