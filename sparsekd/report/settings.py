"""The settings that the artifacts were made with, as text for page and card, from the artifacts' own manifests."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError
from sparsekd.settings import flat, parse_config

Settings = dict[str, dict[str, str]]


def resolved(raw: dict[str, dict[str, Any]]) -> RunConfig | None:
    """The whole configuration with defaults filled in; None when a setting is from another version of sparsekd."""
    try:
        return parse_config({section: values for section, values in raw.items() if values})
    except ConfigError:
        return None


def as_text(raw: dict[str, dict[str, Any]], config: RunConfig | None) -> Settings:
    """`{section: {key: text}}` of the sections that were recorded, with defaults where they are known."""
    values = config.model_dump(mode="json") if config else raw
    return {
        section: {key: _text(value) for key, value in flat(values[section]).items() if value is not None}
        for section in raw
        if isinstance(values.get(section), dict) and values[section]
    }


_SELECTED = {
    "svd": "SVD subset selection of neurons",
    "mean_abs_svd": "SVD subset selection of neurons, led by their mean absolute activation",
    "energy": "neurons selected by energy",
    "mean_abs": "neurons selected by mean absolute activation",
    "magnitude": "neurons selected by magnitude of their weights",
    "random": "neurons selected at random",
}


def pruning(config: RunConfig | None) -> str:
    """How was pruned, in a few words; where the settings are of another version, what is true of all of them."""
    if config is None:
        return "neurons of the feed-forward layers selected and removed"
    ridge = config.prune.ridge
    refitted = {
        "none": "without compensation",
        "one_shot": f"one-shot ridge compensation (ridge {ridge})",
        "sequential": f"sequential ridge compensation (ridge {ridge}, β {config.prune.beta})",
    }
    return f"{_SELECTED[config.prune.selection]}, {refitted[config.prune.compensation]}"


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    text = str(value)
    return f"…/{PurePath(text).name}" if text.startswith("/") else text
