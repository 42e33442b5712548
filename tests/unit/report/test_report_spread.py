"""Confidence, divergence and passages on the page, against slow versions and evaluate's own bins."""

import re

import pytest

from sparsekd.evaluation.tokens import KL_EDGES
from sparsekd.report import spread, write_report
from sparsekd.report.spread import DivergenceFile, ReliabilityFile, TokenFile, divergence_rows, pooled
from tests.made_up_run import MadeUpRun

TOKEN = TokenFile(text=" a\n", kl=0.5, dense=[(" b", 0.75), ("\n", 0.125)], model=[("<i>", 0.5)])


def test_the_bins_are_those_of_evaluate():
    assert spread.KL_EDGES == KL_EDGES


def test_pooling_counts_every_token_the_same():
    one = ReliabilityFile(tokens=[10, 0, 30], confidence=[0.1, 0, 0.9], accuracy=[0.2, 0, 0.6], error=0.25)
    other = ReliabilityFile(tokens=[30, 0, 10], confidence=[0.2, 0, 0.7], accuracy=[0.0, 0, 0.9], error=0.2)
    found = pooled({"one": one, "other": other})
    assert found.tokens.tolist() == [40, 40]
    assert found.confidence.tolist() == pytest.approx([(10 * 0.1 + 30 * 0.2) / 40, (30 * 0.9 + 10 * 0.7) / 40])
    assert found.accuracy.tolist() == pytest.approx([10 * 0.2 / 40, (30 * 0.6 + 10 * 0.9) / 40])
    distances = [abs(a - c) for a, c in zip(found.accuracy, found.confidence, strict=True)]
    assert found.error == pytest.approx(sum(distances) / 2)


def test_nothing_measured_is_nothing_shown():
    empty = ReliabilityFile(tokens=[0], confidence=[0], accuracy=[0], error=0)
    assert pooled({}) is None
    assert pooled({"wiki": empty}) is None
    assert divergence_rows({}) == []
    assert divergence_rows({"wiki": DivergenceFile(tokens=[5] + [0] * 7, nats=[0.0] * 8)}) == []


def test_rows_of_divergence_add_the_corpora():
    one = DivergenceFile(tokens=[90, 0, 0, 0, 0, 0, 0, 10], nats=[1.0, 0, 0, 0, 0, 0, 0, 149.0])
    other = DivergenceFile(tokens=[100, 0, 0, 0, 0, 0, 0, 0], nats=[0.0] * 8)
    rows = divergence_rows({"one": one, "other": other})
    assert rows[0] == ("0 to 0.01", "95.0 %", "0.7 %")
    assert rows[-1] == ("10 and more", "5.0 %", "99.3 %")


def test_a_token_tells_in_words_what_both_expected():
    assert TOKEN.told == "“ a⏎”: KL 0.50 nats. Dense expected “ b” 75 % and “⏎” 12 %. This model expected “<i>” 50 %."
    assert [TOKEN.model_copy(update={"kl": kl}).level for kl in (None, 0.09, 0.1, 0.9, 3.0)] == [0, 0, 1, 2, 4]
    assert TOKEN.model_copy(update={"kl": None}).told == "“ a⏎”: not scored"


def test_passages_stand_on_the_page_whole_and_escaped(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_report(MadeUpRun(tmp_path / "data").write(), out)
    html = (out / "index.html").read_text()
    assert html.count('<details class="passage"') == 5
    assert "&lt;b&gt;Norway" in html
    assert "<b>Norway" not in html
    buttons = re.findall(r'<button type="button" class="token k(\d)" aria-label="([^"]+)">', html)
    assert {level for level, _ in buttons} == {"1", "2", "3", "4"}
    assert all("Dense expected" in label and "This model expected" in label for _, label in buttons)
