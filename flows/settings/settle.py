"""Values that a form or `prefect deployment run` gives, checked and merged into params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.checks import preflight
from flows.checks.estimate import estimate
from flows.checks.staleness import staleness
from flows.settings import params, versions
from flows.settings.params import KEPT_SECTIONS, PRESETS, Change
from sparsekd.config import RunConfig
from sparsekd.settings import parse_config


def settle(given: dict[str, dict[str, Any]], root: Path, home: Path | None = None) -> list[Change]:
    """Write `given` ({section: {key: value}}; what it lacks stays as it stands) to params.yaml; what that changed.

    The same checks as for `sparsekd compress` come first; they raise SparseKDError and params.yaml stays as it was.
    Nothing given in the checkout: the command line has checked already, params.yaml is used as it stands. `home` is
    the checkout that `root` is a workspace of.
    """
    current = params.load(root)
    if not given and home is None:
        return []
    preflight.check_repository(root)
    asked = merge(current, given)
    if home:
        versions.bring(root, home, asked)
        asked = params.seen_from(root, asked, home)
    wanted, _ = preflight.resolve_sources(asked, root)
    wanted = wanted.model_copy(update={"preset": nearest_preset(wanted, root)})
    changes = params.differences(current, wanted)
    found = staleness(root, params.edited_values(root, changes))
    if found.stages:
        model = preflight.dense_config(root, wanted)
        preflight.check_settings(root, wanted, model)
        needed = estimate(root, wanted, model, list(found.stages), measure=False)
        preflight.check_resources(root, wanted, needed)
    params.write(root, changes)
    return changes


def merge(current: RunConfig, given: dict[str, dict[str, Any]]) -> RunConfig:
    """`current` with the values in `given`; another model or other texts are resolved anew. Raises ConfigError."""
    values = current.model_dump()
    for section, changed in given.items():
        values[section] = _overlaid(values[section], changed)
    if values["model"]["source"] != current.model.source and values["model"]["revision"] == current.model.revision:
        values["model"]["revision"] = None
    if tuple(values["texts"]["sources"]) != current.texts.sources and (
        values["texts"]["revisions"] is None or tuple(values["texts"]["revisions"]) == current.texts.revisions
    ):
        values["texts"]["revisions"] = None
    return parse_config(values, "the form")


def _overlaid(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`values` with those in `given` over them, at every depth."""
    return values | {
        key: _overlaid(values[key], value) if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        for key, value in given.items()
    }


def nearest_preset(config: RunConfig, root: Path) -> str:
    """The preset that `config` differs least from; its present one where that is as near as any."""

    def distance(name: str) -> tuple[int, bool]:
        changes = params.differences(params.load_preset(name, root), config)
        counted = [c for c in changes if c.key != "preset" and c.key.partition(".")[0] not in KEPT_SECTIONS]
        return len(counted), name != config.preset

    return min(PRESETS, key=distance)
