"""The gate: every limit against a slow reading of what was stored, and the three ways that it can end."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sparsekd.config import Gate
from sparsekd.report import write_report
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import summarise
from tests.made_up_run import MadeUpRun


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    return root, ReportInputs.read(MadeUpRun(root).write())


def judged(run, **limits):
    return summarise(run[1], limits=Gate(**limits)).gate


def of(tmp_path, limits, **differing):
    inputs = ReportInputs.read(MadeUpRun(tmp_path, **differing).write())
    return summarise(inputs, limits=Gate(**limits)).gate


def stored(root, variant, corpus):
    return json.loads((root / "evaluation" / variant / "validation" / "documents.json").read_text())[corpus]


def test_without_limits_nothing_is_judged(run):
    assert judged(run).state == "no limits"
    assert not judged(run).checks


def test_kl_is_that_of_validation_and_its_upper_end_counts(run):
    root, _ = run
    sums = stored(root, "distilled", "wiki")
    value = sum(sums["kl"]) / sum(sums["tokens"])
    loose = judged(run, kl=10.0, corpora=("wiki",)).checks[0]
    assert loose.found.value == pytest.approx(value)
    test = json.loads((root / "evaluation" / "distilled" / "documents.json").read_text())["wiki"]
    assert value != pytest.approx(sum(test["kl"]) / sum(test["tokens"]))
    assert loose.found.low < value < loose.found.high
    between = (value + loose.found.high) / 2
    assert judged(run, kl=loose.found.high + 1e-6, corpora=("wiki",)).state == "passed"
    assert judged(run, kl=between, corpora=("wiki",)).state == "not enough evidence"
    assert judged(run, kl=value - 1e-6, corpora=("wiki",)).state == "not passed"


def test_perplexity_ratio_is_paired_by_document(run):
    root, _ = run
    ours, dense = stored(root, "distilled", "c4"), stored(root, "dense", "c4")
    ratio = np.exp((sum(ours["nll"]) - sum(dense["nll"])) / sum(dense["tokens"]))
    check = judged(run, perplexity_ratio=3.0, corpora=("c4",)).checks[0]
    assert check.found.value == pytest.approx(ratio)
    assert judged(run, perplexity_ratio=check.found.high * 1.0001, corpora=("c4",)).state == "passed"
    assert judged(run, perplexity_ratio=check.found.value * 0.9999, corpora=("c4",)).state == "not passed"


def test_a_limit_holds_for_every_corpus_and_the_worst_decides(run):
    found = {check.part: check for check in judged(run, kl=10.0).checks}
    assert set(found) == {"wiki", "c4", "stories", "code", "chat"}
    ends = {part: check.found.high for part, check in found.items()}
    second = sorted(ends.values())[-2]
    worst = judged(run, kl=second * 1.0001)
    assert worst.state in ("not passed", "not enough evidence")
    assert [check.part for check in worst.checks if check.state != "passed"] == [max(ends, key=ends.get)]


def test_a_task_may_lose_its_margin_by_the_lower_end(run):
    root, _ = run
    checks = {check.part: check for check in judged(run, task_margin=100).checks}
    task = "piqa"
    rows = []
    for variant in ("distilled", "dense"):
        file = root / "evaluation" / variant / "validation" / "lm_eval" / f"samples_{task}.jsonl"
        rows.append({r["doc_id"]: r["acc"] for r in map(json.loads, file.read_text().splitlines())})
    difference = np.mean([rows[0][key] - rows[1][key] for key in rows[1]])
    assert checks[task].found.value == pytest.approx(difference)
    assert checks[task].units == 400
    states = [
        {c.part: c.state for c in judged(run, task_margin=margin).checks}[task]
        for margin in (-100 * checks[task].found.low + 0.01, -100 * difference + 0.01, max(-100 * difference - 0.01, 0))
    ]
    assert states == ["passed", "not enough evidence", "not passed"]


def test_a_task_without_rows_of_its_own_is_not_passed_over(run):
    inputs = run[1]
    tasks = {name: found for name, found in inputs.variants["distilled"].validation.tasks.items() if name != "piqa"}
    ours = inputs.variants["distilled"]
    ours = replace(ours, validation=replace(ours.validation, tasks=tasks))
    judged = summarise(
        replace(inputs, variants=inputs.variants | {"distilled": ours}), limits=Gate(task_margin=100)
    ).gate
    [check] = [check for check in judged.checks if check.part == "piqa"]
    assert check.state == "not enough evidence"
    assert "no rows beyond those of the test" in check.reason


def test_a_task_at_chance_says_nothing(run):
    checks = {check.part: check for check in judged(run, task_margin=100).checks}
    assert checks["winogrande"].state == "not enough evidence"
    assert "dense itself is not above chance" in checks["winogrande"].reason


def test_speed_needs_its_whole_range_above_and_enough_rounds(run, tmp_path):
    ratio = summarise(run[1]).variants.distilled.speed.ratio.prefill
    assert judged(run, prefill_speed=ratio.low * 0.999).state == "passed"
    assert judged(run, prefill_speed=(ratio.low + ratio.value) / 2).state == "not enough evidence"
    assert judged(run, prefill_speed=ratio.value * 1.001).state == "not passed"
    few = of(tmp_path, {"decode_speed": 0.5}, rounds=3)
    assert few.state == "not enough evidence"
    assert "3 rounds, 5 are needed" in few.checks[0].reason


@pytest.mark.parametrize(
    ("limits", "differing", "says"),
    [
        ({"kl": 10.0}, {"documents": 4}, "4 documents, 10 are needed"),
        ({"kl": 0.001}, {"documents": 4}, "4 documents, 10 are needed"),
        ({"task_margin": 50}, {"validation_rows": 60}, "60 rows, 100 are needed"),
        ({"task_margin": 50}, {"validation_rows": 0}, "set evaluate.validation_rows"),
        ({"kl": 10.0, "corpora": ("news",)}, {}, "scored were wiki, c4, stories, code and chat"),
        ({"decode_speed": 0.5}, {"rounds": 0}, "it was not measured"),
    ],
)
def test_too_little_is_not_enough_evidence_and_says_what_is_needed(tmp_path, limits, differing, says):
    found = of(tmp_path, limits, **differing)
    assert found.state == "not enough evidence"
    assert says in found.sentence()


def test_without_validation_files_nothing_passes(tmp_path):
    artifacts = MadeUpRun(tmp_path).write()
    inputs = ReportInputs.read(artifacts)
    for variant in inputs.variants.values():
        variant.validation.documents.clear()
    found = summarise(inputs, limits=Gate(kl=10.0)).gate
    assert (found.state, found.checks[0].part) == ("not enough evidence", "validation")
    assert "no validation text was scored" in found.sentence()


def test_page_and_summary_show_it(tmp_path):
    artifacts = MadeUpRun(tmp_path / "run").write()
    for name, limits, shown in (
        ("bad", Gate(kl=0.001), "Gate: not passed. gate.kl, wiki:"),
        ("good", Gate(kl=10.0), "Gate: passed, all 5 checks."),
    ):
        out = tmp_path / name
        out.mkdir()
        summary = write_report(artifacts, out, limits=limits)
        assert shown in summary.gate.sentence()
        page = (out / "index.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
        assert shown.partition(":")[2].split(".")[0] in page
        assert json.loads((out / "summary.json").read_text())["gate"]["state"] == summary.gate.state
    out = tmp_path / "none"
    out.mkdir()
    write_report(artifacts, out)
    assert "Gate in numbers" not in (out / "index.html").read_text()
