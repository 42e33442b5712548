"""The resumable state of a distillation: weights, optimiser, position, random generator, and its conditions.

Written as safetensors and JSON (no pickle), a new step beside the old one, which goes only when the new one is whole.
Of several processes each writes what it alone has; a step counts where every one of them has its part. Machines may
share the folder or have one each.
"""

from __future__ import annotations

import contextlib
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

from sparsekd.distillation.strategy import Alone, like, local

_STATE = "state.json"


@dataclass
class Position:
    """Where a run stands after `step` optimiser steps, and what it has seen."""

    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best_value: float = float("inf")


class CheckpointStore:
    """One directory that holds the last checkpoint and the best weights of one run."""

    def __init__(self, directory: Path, conditions: Mapping[str, Any], strategy: Alone | None = None) -> None:
        """`conditions` is all that the bits depend on beside the configuration: threads, device, dtype, compiled."""
        self.directory = directory
        self.strategy = strategy or Alone()
        self._best = directory / f"best{self.strategy.shard}.safetensors"
        self._tensors = f"tensors{self.strategy.shard}.safetensors"
        self.curve = directory / "curve.csv"
        self.conditions = json.loads(json.dumps(conditions))

    def save(
        self, position: Position, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write a checkpoint after `position.step`; the one before it is deleted last."""
        target = self.directory / f"step-{position.step:08d}"
        partial = target.with_suffix(".partial")
        if self.strategy.leads:
            shutil.rmtree(partial, ignore_errors=True)
        self.strategy.wait()
        if self.strategy.writes:
            partial.mkdir(parents=True, exist_ok=True)
            save_file(self._state_of(parameters, optimizer), partial / self._tensors)
        if self.strategy.leads:
            state = {"conditions": self.conditions, "position": asdict(position)}
            (partial / _STATE).write_text(json.dumps(state))
        self.strategy.wait()
        if self.strategy.leads:
            with contextlib.suppress(FileNotFoundError):  # another machine with the same folder was first
                os.replace(partial, target)
        self.strategy.wait()
        if self.strategy.leads:
            for old in self.directory.glob("step-*"):
                if old != target:
                    shutil.rmtree(old, ignore_errors=True)

    def _state_of(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        tensors = {f"weight.{name}": p.detach() for name, p in parameters.items()}
        for name, p in parameters.items():
            for key, value in optimizer.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value
        tensors["rng"] = torch.get_rng_state()
        return {name: local(tensor).contiguous() for name, tensor in tensors.items()}

    def load(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[Position | None, str | None]:
        """Restore the last whole checkpoint into parameters and optimiser.

        Returns the position and None, or None and, where there is a checkpoint that does not fit, the reason.
        """
        found = {
            int(path.name.partition("-")[2]): path
            for path in self.directory.glob("step-*")
            if (path / self._tensors).is_file() and path.suffix != ".partial"
        }
        step = self.strategy.newest(list(found))
        if step is None:
            return None, None
        state = json.loads((found[step] / _STATE).read_text())
        before = state["conditions"]
        changed = [key for key in self.conditions | before if before.get(key) != self.conditions.get(key)]
        if sum(self.strategy.totals(len(changed))):
            self.strategy.wait()
            if self.strategy.leads:
                shutil.rmtree(self.directory, ignore_errors=True)
            self.strategy.wait()
            what = ", ".join(changed) or "machine"
            return None, f"the checkpoint was made under another {what}; distillation starts again"
        tensors = load_file(found[step] / self._tensors)
        with torch.no_grad():
            for name, p in parameters.items():
                local(p).copy_(tensors[f"weight.{name}"])
                saved = {k.split(".", 1)[0]: v for k, v in tensors.items() if k.split(".", 1)[-1] == name}
                saved.pop("weight")
                # AdamW's fused form has its `step`, which is shared out to nobody, beside the parameter
                optimizer.state[p] = {
                    k: v.to(p.device) if k == "step" else like(p, v.to(p.device)) for k, v in saved.items()
                }
        torch.set_rng_state(tensors["rng"])
        return Position(**state["position"]), None

    def save_best(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Keep these weights as the best so far."""
        if not self.strategy.writes:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self._best.with_suffix(".partial")
        save_file({name: local(p.detach()).contiguous() for name, p in parameters.items()}, partial)
        os.replace(partial, self._best)

    def load_best(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Put the best weights into the parameters."""
        self.strategy.wait()  # for whoever writes what this process reads
        tensors: dict[str, Tensor] = load_file(self._best)
        with torch.no_grad():
            for name, p in parameters.items():
                local(p).copy_(tensors[name])
