"""What a run ends with: every figure of summary.json that matters, the prompts, and where things are."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flows.commands.summary import elsewhere, result_table, show_results
from sparsekd.errors import ArtifactError
from sparsekd.report import read_summary, write_report
from tests.made_up_run import PROMPTS, MadeUpRun


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose data/ holds a finished run."""
    root = tmp_path_factory.mktemp("finished")
    artifacts = MadeUpRun(root / "data").write()
    (root / "data" / "report").mkdir()
    write_report(artifacts, root / "data" / "report")
    return root


def shown(root: Path, width: int = 110) -> str:
    console = Console(file=io.StringIO(), force_terminal=False, color_system=None, width=width)
    show_results(root, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_holds_size_perplexity_agreement_tasks_and_speed_of_all_three(finished: Path) -> None:
    text = shown(finished)
    summary = read_summary(finished / "data" / "report" / "summary.json")
    for heading in ("dense", "pruned", "distilled", "Parameters", "Checkpoint", "Prefill", "Decode", "Peak memory"):
        assert heading in text
    for corpus in summary.corpus_names():
        value = summary.variants.distilled.perplexity[corpus]
        assert f"{value.value:.2f} ({value.low:.2f}" in text
    for task, score in summary.variants.distilled.tasks.items():
        assert score.stderr is not None
        assert f"{100 * score.value:.1f} ±{100 * score.stderr:.1f}" in text.split(f"  {task} (")[1].splitlines()[0]
    assert summary.model.label in text
    assert summary.verdict in text


def test_all_four_reductions_are_named(finished: Path) -> None:
    assert (
        "Removed: 25.0 % of the width, 25.0 % of the FFN, 18.7 % of the non-embedding and 14.8 % of all parameters."
        in shown(finished)
    )


def test_prompts_are_answered_by_all_three_and_brackets_are_no_markup(finished: Path) -> None:
    text = shown(finished)
    for prompt in PROMPTS:
        assert f"» {prompt}" in text
    assert text.count("  distilled ") >= len(PROMPTS)
    assert "[Your Name]" in text


def test_paths_and_next_steps_are_shown(finished: Path) -> None:
    text = shown(finished)
    assert f"checkpoint   {finished / 'data' / 'distilled'}\n" in text
    assert f"report       {finished / 'data' / 'report' / 'index.html'}\n" in text
    assert "sparsekd serve" in text


def test_every_other_runtime_has_a_line_that_a_shell_takes(finished: Path) -> None:
    root = finished.with_name("it's finished")
    (root / "data/export").mkdir(parents=True)
    (root / "data/export/model-q8_0.gguf").touch()
    named = {line[:13].strip(): shlex.split(line[13:]) for line in elsewhere(root)}
    assert named.keys() == {"llama.cpp", "vLLM", "Transformers", "lm-eval"}
    assert str(root / "data/export/model-q8_0.gguf") in named["llama.cpp"]
    assert named["vLLM"] == ["vllm", "serve", str(root / "data/distilled")]
    compile(named["Transformers"][2], "line", "exec")
    assert str(root / "data/distilled") in ast.literal_eval(re.search(r"p\((.*?)\)\(", named["Transformers"][2])[1])
    assert f"pretrained={root / 'data/distilled'}" in named["lm-eval"]
    assert f"vLLM         vllm serve {finished / 'data/distilled'}\n" in shown(finished)


@pytest.mark.parametrize("width", [80, 110, 200])
def test_the_table_fits_the_terminal_where_it_can(finished: Path, width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, color_system=None, width=width)
    summary = read_summary(finished / "data" / "report" / "summary.json")
    console.print(result_table(summary, width))
    assert isinstance(console.file, io.StringIO)
    assert max(map(len, console.file.getvalue().splitlines())) <= width


def test_a_run_with_little_in_it_is_shown_too(tmp_path: Path) -> None:
    artifacts = MadeUpRun(tmp_path / "data", tasks={}, rounds=1).write()
    (tmp_path / "data" / "report").mkdir()
    write_report(artifacts, tmp_path / "data" / "report")
    assert "Task scores" not in shown(tmp_path)


def test_no_report_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"summary\.json is not there; run `sparsekd compress`"):
        shown(tmp_path)


def test_showing_a_stored_result_loads_nothing_heavy(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "a path with a space"
    shutil.copytree(finished, root)
    program = (
        "import json, sys; from pathlib import Path; from rich.console import Console; "
        "from flows.commands.summary import show_results; show_results(Path(sys.argv[1]), Console(stderr=True)); "
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "transformers", "prefect", "mlflow", "dvc", "matplotlib", "datasets"}
