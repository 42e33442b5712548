"""No word stronger than its interval."""

import pytest

from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import summarise
from sparsekd.report.summary import Interval
from sparsekd.report.verdict import pace
from tests.made_up_run import MadeUpRun


def verdict(tmp_path, **differing):
    return summarise(ReportInputs.read(MadeUpRun(tmp_path, **differing).write())).verdict


@pytest.mark.parametrize(
    ("ratio", "rounds", "said"),
    [
        (Interval(value=1.1, low=1.05, high=1.2), 5, "faster"),
        (Interval(value=0.9, low=0.85, high=0.99), 5, "slower"),
        (Interval(value=1.1, low=1.0, high=1.2), 5, "open"),  # touches 1
        (Interval(value=1.3, low=0.9, high=1.9), 9, "open"),
        (Interval(value=1.3, low=1.2, high=1.4), 4, "open"),  # too few rounds
        (Interval(value=1.3), 5, "open"),
        (None, 5, "unmeasured"),
    ],
)
def test_pace(ratio, rounds, said):
    assert pace(ratio, rounds) == said


def test_clear_ranges_are_called_faster(tmp_path):
    said = verdict(tmp_path, noise=0.01)
    assert "14.8 % fewer parameters, faster in prefill and decode" in said
    assert "prefill is faster (1.17×, range 1.1" in said


def test_faster_in_one_phase_only(tmp_path):
    said = verdict(tmp_path, noise=0.01, decode=1.0)
    assert "faster in prefill, " in said
    assert "decode is not shown to be faster" in said


def test_slower_is_called_slower(tmp_path):
    said = verdict(tmp_path, noise=0.01, decode=0.9)
    assert "faster in prefill but slower in decode" in said
    assert "decode is slower (0.9" in said


def test_noise_is_no_speed_gain(tmp_path):
    said = verdict(tmp_path, noise=0.5)
    assert "no speed gain shown" in said
    assert "faster in" not in said


def test_one_round_is_no_claim(tmp_path):
    said = verdict(tmp_path, rounds=1, prefill=2.0)
    assert "In 1 round, too few for a claim" in said
    assert "faster" not in said


def test_unmeasured_speed_and_tasks_are_said(tmp_path):
    said = verdict(tmp_path, rounds=0, tasks={})
    assert "Speed was not measured." in said
    assert "No tasks were scored." in said
    assert "faster" not in said
    assert "perplexity" in said.split(".")[0] + said.split(".")[1]  # the headline falls back on it


def test_loss_in_tasks_is_called_a_loss_only_beyond_the_noise(tmp_path):
    clear = verdict(tmp_path / "many")
    assert "points below the dense model" in clear
    assert "within" not in clear
    few = verdict(tmp_path / "few", tasks={"arc_easy": (40, 570, 0.25, "acc", 0.6)})
    assert "mean task score within noise of the dense model" in few
    assert "within the noise of these rows" in few


def test_perplexity_before_distillation_stands_beside(tmp_path):
    assert "1.19× on wiki (1.51× before distillation)" in verdict(tmp_path)
