"""What changed between two results: intervals decide, and what only one of them has is left out."""

import pytest

from sparsekd.report.changes import Change, changes, markdown
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import summarise
from sparsekd.report.summary import Interval
from tests.made_up_run import EXCESS, MadeUpRun


def of(root, **differing):
    return summarise(ReportInputs.read(MadeUpRun(root, **differing).write()))


def test_the_same_result_has_not_changed(tmp_path):
    one = of(tmp_path)
    found = changes(one, one)
    assert {change.row()[3] for change in found} == {"the same"}
    assert [change.figure for change in found][:2] == ["parameters", "perplexity wiki"]


def test_a_worse_result_is_told_by_its_intervals(tmp_path):
    before, after = of(tmp_path / "a"), of(tmp_path / "b", excess=EXCESS | {"distilled": 0.9}, prefill=1.6)
    found = {change.figure: change for change in changes(before, after)}
    kl = found["KL wiki"]
    assert kl.before == before.variants.distilled.agreement["wiki"].kl
    assert kl.after == after.variants.distilled.agreement["wiki"].kl
    assert kl.differs
    assert found["prefill speed against dense (range of rounds)"].row()[3] == "changed"
    assert found["decode speed against dense (range of rounds)"].row()[3] == "the same"
    assert found["arc_easy (acc)"].row()[3] == "the same"


@pytest.mark.parametrize(
    ("ends", "says"),
    [((1.0, 2.0, 1.9, 3.0), "within the noise"), ((1.0, 2.0, 2.1, 3.0), "changed"), ((1.0, 2.0, 0.1, 0.9), "changed")],
)
def test_intervals_that_overlap_show_no_change(ends, says):
    before, after = (Interval(value=(low + high) / 2, low=low, high=high) for low, high in (ends[:2], ends[2:]))
    assert Change("x", before, after, str).row()[3] == says


def test_without_an_interval_nothing_is_claimed():
    assert Change("x", Interval(value=1.0), Interval(value=2.0, low=1.5, high=2.5), str).row()[3] == "no interval"


def test_corpora_and_tasks_of_one_alone_are_left_out_and_the_table_is_markdown(tmp_path):
    before, after = of(tmp_path / "a"), of(tmp_path / "b", corpora=("wiki", "code"), tasks={})
    found = changes(before, after)
    assert not [change for change in found if "c4" in change.figure or "piqa" in change.figure]
    lines = markdown(found, "old", "new").splitlines()
    assert lines[0] == "|  | old | new |  |"
    assert len(lines) == len(found) + 2
