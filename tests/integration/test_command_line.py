"""`sparsekd compress` on a checkout in miniature, with real git, DVC and Prefect, as a person runs it: in a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.checks.staleness import staleness
from flows.workspaces.lock import run_lock
from sparsekd.report import write_report
from tasks.environment import dvc_command
from tests.databases import copy_mlflow_database
from tests.made_up_run import PROMPTS, MadeUpRun
from tests.miniature import CHECKOUT, Miniature, make_miniature

_REPORT_STAGE = """\
  report:
    cmd: python -m mini.report
    params: [report, gate]
    deps: [mini/report.py, data/distilled]
    outs: [data/report]
"""
_REPORT = """\
import json, shutil
from sparsekd.report.summary import Gate, GateCheck, Summary, metrics
from tasks.process import Stage, run_stage

def report(stage: Stage) -> None:
    shutil.copytree("made-up/data/report", stage.out, dirs_exist_ok=True)
    values = json.loads((stage.out / "summary.json").read_text())
    width, limit = stage.config.prune.width, stage.config.gate.kl
    kl = round(0.4 * (1 - width), 6)
    values["reduction"]["width"] = 1 - width
    distilled = values["variants"]["distilled"]
    distilled["parameters"]["total"] = round(values["variants"]["dense"]["parameters"]["total"] * (0.4 + 0.6 * width))
    for found in distilled["agreement"].values():
        found["kl"] = {"value": kl, "low": kl, "high": kl}
    summary = Summary.model_validate(values)
    if limit is not None:
        state = "passed" if kl < limit else "not passed"
        check = GateCheck(limit="kl", part="wiki", bound=limit, state=state, reason=f"KL is {kl}.")
        summary = summary.model_copy(update={"gate": Gate(state=state, checks=(check,))})
    (stage.out / "summary.json").write_text(summary.to_json())
    (stage.out / "metrics.json").write_text(json.dumps(metrics(summary)))

