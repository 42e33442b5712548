"""`sparsekd config`: the resolved configuration as text."""

from __future__ import annotations

import json

from flows.settings import params, params_text
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError


def text(preset: str | None, *, as_json: bool = False, schema: bool = False, diff: bool = False) -> str:
    """What the command prints. Raises ConfigError for an unknown preset or an invalid params.yaml."""
    if schema:
        return json.dumps(RunConfig.model_json_schema(), indent=2, ensure_ascii=False)
    config = params.load_preset(preset) if preset else _of_project()
    if diff:
        changes = params.changes_from_preset(config)
        if as_json:
            return json.dumps(
                {c.key: {"preset": c.before, "here": c.after} for c in changes}, indent=2, ensure_ascii=False
            )
        return "\n".join(map(str, changes)) or f"Nothing differs from preset {config.preset}."
    if as_json:
        return json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return params_text.full_text(config.model_dump(mode="json")).rstrip()


def _of_project() -> RunConfig:
    try:
        root = params.find_root()
    except ConfigError:
        return RunConfig()
    return params.load(root)
