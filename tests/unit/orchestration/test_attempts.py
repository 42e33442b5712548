"""How often a run may start, and what its log says of the attempt before."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.flow_runs.attempts import attempts_allowed, going_on
from sparsekd.errors import ConfigError, StageError


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEKD_ATTEMPTS", raising=False)
    monkeypatch.delenv("SPARSEKD_CHECKPOINTS", raising=False)


def test_the_first_attempt_says_nothing(tmp_path: Path) -> None:
    assert going_on(1, tmp_path) is None


def test_a_later_one_says_where_it_goes_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = going_on(2, tmp_path)
    assert text is not None
    assert text.startswith("Attempt 2 of 3: the one before was lost.")
    assert "starts from its beginning" in text
    shared = tmp_path / "shared"
    (shared / "distill" / "key" / "step-00000040").mkdir(parents=True)
    monkeypatch.setenv("SPARSEKD_CHECKPOINTS", str(shared))
    text = going_on(3, tmp_path)
    assert text is not None
    assert text.endswith(f"an interrupted stage goes on from its checkpoint in {shared}.")


def test_there_is_an_end_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match=r"has crashed 3 times, which is as often as SPARSEKD_ATTEMPTS allows"):
        going_on(4, tmp_path)
    monkeypatch.setenv("SPARSEKD_ATTEMPTS", "1")
    with pytest.raises(StageError, match="has crashed 1 times"):
        going_on(2, tmp_path)


@pytest.mark.parametrize("text", ["0", "-1", "many", "²", ""])
def test_a_bad_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SPARSEKD_ATTEMPTS", text)
    with pytest.raises(ConfigError, match="must be a number of starts from 1 up"):
        attempts_allowed()
