"""Earlier runs of the same model, texts and recipe, for what a width is to be expected to have after distillation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows.settings.params import load_tree
from flows.workspaces.commands import git
from flows.workspaces.workspace import experiments
from sparsekd.config import RunConfig
from sparsekd.errors import SparseKDError
from sparsekd.evaluation.expectation import Expectation, Known, expectation
from sparsekd.evaluation.offers import PriceList
from tasks.cache import dvc_objects

VALIDATION = "validation/documents.json"
"""Sums over the validation documents, in an output of stage evaluate."""
_NO_MATTER = {"checkpoint_every", "distributed", "compile", "attention", "activation_checkpointing"}
"""Settings of distill that change how long it takes, not what comes of it."""


def expected(root: Path, config: RunConfig, prices: PriceList) -> Expectation | None:
    """What the runs that the checkout at `root` keeps say of the KL after distillation."""
    return expectation(prices, known_runs(root, config))


def known_runs(root: Path, config: RunConfig) -> list[Known]:
    """The experiments of the checkout at `root` that differ from `config` in how much they kept alone."""
    wanted, found = _recipe(config), []
    for name, revision in experiments(root).items():
        try:
            if _recipe(load_tree(root, revision.tree, name)) != wanted:
                continue
            lock = git(root, "show", f"{revision.tree}:dvc.lock")
            pruned = json.loads(dvc_objects(root, "data/pruned", lock)["manifest.json"].read_text())["facts"]
            validated = dvc_objects(root, "data/evaluation/distilled", lock)[VALIDATION]
        except (SparseKDError, KeyError, OSError):  # of an older format, or not in this cache
            continue
        found.append(Known(name, 1 - pruned["reduction"]["width"], validation_kl(validated)))
    return found


def validation_kl(documents: Path) -> float:
    """KL to dense in nats a token, mean of the corpora, from the sums over documents that stage evaluate wrote."""
    corpora = json.loads(documents.read_text()).values()
    return float(sum(sum(corpus["kl"]) / sum(corpus["tokens"]) for corpus in corpora) / len(corpora))


def _recipe(config: RunConfig) -> dict[str, Any]:
    """What must be equal for two runs to be comparable: all that makes the model, but how much of it is kept."""
    prune = config.prune.model_dump(include={"selection", "compensation", "statistics_tokens", "ridge", "beta"})
    return {
        "model": (config.model.source, config.model.revision),
        "texts": (config.texts.sources, config.texts.revisions),
        "calibrate": config.calibrate.model_dump(),
        "prune": prune,
        "distill": config.distill.model_dump(exclude=_NO_MATTER),
    }
