"""What training hands over to whoever writes the checkpoint: in memory, or from one process to another as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

_WEIGHTS, _REST = "trained.safetensors", "trained.json"


@dataclass(frozen=True)
class Trained:
    """The trained parameters by name, on the CPU, the loss curve with a row a step, and facts for the manifest."""

    weights: dict[str, Tensor]
    curve: list[dict[str, Any]]
    facts: dict[str, Any]

    def save(self, directory: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in self.weights.items()}, directory / _WEIGHTS)
        (directory / _REST).write_text(json.dumps({"curve": self.curve, "facts": self.facts}))

    @classmethod
    def load(cls, directory: Path) -> Trained:
        """Read what `save` wrote."""
        return cls(load_file(directory / _WEIGHTS), **json.loads((directory / _REST).read_text()))
