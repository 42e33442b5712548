"""Dense and compressed files in llama.cpp beside each other: which are on the frontier, and what the table says."""

from sparsekd.report.details import detail_tables
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import summarise
from sparsekd.report.summary import Interval, Quantised
from tests.made_up_run import MadeUpRun


def file(size, *kl):
    found = {f"corpus {n}": Interval(value=value) for n, value in enumerate(kl)}
    return Quantised(model="dense", type="q8_0", bytes=size, kl=found, perplexity=found)


def test_a_file_is_beaten_by_one_that_is_at_most_as_large_and_as_near():
    assert file(90, 0.2).beats(file(100, 0.3))
    assert file(100, 0.2).beats(file(100, 0.3))
    assert file(90, 0.3).beats(file(100, 0.3))
    assert not file(90, 0.4).beats(file(100, 0.3))  # smaller, further away
    assert not file(100, 0.3).beats(file(100, 0.3))


def test_nearness_is_the_mean_over_the_corpora():
    assert file(90, 0.1, 0.5).beats(file(100, 0.4, 0.4))
    assert not file(90, 0.1, 0.8).beats(file(100, 0.4, 0.4))


def test_the_table_says_which_are_on_the_frontier(tmp_path):
    summary = summarise(ReportInputs.read(MadeUpRun(tmp_path).write()))
    table = detail_tables(summary)["quantised"]
    said = {row[0]: row[-1] for row in table.rows}
    assert set(said.values()) == {"yes", "no"}
    for found in summary.quantised:
        beaten = any(other.bytes <= found.bytes and other.mean_kl < found.mean_kl for other in summary.quantised)
        assert said[f"{found.model}, {found.type.upper()}"] == ("no" if beaten else "yes")
