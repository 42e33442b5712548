"""`--target`: what can be asked for, and how the end of a run tells whether it is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.prices import targeting
from flows.prices.expected import VALIDATION
from flows.prices.targeting import Target, TargetMissedError
from sparsekd.config import BUDGETS, RunConfig
from sparsekd.errors import ConfigError


def test_a_kl_and_every_budget_can_be_asked_for() -> None:
    assert targeting.parse(" kl <= 1e-1 ") == Target("kl", 0.1)
    for budget in BUDGETS:
        target = targeting.parse(f"{budget}=0.25")
        assert str(target) == f"{budget}=0.25"
        assert targeting.settings(Path(), RunConfig(), target) == ([f"prune.{budget}=0.25"], None)
    millions = targeting.parse("parameters=1.23456789e8")
    assert str(millions) == "parameters=123456789"
    assert targeting.settings(Path(), RunConfig(), millions) == (["prune.parameters=123456789"], None)


@pytest.mark.parametrize("text", ["", "kl", "kl=0.1", "kl<=0", "kl<=x", "width<=0.5", "ppl<=20", "kl<=-1", "kl<=e"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--target is .* write kl<=X"):
        targeting.parse(text)


def test_a_budget_beside_a_target_is_refused() -> None:
    targeting.check_alone(["distill.alpha=0.5"])
    with pytest.raises(ConfigError, match=r"prune\.width is given beside --target"):
        targeting.check_alone(["distill.alpha=0.5", "prune.width = 0.5"])


def test_the_result_is_held_against_the_mean_of_the_corpora(tmp_path: Path) -> None:
    documents = tmp_path / "data" / "evaluation" / "distilled" / VALIDATION
    documents.parent.mkdir(parents=True)
    sums = {"wiki": {"kl": [1.0, 3.0], "tokens": [10, 30]}, "code": {"kl": [6.0], "tokens": [20]}}  # 0.1 and 0.3
    documents.write_text(json.dumps(sums))
    assert "target kl<=0.2001 met: 0.2000" in targeting.verify(tmp_path, Target("kl", 0.2001))
    with pytest.raises(TargetMissedError, match=r"KL of 0\.2000 .* the target was kl<=0\.1999") as missed:
        targeting.verify(tmp_path, Target("kl", 0.1999))
    assert missed.value.exit_code == 1
