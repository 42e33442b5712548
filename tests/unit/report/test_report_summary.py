"""summary.json and metrics.json: the schema others build on, and figures recomputed from what the stages stored."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from sparsekd.errors import ArtifactError
from sparsekd.report import metrics, read_summary
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import source_label, summarise
from sparsekd.report.summary import Source, Summary
from tests.made_up_run import MadeUpRun


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    return root, MadeUpRun(root).write()


@pytest.fixture(scope="module")
def summary(run):
    return summarise(ReportInputs.read(run[1]))


def of(tmp_path, **differing):
    return summarise(ReportInputs.read(MadeUpRun(tmp_path, **differing).write()))


def samples(root, variant, task, metric):
    lines = (root / "evaluation" / variant / "lm_eval" / f"samples_{task}.jsonl").read_text().splitlines()
    return {row["doc_id"]: row[metric] for row in map(json.loads, lines)}


def test_schema_is_what_the_issue_promises(summary):
    found = json.loads(summary.to_json())
    assert found["schema_version"] == 1
    assert {"name", "source"} <= found["model"].keys()
    assert {"file", "bytes", "quantization", "sha256"} <= found["model"]["source"].keys()
    assert found["reduction"].keys() == {"width", "ffn", "non_embedding", "total"}
    assert list(found["variants"]) == ["dense", "pruned", "distilled"]
    for variant in found["variants"].values():
        assert variant["parameters"].keys() == {"total", "non_embedding", "ffn"}
        assert isinstance(variant["bytes"], int)
        assert {"value", "low", "high"} <= variant["perplexity"]["wiki"].keys()
        assert variant["agreement"]["chat"].keys() == {"kl", "top1"}
        assert variant["agreement"]["chat"]["kl"].keys() == {"value", "low", "high"}
        task = variant["tasks"]["piqa"]
        assert {"metric", "value", "stderr", "n", "n_total", "chance", "difference", "flips"} <= task.keys()
        assert task["difference"].keys() == {"value", "low", "high"}
        speeds = {"prefill_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes"}
        assert speeds <= variant["speed"].keys()


def test_summary_survives_the_round_trip(summary, tmp_path):
    file = tmp_path / "summary.json"
    file.write_text(summary.to_json())
    assert read_summary(file) == summary


def test_every_field_is_documented_or_speaks_for_itself():
    schema = Summary.model_json_schema()
    assert all(part.get("description") for part in schema["$defs"].values())


@pytest.mark.parametrize(
    ("text", "told"), [(None, "is not there"), ("{}", "schema version 1"), ("x", "schema version")]
)
def test_unreadable_summary_is_refused_in_a_sentence(tmp_path, text, told):
    file = tmp_path / "summary.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ArtifactError, match=told):
        read_summary(file)


def test_another_schema_version_is_refused(summary, tmp_path):
    file = tmp_path / "summary.json"
    file.write_text(summary.to_json().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ArtifactError, match="schema version 1"):
        read_summary(file)


@pytest.mark.parametrize("variant", ["pruned", "distilled"])
def test_differences_and_flips_come_from_the_stored_answers(run, summary, variant):
    for task, found in summary.variants.named()[variant].tasks.items():
        dense = samples(run[0], "dense", task, found.metric)
        model = samples(run[0], variant, task, found.metric)
        changes = np.array([model[key] - dense[key] for key in dense])
        assert found.difference.value == pytest.approx(changes.mean())
        assert found.flips == pytest.approx((changes != 0).mean())
        assert found.difference.low <= found.difference.value <= found.difference.high
        assert found.recovery == pytest.approx(np.mean(list(model.values())) / np.mean(list(dense.values())))


def test_dense_differs_from_itself_by_nothing(summary):
    dense = summary.variants.dense
    assert dense.tasks["sciq"].difference.model_dump() == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert dense.tasks["sciq"].flips == 0.0
    assert dense.perplexity["c4"].ratio.value == 1.0
    assert dense.speed.ratio.prefill.value == 1.0


def test_perplexity_ratio_is_paired_by_document(run, summary):
    sums = {
        name: json.loads((run[0] / "evaluation" / name / "documents.json").read_text())["c4"]
        for name in ("dense", "pruned")
    }
    excess = (sum(sums["pruned"]["nll"]) - sum(sums["dense"]["nll"])) / sum(sums["dense"]["tokens"])
    found = summary.variants.pruned.perplexity["c4"]
    assert found.excess_loss.value == pytest.approx(excess)
    assert found.ratio.value == pytest.approx(math.exp(excess))
    assert found.ratio.value == pytest.approx(found.value / summary.variants.dense.perplexity["c4"].value)
    unpaired = (found.high - found.low) / found.value
    assert found.ratio.high - found.ratio.low < unpaired  # the same documents: their difficulty cancels


def test_task_at_chance_is_marked_and_leaves_the_means(summary):
    model = summary.variants.distilled
    assert not model.tasks["winogrande"].in_mean
    assert model.task_mean.tasks == ("arc_easy", "piqa", "hellaswag", "sciq")
    values = [model.tasks[task].value for task in model.task_mean.tasks]
    assert model.task_mean.value == pytest.approx(np.mean(values))
    base = np.mean([summary.variants.dense.tasks[task].value for task in model.task_mean.tasks])
    assert model.task_mean.recovery == pytest.approx(np.mean(values) / base)
    assert any("winogrande" in warning and "above chance" in warning for warning in summary.warnings)


def test_models_that_were_evaluated_in_two_dtypes_are_warned_of(run, summary):
    inputs = ReportInputs.read(run[1])
    ours = inputs.variants["pruned"]
    other = replace(ours, evaluation=ours.evaluation.model_copy(update={"dtype": "float32"}))
    found = summarise(replace(inputs, variants=inputs.variants | {"pruned": other}))
    assert any("pruned was evaluated in float32 and dense in bfloat16" in warning for warning in found.warnings)
    assert not any("was evaluated in" in warning for warning in summary.warnings)


def test_losses_leave_the_means_without_a_warning(tmp_path):
    run = MadeUpRun(tmp_path, tasks={"wikitext": (20, 20, None, "word_perplexity", 0.5)})
    found = summarise(ReportInputs.read(run.write()))
    assert found.variants.distilled.task_mean is None
    assert found.variants.distilled.tasks["wikitext"].recovery is None
    assert not any("wikitext" in warning for warning in found.warnings)


def test_metrics_are_at_most_ten_flat_numbers(summary):
    found = metrics(summary)
    assert len(found) <= 10
    assert all(isinstance(value, float) for value in found.values())
    assert found["total_reduction"] == pytest.approx(0.147988)
    assert found["ffn_reduction"] == 0.25
    assert found["perplexity_ratio_wiki"] == pytest.approx(
        summary.variants.distilled.perplexity["wiki"].ratio.value, abs=1e-6
    )
    assert found["decode_speed_ratio"] == pytest.approx(summary.variants.distilled.speed.ratio.decode.value, abs=1e-6)
    assert {"kl", "top1_agreement", "task_recovery", "prefill_speed_ratio", "perplexity_ratio_c4"} <= found.keys()


def test_unmeasured_metrics_are_left_out(tmp_path):
    found = metrics(of(tmp_path, tasks={}, rounds=0, corpora=("stories",)))
    assert "task_recovery" not in found
    assert "decode_speed_ratio" not in found
    assert "perplexity_ratio_stories" in found


def test_one_document_has_no_interval_and_is_said(tmp_path):
    found = of(tmp_path, documents=1, corpora=("wiki",), tasks={})
    assert found.variants.distilled.perplexity["wiki"].ratio.low is None
    assert any("test documents in wiki" in warning for warning in found.warnings)


def test_missing_documents_give_a_ratio_without_an_interval(tmp_path):
    run = MadeUpRun(tmp_path, tasks={})
    artifacts = run.write()
    for name in ("dense", "pruned", "distilled"):
        (tmp_path / "evaluation" / name / "documents.json").unlink()
    found = summarise(ReportInputs.read(artifacts))
    assert found.variants.distilled.perplexity["wiki"].ratio.low is None
    assert found.variants.distilled.perplexity["wiki"].ratio.value > 1
    assert any("No losses by document" in warning for warning in found.warnings)


def test_a_group_without_samples_is_scored_but_not_paired(tmp_path):
    artifacts = MadeUpRun(tmp_path).write()
    for name in ("dense", "pruned", "distilled"):
        (tmp_path / "evaluation" / name / "lm_eval" / "samples_piqa.jsonl").unlink()
    found = summarise(ReportInputs.read(artifacts)).variants.distilled
    assert found.tasks["piqa"].difference is None
    assert found.tasks["piqa"].flips is None
    assert found.task_mean.difference is None  # an interval over some of the tasks would be another quantity
    assert found.task_mean.recovery > 0


def test_answers_that_do_not_add_up_are_told(tmp_path):
    artifacts = MadeUpRun(tmp_path).write()
    file = tmp_path / "evaluation" / "distilled" / "evaluation.json"
    file.write_text(
        file.read_text().replace(
            '"metric": "acc_norm",\n      "value": 0.', '"metric": "acc_norm",\n      "value": 0.9'
        )
    )
    found = summarise(ReportInputs.read(artifacts))
    assert any("hellaswag: the stored answers of distilled give" in warning for warning in found.warnings)


def test_task_that_one_variant_lacks_leaves_the_means(tmp_path):
    artifacts = MadeUpRun(tmp_path).write()
    file = tmp_path / "evaluation" / "pruned" / "evaluation.json"
    values = json.loads(file.read_text())
    del values["tasks"]["sciq"]
    file.write_text(json.dumps(values))
    found = summarise(ReportInputs.read(artifacts))
    assert "sciq" not in found.variants.distilled.task_mean.tasks
    assert any("sciq was not scored for pruned" in warning for warning in found.warnings)


@pytest.mark.parametrize("name", ["raw/model", "pruned", "evaluation/dense"])
def test_a_missing_part_is_named(tmp_path, name):
    artifacts = MadeUpRun(tmp_path, tasks={}).write()
    del artifacts[name]
    with pytest.raises(ArtifactError, match=f"data/{name}, which is not there"):
        ReportInputs.read(artifacts)


@pytest.mark.parametrize(
    ("name", "file", "text", "told"),
    [
        ("evaluation/pruned", "evaluation.json", "{", "no readable JSON"),
        ("evaluation/pruned", "evaluation.json", "{}", "parameters does not fit"),
        ("benchmark", "benchmark.json", '{"models": {"dense": {"prefill_tokens_per_second": [NaN]}}}', "does not fit"),
        ("distilled", "curve.csv", "step,tokens,kl\n1,512,much\n", "no table of numbers"),
        ("evaluation/dense", "prompts.json", '[{"prompt": "x"}]', "answer does not fit"),
    ],
)
def test_a_damaged_part_is_named_in_a_sentence(tmp_path, name, file, text, told):
    artifacts = MadeUpRun(tmp_path, tasks={}).write()
    (tmp_path / name / file).write_text(text)
    with pytest.raises(ArtifactError, match=f"{file}.*{told}.*again"):
        ReportInputs.read(artifacts)


def test_warnings_of_the_stages_are_carried_with_their_stage(tmp_path):
    found = of(tmp_path, tasks={}, warnings=("no compiler was found: eager",))
    assert "distill: no compiler was found: eager" in found.warnings


def test_a_local_model_does_not_tell_where_it_lay(tmp_path):
    found = of(tmp_path, source={"name": "/home/someone/models/mine", "kind": "local", "revision": "abc"}, tasks={})
    assert found.model.source.name == "mine"
    assert found.model.name == "mine-width-0.75"
    assert "someone" not in found.to_json()


@pytest.mark.parametrize(
    ("source", "label"),
    [
        (Source(name="x-q4", label="X, de-quantised from Q4_1"), "X, de-quantised from Q4_1"),
        (Source(name="x-q4", quantization="Q4_1", base_model="them/X"), "X, de-quantised from Q4_1"),
        (Source(name="owner/model", kind="hub"), "model"),
    ],
)
def test_source_label(source, label):
    assert source_label(source) == label


def test_name_from_the_settings_wins(run):
    assert summarise(ReportInputs.read(run[1]), "my-model").model.name == "my-model"