run_stage(["mini.report"], report)
"""
"""The made-up result with KL and parameters that follow from prune.width, held against gate.kl."""


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """A miniature whose stages, a report with made-up numbers among them, have all run through DVC."""
    mini = make_miniature(tmp_path_factory.mktemp("computed") / "a checkout")
    root = mini.root
    copy_mlflow_database(root)
    with (root / "dvc.yaml").open("a") as stream:
        stream.write(_REPORT_STAGE)
    (root / "mini" / "report.py").write_text(_REPORT)
    shutil.copy(CHECKOUT / "params.yaml", root)
    artifacts = MadeUpRun(root / "made-up" / "data").write()
    (root / "made-up" / "data" / "report").mkdir()
    write_report(artifacts, root / "made-up" / "data" / "report")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(dvc_command("repro", "-q"), cwd=root, env=environment, check=True)
    shutil.copytree(root / "made-up" / "data" / "evaluation", root / "data" / "evaluation")
    return mini


@pytest.fixture
def mini(computed: Miniature, tmp_path: Path) -> Miniature:
    """A copy of it, to change at will."""
    shutil.copytree(computed.root, tmp_path / "a checkout", symlinks=True)
    return Miniature(tmp_path / "a checkout")


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in {"SPARSEKD_HOME", "PREFECT_API_URL"}}
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1", "FORCE_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def values(mini: Miniature) -> dict[str, dict[str, object]]:
    loaded: dict[str, dict[str, object]] = YAML(typ="safe").load((mini.root / "params.yaml").read_text())
    return loaded


def test_with_nothing_to_do_the_stored_result_is_shown_and_nothing_heavy_loads(mini: Miniature) -> None:
    program = (
        "import json, sys\nfrom flows.cli.app import app\n"
        "try: app(['compress'])\nexcept SystemExit as ended: print('\\nexit', ended.code)\n"
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    environment.pop("SPARSEKD_HOME", None)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=mini.root, env=environment, capture_output=True, text=True, check=True
    )
    seconds = time.monotonic() - begun
    *output, code, modules = done.stdout.splitlines()
    text = "\n".join(output)
    assert code == "exit 0"
    assert not set(json.loads(modules)) & {"torch", "transformers", "prefect", "mlflow", "dvc", "matplotlib"}
    assert "Nothing has changed: no stage to run, no server started. This is the stored result." in text
    assert re.search(r"^ +dense +pruned +distilled$", text, re.MULTILINE)
    assert all(f"» {prompt}" in text for prompt in PROMPTS)
    assert f"report       {mini.root / 'data' / 'report' / 'index.html'}" in text
    assert [mini.runs(stage) for stage in ("calibrate", "distill")] == [1, 1]
    assert seconds < 20  # 3 s on an idle machine; the 5 s are measured there


def test_a_dry_run_says_what_would_run_and_changes_nothing(mini: Miniature) -> None:
    before = (mini.root / "params.yaml").read_text()
    done = command("compress", "--dry-run", "-S", "prune.width=0.5", cwd=mini.root)
    assert done.returncode == 0, done.stderr
    assert "params.yaml would change:" in done.stdout
    assert "  prune.width: 0.75 → 0.5" in done.stdout
    states = dict(re.findall(r"^(\w+) +(run|cached)\b", done.stdout, re.MULTILINE))
    assert states == {
        "calibrate": "cached",
        "teacher": "cached",
        "prune": "run",
        "distill": "run",
        "report": "run",
    }
    assert "parameters changed: prune" in done.stdout
    for line in (
        "time ",
        "disk ",
        "memory ",
        "parameters   134,515,008 to",
        "neurons      1536 to 768 a layer",
        "removed ",
    ):
        assert re.search(rf"^{line}", done.stdout, re.MULTILINE), line
    assert (mini.root / "params.yaml").read_text() == before
    assert not set("\r\x1b") & set(done.stdout)


def test_a_preset_that_would_lose_edits_needs_yes(mini: Miniature) -> None:
    mini.edit("width: 0.75", "width: 0.5")
    before = (mini.root / "params.yaml").read_text()
    refused = command("compress", "--preset", "smoke", cwd=mini.root)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: params.yaml has changes from preset default that --preset smoke would lose: prune.width: 0.5 → 0.75. "
        "Add --yes to lose them, or keep them with -S prune.width=0.5.\n"
    )
    assert (mini.root / "params.yaml").read_text() == before
    accepted = command("compress", "--preset", "smoke", "--yes", "--dry-run", cwd=mini.root)
    assert accepted.returncode == 0, accepted.stderr
    assert "preset smoke as it stands" in accepted.stdout
    assert "  calibrate.tokens: 122880 → 6144" in accepted.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-S", "prune.widht=1"], "prune.widht is no known setting; did you mean prune.width?"),
        (["-S", "prune.width=0"], "prune.width is '0'; it must be greater than 0."),
        (
            ["-S", "calibrate.sequence_length=9000"],
            "takes at most 8192 tokens",
        ),
        (["-S", "prune.width=0.01"], "prune.width is 0.01; of 1536 neurons that rounds to none"),
        (["-S", "prune.total_reduction=0.65"], "prune.total_reduction is 0.65; neurons of the feed-forward layers are"),
        (
            ["-S", "prune.width=0.5", "-S", "prune.total_reduction=0.2"],
            "prune.width is 0.5 and prune.total_reduction is 0.2; only one can say how much is kept",
        ),
        (["-S", "prune.width=null"], "prune.width is null, and so is ffn_reduction"),
        (["--model", "./nowhere"], "nowhere'; there is no such directory."),
        (["--texts", "./nowhere.txt"], "'nowhere.txt'; there is no such file."),
        (["--preset", "fast"], "There is no preset 'fast'; choose one of smoke, small, default, quality, gpu, gpus."),
    ],
)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_is_written(
    mini: Miniature, options: list[str], said: str
) -> None:
    before = (mini.root / "params.yaml").read_text()
    done = command("compress", *options, cwd=mini.root)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stdout
    assert (mini.root / "params.yaml").read_text() == before
    assert not list(mini.root.glob("*.partial"))


def test_a_run_that_is_going_on_is_named(mini: Miniature) -> None:
    with run_lock(mini.root, command="sparsekd compress --preset default"):
        done = command("compress", cwd=mini.root)
    assert done.returncode == 2
    assert f"`sparsekd compress --preset default` (process {os.getpid()}, since" in done.stderr


def test_a_relative_path_is_right_from_wherever_it_is_given(mini: Miniature) -> None:
    below = mini.root / "made-up"
    (below / "words.txt").write_text("once upon a time " * 10_000)
    done = command("compress", "--texts", "words.txt", "--dry-run", cwd=below)
    assert done.returncode == 0, done.stderr
    assert "texts.sources: [wiki, c4] → [made-up/words.txt]" in done.stdout


def test_what_is_stale_is_the_closure_over_the_graph(mini: Miniature) -> None:
    assert staleness(mini.root, values(mini)).nothing_to_do
    changed = values(mini)
    changed["prune"]["width"] = 0.5
    found = staleness(mini.root, changed)
    assert (found.reasons, found.stages) == ({"prune": "parameters changed: prune"}, ("prune", "distill", "report"))
    shutil.rmtree(mini.root / "data" / "teacher")
    found = staleness(mini.root, values(mini))
    assert found.stages == ("teacher", "distill", "report")
    assert "data/teacher" in found.reasons["teacher"]
    with (mini.root / "mini" / "report.py").open("a") as stream:
        stream.write("# changed\n")
    assert staleness(mini.root, values(mini)).reasons["report"] == "input mini/report.py is modified"


def test_a_run_that_waits_for_mlflow_is_something_to_do(mini: Miniature) -> None:
    (mini.root / ".sparsekd").mkdir(exist_ok=True)
    (mini.root / ".sparsekd" / "pending-track.json").write_text("{}")
    found = staleness(mini.root, values(mini))
    assert (found.stages, found.nothing_to_do) == ((), False)


def test_a_run_shows_its_stages_fails_in_a_sentence_and_goes_on(mini: Miniature) -> None:
    before = (mini.root / "params.yaml").read_text()
    failing = mini.control("fail", "distill")
    failed = command("compress", "-S", "prune.width=0.5", "-S", "report.name=on", cwd=mini.root)
    assert failed.returncode == 2
    assert "Stage distill failed: distill.learning_rate is 9; the loss is NaN at step 3. Lower it." in failed.stderr
    assert ".sparsekd/logs/distill.log" in failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr
    assert "changed in params.yaml:" in failed.stdout
    assert values(mini)["prune"]["width"] == 0.5
    edited = before.replace("width: 0.75", "width: 0.5").replace("name: null", 'name: "on"')
    assert (mini.root / "params.yaml").read_text() == edited
    assert re.search(r"calibrate +cached$", failed.stdout, re.MULTILINE)
    assert re.search(r"prune +done in ", failed.stdout, re.MULTILINE)
    assert re.search(r"distill +failed: Stage distill failed:", failed.stdout, re.MULTILINE)

    failing.unlink()
    done = command("compress", cwd=mini.root)
    assert done.returncode == 0, done.stderr
    assert re.search(r"prune +cached$", done.stdout, re.MULTILINE)
    assert re.search(r"distill +done in ", done.stdout, re.MULTILINE)
    assert "preset default with prune.width=0.5, report.name=on" in done.stdout
    assert re.search(r"^ +dense +pruned +distilled$", done.stdout, re.MULTILINE)
    assert "prefect" not in (done.stdout + done.stderr).replace("the Prefect and MLflow pages", "").lower()
    assert not set("\r\x1b") & set(done.stdout + done.stderr)
    assert mini.runs("prune") == 2
