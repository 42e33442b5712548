"""Values from a form over params.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.settings.params import load_preset, with_preset
from flows.settings.settle import merge, nearest_preset
from sparsekd.config import Prune, RunConfig
from sparsekd.errors import ConfigError
from sparsekd.settings import parse_config

ROOT = Path(__file__).parents[3]


def configured(**sections: dict[str, object]) -> RunConfig:
    return parse_config(sections)


def test_what_is_not_given_stays() -> None:
    current = configured(prune={"width": 0.5, "beta": 0.25}, distill={"alpha": 1.0})
    merged = merge(current, {"prune": {"width": 0.75}})
    assert merged == configured(prune={"width": 0.75, "beta": 0.25}, distill={"alpha": 1.0})


def test_a_budget_from_a_form_replaces_the_one_that_held() -> None:
    reduced = merge(configured(), {"prune": Prune(total_reduction=0.2).model_dump(exclude_unset=True)})
    assert reduced.prune == Prune(total_reduction=0.2)
    again = merge(reduced, {"prune": Prune(width=0.5).model_dump(exclude_unset=True)})
    assert again.prune.budget == ("width", 0.5)


def test_values_are_checked_together() -> None:
    with pytest.raises(ConfigError, match=r"distill\.tokens is 200000; it must not exceed calibrate\.tokens"):
        merge(configured(), {"distill": {"tokens": 200_000}})


def test_another_source_is_resolved_anew() -> None:
    current = configured(
        model={"source": "a/b", "revision": "1" * 40},
        texts={"sources": ["wiki", "c4"], "revisions": ["2" * 64, "3" * 64]},
    )
    form = {
        "model": {"source": "c/d", "revision": "1" * 40},
        "texts": {"sources": ["wiki"], "revisions": ["2" * 64, "3" * 64]},
    }
    merged = merge(current, form)
    assert merged.model.revision is None
    assert merged.texts.revisions is None
    pinned = merge(current, {"model": {"source": "c/d", "revision": "4" * 40}})
    assert pinned.model.revision == "4" * 40, "given with its source"
    assert merge(current, {"model": {"source": "a/b"}}).model.revision == "1" * 40


def test_the_preset_is_the_nearest() -> None:
    smoke = with_preset(configured(), "smoke", ROOT)
    mislabelled = smoke.model_copy(update={"preset": "default"})
    assert nearest_preset(mislabelled, ROOT) == "smoke"
    assert nearest_preset(merge(mislabelled, {"prune": {"width": 0.3}}), ROOT) == "smoke"
    assert nearest_preset(load_preset("default", ROOT), ROOT) == "default"
    kept = merge(load_preset("quality", ROOT), {"model": {"source": "a/b"}, "runtime": {"device": "cpu"}})
    assert nearest_preset(kept, ROOT) == "quality", "what is compressed, and where, is no preset's matter"
