"""The resumable state of a walk: its position and the conditions under which its bits are the same.

Written as safetensors and JSON (no pickle), a new position beside the old one, which goes when the new one is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sparsekd.artifacts import forget_work
from sparsekd.pruning.walk import LayerReport, Position

_STATE, _STREAMS = "state.json", "streams.safetensors"
SECONDS = 30.0
"""Of work between two positions that are kept: the streams of many tokens take as long to write as a small layer."""


class WalkStore:
    """One directory that holds the last position of one walk, and beside it what the layers behind it have become."""

    def __init__(self, directory: Path, conditions: Mapping[str, Any]) -> None:
        """`conditions` is all that the bits depend on beside configuration and inputs: threads, device, versions."""
        self.directory = directory
        self._conditions = json.loads(json.dumps(conditions))
        self._kept = time.monotonic()

    def reached(self, position: Position) -> None:
        """Keep this position if it is time."""
        if time.monotonic() - self._kept >= SECONDS:
            self.save(position)
            self._kept = time.monotonic()

    def save(self, position: Position) -> None:
        """Write this position; the one before it is deleted last."""
        target = self.directory / f"step-{len(position.reports):08d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({"dense": position.dense, "pruned": position.pruned}, partial / _STREAMS)
        state = {"conditions": self._conditions, "reports": [asdict(report) for report in position.reports]}
        (partial / _STATE).write_text(json.dumps(state))
        os.replace(partial, target)
        for old in self.directory.glob("step-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

    def load(self) -> tuple[Position | None, str | None]:
        """The last whole position and None, or None and, where there is one that does not fit, the reason."""
        found = sorted(path for path in self.directory.glob("step-*") if path.suffix != ".partial")
        if not found:
            return None, None
        try:
            state = json.loads((found[-1] / _STATE).read_text())
            streams = load_file(found[-1] / _STREAMS)
            reports = [LayerReport(**report) for report in state["reports"]]
            changed = [key for key, value in self._conditions.items() if state["conditions"].get(key) != value]
            position = Position(streams["dense"].clone(), streams["pruned"].clone(), reports)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            shutil.rmtree(self.directory)
            return None, f"{found[-1]} cannot be read; pruning starts again"
        if changed:
            shutil.rmtree(self.directory)
            return None, f"the unfinished pruning was done under another {', '.join(changed)}; it starts again"
        return position, None

    def delete(self) -> None:
        """Forget the walk, whose output is whole."""
        forget_work(self.directory)
