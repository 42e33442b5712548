"""What Prefect's forms offer."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows.evaluate import evaluate
from flows.preview import preview
from flows.refresh import refresh
from flows.settings.params import PRESETS
from flows.sweep import sweep


@pytest.mark.parametrize("flow", [evaluate, preview, refresh, sweep], ids=lambda flow: flow.name)
def test_every_preset_is_offered(flow: Flow[..., Any]) -> None:
    field = parameter_schema(flow.fn).properties["preset"]
    offered = field.get("enum") or field["anyOf"][0]["enum"]
    assert offered == list(PRESETS)
