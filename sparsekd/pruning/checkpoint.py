"""Prune a checkpoint on disk: load, walk, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sparsekd.calibration.packing import Packed
from sparsekd.config import Prune
from sparsekd.feed_forward import feed_forwards
from sparsekd.models import count_parameters, load_model, read_config, reduction, save_checkpoint
from sparsekd.progress import Progress, silent
from sparsekd.pruning.budget import resolve_budget
from sparsekd.pruning.walk import prune_model, write_layers


def prune_checkpoint(
    dense: Path, out: Path, calibration: Packed, config: Prune, device: torch.device, progress: Progress = silent
) -> dict[str, Any]:
    """Write the pruned stock checkpoint and layers.csv into the directory `out`; return what the manifest records.

    Statistics come from the first `config.statistics_tokens` calibration tokens.
    """
    width = resolve_budget(config, read_config(dense))
    model = load_model(dense, torch.float32, device)
    before = count_parameters(model)
    old_width = feed_forwards(model)[0].width
    reports = prune_model(model, calibration.head(config.statistics_tokens).input_ids, width, config, progress)
    after = count_parameters(model)
    save_checkpoint(model, dense, out)
    write_layers(reports, out / "layers.csv")
    return {
        "intermediate_size": {"dense": old_width, "pruned": width},
        "parameters": after,
        "reduction": reduction(before, after, width / old_width),
    }
