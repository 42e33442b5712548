"""`sparsekd config`: the resolved configuration as text."""

from __future__ import annotations

import io
import json
from typing import Any

from ruamel.yaml import YAML

from flows import params
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
    values: dict[str, Any] = config.model_dump(mode="json")
    if as_json:
        return json.dumps(values, indent=2, ensure_ascii=False)
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(values, stream)
    return stream.getvalue().rstrip()


def _of_project() -> RunConfig:
    try:
        root = params.find_root()
    except ConfigError:
        return RunConfig()
    return params.load(root)
