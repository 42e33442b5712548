"""Where a result comes from and how to get it again: hashes, commit, command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from sparsekd.config import BUDGETS, RunConfig
from sparsekd.report import formatting as f
from sparsekd.report.context import Context
from sparsekd.report.details import Table
from sparsekd.settings import flat

_RESOLVED = {"preset", "model.revision", "texts.revisions"}
"""What a run fills in by itself."""


def repeat(raw: Mapping[str, Mapping[str, Any]], config: RunConfig | None, context: Context) -> list[str]:
    """The commands that make the same result in a clone of the project; none where the settings are not known.

    `raw` are the settings that were recorded. A path is cut to its last part: where it lay is nobody else's business.
    """
    if config is None:
        return []
    ours, defaults = flat(config.model_dump(mode="json")), flat(RunConfig().model_dump(mode="json"))
    unset = {f"prune.{key}" for key in BUDGETS if ours[f"prune.{key}"] is None}
    changed = {
        key: value
        for key, value in ours.items()
        if value != defaults[key] and key not in _RESOLVED | unset and key.partition(".")[0] in raw
    }
    words = ["sparsekd", "compress", "--preset", "default"]
    if source := changed.pop("model.source", None):
        words += ["--model", _source(source)]
    if config.model.revision and "/" in config.model.source.removeprefix("hf:") and not _is_path(config.model.source):
        words += ["--revision", config.model.revision]
    for source in changed.pop("texts.sources", ()):
        words += ["--texts", _source(source)]
    for key, value in changed.items():
        words += ["-S", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    checkout = [f"git checkout {context.commit}"] if context.commit else []
    return [*checkout, " ".join(shlex.quote(word) for word in words)]


def _source(source: str) -> str:
    return f"file:…/{source.rpartition('/')[2]}" if _is_path(source) else source


def _is_path(source: str) -> bool:
    return source.startswith(("file:", "/", "."))


def cost_table(context: Context) -> Table | None:
    """Wall time by stage and in total; None where no stage's is known."""
    if not any(context.seconds.values()):
        return None
    rows = [(stage, _duration(seconds)) for stage, seconds in context.seconds.items()]
    rows.append(("together", _duration(sum(seconds or 0.0 for seconds in context.seconds.values()))))
    return Table("Time of each stage; some run side by side", ("Stage", "Time"), tuple(rows))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "kept from before"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f.number_of(whole, "second")
