"""Results against each other: who is dominated, what the table and the picture say."""

from dataclasses import replace

import pytest

from sparsekd.report import tradeoff
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import summarise
from sparsekd.report.tradeoff import Result
from tests.made_up_run import EXCESS, MadeUpRun


def of(root, distilled, parameters):
    inputs = ReportInputs.read(MadeUpRun(root, excess=EXCESS | {"distilled": distilled}).write())
    summary = summarise(inputs)
    model = summary.variants.distilled
    counts = model.parameters.model_copy(update={"total": parameters})
    variants = summary.variants.model_copy(update={"distilled": model.model_copy(update={"parameters": counts})})
    return summary.model_copy(update={"variants": variants})


@pytest.fixture(scope="module")
def summaries(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        "good": of(root / "good", 0.1, 100_000_000),
        "worse": of(root / "worse", 0.3, 110_000_000),
        "smaller": of(root / "smaller", 0.5, 80_000_000),
    }


def test_figures_are_those_of_the_summaries(summaries):
    found = {result.label: result for result in tradeoff.results(summaries)}
    model = summaries["smaller"].variants.distilled
    kls = [agreement.kl.value for agreement in model.agreement.values()]
    assert found["smaller"].kl == pytest.approx(sum(kls) / len(kls))
    assert found["smaller"].parameters == 80_000_000
    assert found["smaller"].reduction == pytest.approx(1 - 80_000_000 / 134_515_008)
    assert list(found) == ["worse", "good", "smaller"], "the largest first"


def test_only_what_another_beats_in_size_and_quality_is_dominated(summaries):
    found = {result.label: result.dominated_by for result in tradeoff.results(summaries)}
    assert found == {"good": None, "worse": "good", "smaller": None}


@pytest.mark.parametrize(
    ("other", "dominated"),
    [
        ((100, 0.2, 0.1), False),  # the same point is no better
        ((100, 0.2, 0.09), True),
        ((99, 0.2, 0.1), True),
        ((99, 0.21, 0.1), False),
        ((101, 0.1, 0.05), False),
    ],
)
def test_domination_by_definition(other, dominated):
    result = Result("mine", 100, 0.1, 0.2, 0.1)
    rival = replace(result, label="rival", parameters=other[0], kl=other[1], excess_loss=other[2])
    assert tradeoff._marked(result, [result, rival]).dominated_by == ("rival" if dominated else None)


def test_table_and_picture(summaries, tmp_path):
    found = tradeoff.results(summaries)
    lines = tradeoff.markdown(found).splitlines()
    assert len(lines) == 2 + 3
    assert lines[2].startswith("| worse | 110.0 M | 18.2 % |")
    assert lines[2].endswith("| dominated by good |")
    picture = tradeoff.picture(found).write(tmp_path)
    assert (tmp_path / "trade_off.png").read_bytes()[:4] == b"\x89PNG"
    assert "smaller: 80.0 M parameters, KL 0." in picture.alt
    assert tradeoff.picture(found[:1]) is None
    assert tradeoff.to_json(found)[0]["dominated_by"] == "good"
