"""The report reads what the other stages write: its own models of their files must not drift from theirs."""

import pytest

from sparsekd.evaluation import results
from sparsekd.evaluation.speed import predicted_speedup, ratio_of_rounds
from sparsekd.report import inputs
from tests.made_up_run import MadeUpRun


@pytest.mark.parametrize(
    ("read", "written"),
    [
        (inputs.Evaluation, results.Evaluation),
        (inputs.PerplexityFile, results.Perplexity),
        (inputs.AgreementFile, results.Agreement),
        (inputs.TaskFile, results.TaskScore),
    ],
)
def test_evaluation_writes_every_field_that_is_read(read, written):
    assert read.model_fields.keys() <= written.model_fields.keys()


def test_made_up_evaluation_is_one_of_evaluates_own(tmp_path):
    MadeUpRun(tmp_path).write()
    text = (tmp_path / "evaluation" / "pruned" / "evaluation.json").read_text()
    theirs = results.Evaluation.model_validate_json(text)
    assert theirs.tasks["piqa"].n == 200
    assert inputs.Evaluation.model_validate_json(theirs.to_json()).tasks["piqa"].climbs


def test_benchmark_ratios_are_read():
    ratio = ratio_of_rounds([2.0, 3.0, 2.4], [2.0, 2.0, 2.0])
    cost = {"prefill_flops": 1.0, "decode_bytes": 2.0}
    found = inputs.Benchmark.model_validate(
        {"ratio": {"pruned": {"prefill": ratio}}, "predicted": {"pruned": predicted_speedup(cost, cost)}}
    )
    assert found.ratio["pruned"].prefill.interval().model_dump() == {"value": 1.2, "low": 1.0, "high": 1.5}
    assert found.predicted["pruned"].decode == 1.0
