"""What several jobs need: a run's tasks, and calibration data and pruned checkpoints, made once in build/benchmarks."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sparsekd.config import Calibrate, Runtime, Teacher
from sparsekd.errors import ConfigError
from sparsekd.runtime import resolve_device

KEPT = Path("build/benchmarks")


def kept(identity: Any, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, made where there is none for this identity yet."""
    found = KEPT / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    if not found.is_dir():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as folder:
            out = Path(folder) / "out"
            out.mkdir()
            make(out)
            os.replace(out, found)
    return found


def calibrated(config: Calibrate, data: Path) -> Path:
    """A run's folder `data` itself where it was calibrated by `config`, or else one like it, made from its texts."""
    import torch

    from sparsekd.calibration.build import build_calibration
    from sparsekd.calibration.corpora import read_corpora
    from sparsekd.distillation.teacher import write_teacher_cache
    from sparsekd.models import load_model, load_tokenizer

    raw = (data / "raw").resolve()
    if Calibrate(**_manifest(data / "calibration")["config"]["calibrate"]) == config:
        return data
    load, device = partial(load_model, raw / "model"), resolve_device(Runtime())

    def make(out: Path) -> None:
        corpora = read_corpora(raw / "texts", _manifest(raw / "texts")["facts"])
        made = build_calibration(corpora, load_tokenizer(raw / "model"), config, load, device).data
        for name in ("calibration", "teacher"):
            (out / name).mkdir()
        made.save(out / "calibration")
        write_teacher_cache(load(torch.float32, device), made, out / "teacher", Teacher())
        (out / "raw").symlink_to(raw)

    return kept([config.model_dump(), str(raw)], make)


def task_names(data: Path) -> tuple[str, ...]:
    """The packaged tasks in a run's folder. Raises ConfigError where there are none, before anything is scored."""
    folder = data / "raw/benchmarks"
    names = tuple(sorted(file.stem for file in folder.glob("*.arrow")))
    if not names:
        raise ConfigError(f"{folder} holds no tasks (*.arrow); give --data of a run of `make compress`.")
    return names


def _manifest(directory: Path) -> Any:
    return json.loads((directory / "manifest.json").read_text())
