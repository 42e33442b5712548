"""Prune a checkpoint on disk: read a layer, prune it, write it, then the next; at the end they become a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsekd.artifacts import library_versions, require_disk
from sparsekd.calibration.packing import Packed
from sparsekd.config import Prune
from sparsekd.feed_forward import set_width
from sparsekd.models import count_parameters, declared_dtype, read_config, reduction, save_checkpoint
from sparsekd.progress import Progress, silent
from sparsekd.pruning.budget import resolve_budget
from sparsekd.pruning.state import WalkStore
from sparsekd.pruning.streamed import StreamedLayers
from sparsekd.pruning.walk import prune_layers, write_layers
from sparsekd.runtime import conditions


def prune_checkpoint(
    dense: Path,
    out: Path,
    calibration: Packed,
    config: Prune,
    device: torch.device,
    work: Path,
    identity: str = "",
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the pruned stock checkpoint and layers.csv into the directory `out`; return what the manifest records.

    Statistics come from the first `config.statistics_tokens` calibration tokens. One layer at a time is in memory. Goes
    on where a killed process was: in the folder of `work` that belongs to this configuration, these tokens and
    `identity`, which stands for the model (a hash of it).
    """
    width = resolve_budget(config, read_config(dense))
    input_ids = calibration.head(config.statistics_tokens).input_ids
    text = json.dumps(
        [config.model_dump(mode="json"), identity, hashlib.sha256(input_ids.numpy().tobytes()).hexdigest()]
    )
    store = WalkStore(
        work / hashlib.sha256(text.encode()).hexdigest()[:16], conditions(device) | {"libraries": library_versions()}
    )
    layers = StreamedLayers(dense, store.directory, device)
    before, old_width = count_parameters(layers.model), layers.blocks[0].width
    streams = 2 * 4 * input_ids.numel() * layers.model.config.hidden_size
    # the pruned layers stand there until the checkpoint is made of them, and two positions for a moment
    needed = before["total"] * declared_dtype(dense).itemsize + 2 * streams
    require_disk(store.directory, needed, f"pruning layer by layer needs {needed / 1e9:.1f} GB there")
    start, reason = store.load()
    if reason:
        say(f"warning: {reason}")
    if start is not None:
        say(f"resuming after layer {len(start.reports)} of {len(layers.blocks)}")
    store.directory.mkdir(exist_ok=True)
    reports = prune_layers(layers, input_ids, width, config, progress, start, store.reached)
    set_width(layers.model, width)
    after = count_parameters(layers.model)
    save_checkpoint(layers.model, dense, out)
    write_layers(reports, out / "layers.csv")
    store.delete()
    return {
        "intermediate_size": {"dense": old_width, "pruned": width},
        "parameters": after,
        "reduction": reduction(before, after, width / old_width),
    }
