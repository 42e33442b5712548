"""The command: help, exit codes, one sentence an error, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import save_file
from typer.testing import CliRunner

from flows.checks import machine
from flows.cli.app import app
from flows.commands import doctor, job, steps
from sparsekd.config import RunConfig
from sparsekd.errors import ModelError
from sparsekd.settings import all_keys

CHECKOUT = Path(__file__).parents[3]
COMMANDS = (
    "compress",
    "prune",
    "distill",
    "evaluate",
    "generate",
    "sweep",
    "refresh",
    "texts",
    "config",
    "lineage",
    "doctor",
    "serve",
)
runner = CliRunner()


@pytest.fixture(autouse=True)
def plain_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("SPARSEKD_HOME", raising=False)


def command(*arguments: str, cwd: Path = CHECKOUT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    clean = {key: value for key, value in os.environ.items() if key != "SPARSEKD_HOME"}
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def checkpoint(path: Path) -> Path:
    """A directory that looks like a checkpoint to every check that loads no weights."""
    path.mkdir()
    values = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 2}
    values |= {"num_attention_heads": 4, "vocab_size": 512, "max_position_embeddings": 2048}
    (path / "config.json").write_text(json.dumps(values))
    (path / "tokenizer.json").write_text("{}")
    save_file({"model.embed_tokens.weight": np.zeros((4, 2), np.float32)}, path / "model.safetensors")
    return path


def test_help_lists_every_command_with_a_description() -> None:
    text = runner.invoke(app, ["--help"]).output
    for name in COMMANDS:
        assert re.search(rf"{name} +\w+", text), name


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_real_help_and_an_example(name: str) -> None:
    result = runner.invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert re.search(rf"Examples?: sparsekd {name}\b", result.output)
    assert len(result.output) > 500


def test_a_command_below_another_has_help_and_an_example_too() -> None:
    result = runner.invoke(app, ["texts", "add", "--help"])
    assert result.exit_code == 0
    assert "Example: sparsekd texts add " in result.output
    assert "--column" in result.output


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import json, sys\nfrom flows.cli.app import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "print('\\n' + json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "transformers", "prefect", "mlflow", "dvc", "pydantic", "numpy"}


def test_an_error_of_the_user_is_one_sentence_on_stderr_and_exit_code_2(tmp_path: Path) -> None:
    done = command("compress", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path} is not inside the project: no dvc.yaml here or above.")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_is_exit_code_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(request: job.Request) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "compress", interrupted)
    result = runner.invoke(app, ["compress"])
    assert result.exit_code == 130
    assert "the same command goes on from what is finished" in result.output
    assert "Traceback" not in result.output


def test_a_usage_error_is_exit_code_2() -> None:
    result = runner.invoke(app, ["compress", "--prset", "smoke"])
    assert result.exit_code == 2
    assert "--preset" in result.output


def test_compress_hands_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []
    monkeypatch.setattr(job, "compress", requests.append)
    arguments = "compress --preset smoke --model m --revision r --texts a --texts b -S x.y=1 --set z.w=2 --device cpu"
    more = ["--dry-run", "--yes", "--wait", "--isolated", "--at", "v1", "--name", "mine"]
    assert runner.invoke(app, [*arguments.split(), *more]).exit_code == 0
    wanted = job.Request("smoke", "m", "r", ("a", "b"), ("x.y=1", "z.w=2"), "cpu", True, True, True, True, "v1", "mine")
    assert requests == [wanted]


def test_serve_hands_every_option_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def serve(*options: Any, **named: Any) -> None:
        calls.append((options, named))

    monkeypatch.setitem(sys.modules, "flows.commands.serve", SimpleNamespace(serve=serve))
    options = ["--cron", "0 3 * * *", "--port", "4201", "--mlflow-port", "5001", "--retention-days", "7"]
    options += ["--refresh-cron", "0 4 * * 1", "--sources", "texts", "--host", "10.0.0.1"]
    result = runner.invoke(app, ["serve", *options])
    named = {"retention_days": 7.0, "refresh_cron": "0 4 * * 1", "sources": Path("texts"), "host": "10.0.0.1"}
    assert (result.exit_code, calls) == (0, [(("0 3 * * *", 4201, 5001), named)])


def test_config_is_complete_in_yaml_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_yaml = YAML(typ="safe").load(runner.invoke(app, ["config"]).output)
    as_json = json.loads(runner.invoke(app, ["config", "--json"]).output)
    assert as_yaml == as_json == RunConfig().model_dump(mode="json")
    smoke = json.loads(runner.invoke(app, ["config", "--preset", "smoke", "--json"]).output)
    assert (smoke["preset"], smoke["evaluate"]["rows"]) == ("smoke", 20)


def test_the_schema_describes_every_setting() -> None:
    schema = json.loads(runner.invoke(app, ["config", "--schema"]).output)

    def described(properties: dict[str, Any], above: str = "") -> Iterator[str]:
        for key, field in properties.items():
            if "$ref" in field:
                section = schema["$defs"][field["$ref"].rpartition("/")[2]]
                assert section["description"]
                yield from described(section["properties"], f"{above}{key}.")
            elif field["description"]:
                yield above + key

    assert list(described(schema["properties"])) == all_keys()


def test_config_diff_says_what_differs_from_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("preset: smoke\n")
    assert "evaluate.rows: 20 → 200" in runner.invoke(app, ["config", "--diff"]).output
    written = runner.invoke(app, ["config", "--preset", "smoke"]).output
    (tmp_path / "params.yaml").write_text(written)
    assert runner.invoke(app, ["config", "--diff"]).output == "Nothing differs from preset smoke.\n"


def test_an_invalid_params_file_is_refused_by_config_too(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("prune: {width: 1.2}\n")
    done = command("config", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    allowed = "a fraction in (0, 1] or an integer number of neurons"
    assert done.stderr == f"error: prune.width is 1.2; it must be {allowed}. Edit params.yaml.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune", "--model", "./none", "--out", "o", "--width", "2.5"], "prune.width is '2.5'; it must be a fraction"),
        (
            ["prune", "--model", "m", "--out", "o", "--width", "0.5", "--parameters", "100"],
            "prune.width is 0.5 and prune.parameters is 100; only one can say how much is kept",
        ),
        (["prune", "--model", "./none", "--out", "full"], "--out is full, which is there and not empty"),
        (["prune", "--model", "./none", "--out", "o", "--preset", "fast"], "There is no preset 'fast'; choose one of"),
        (
            ["distill", "--model", "m", "--teacher", "t", "--out", "o", "-S", "distill.alhpa=1"],
            "did you mean distill.alpha?",
        ),
        (
            ["evaluate", "--model", "m", "--device", "tpu"],
            "runtime.device is 'tpu'; it must be 'auto', 'cpu' or 'cuda'.",
        ),
    ],
)
def test_single_steps_check_their_options_before_torch_loads(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_doctor_lists_versions_and_machine() -> None:
    result = runner.invoke(app, ["doctor"])
    for name in ("python", "torch", "transformers", "dvc", "prefect", "mlflow", "git", "memory", "disk", "cores"):
        assert re.search(rf"^(ok|note|MISSING) +{name} ", result.output, re.MULTILINE), name
    assert result.exit_code in (0, 1)


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert re.search(r"^MISSING +git +not installed: DVC needs it$", result.output, re.MULTILINE)
    assert "\nMissing: git" in result.output


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu avx2 fma\n", False),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: avx512f amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd\n", False),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("Hardware\t: BCM2835\n", None),
        (None, None),
    ],
)
def test_doctor_notes_a_cpu_without_units_for_bfloat16(
    cpuinfo: str | None, expected: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if cpuinfo:
        file.write_text(f"processor\t: 0\n{cpuinfo}")
    monkeypatch.setattr(machine, "_CPU", file)
    assert machine.cores_have_bfloat16() is expected
    noted = re.search(r"^note +bfloat16 ", runner.invoke(app, ["doctor"]).output, re.MULTILINE)
    assert bool(noted) is (expected is False)


def test_a_single_step_hands_over_configuration_and_progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    class Api:
        @staticmethod
        def prune(model: str, out: Path, **options: Any) -> dict[str, Any]:
            calls.append((model, out, options))
            options["progress"](1, 2, "layers")
            return {"reduction": {"width": 0.5}}

        @staticmethod
        def evaluate(model: str, out: Path | None, dense: str | None, **options: Any) -> None:
            raise ModelError("model.safetensors holds NaN or infinity in lm_head.weight; the checkpoint is damaged.")

    monkeypatch.setitem(sys.modules, "sparsekd.api", Api)
    monkeypatch.setattr("sparsekd.api", Api, raising=False)
    monkeypatch.setattr(steps, "prepare_process", lambda runtime: None)
    out, m = tmp_path / "out", str(checkpoint(tmp_path / "model"))
    options = ["--width", "0.5", "--preset", "smoke", "-S", "prune.beta=1"]
    result = runner.invoke(app, ["prune", "--model", m, "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    (model, where, given) = calls[0]
    assert (model, where, given["width"]) == (m, out, 0.5)
    assert (given["config"].prune.beta, given["config"].calibrate.tokens) == (1.0, 6144)
    assert json.loads(result.stdout) == {"reduction": {"width": 0.5}}
    reduced = ["prune", "--model", m, "--out", str(out), "--total-reduction", "0.3", "-S", "prune.multiple_of=8"]
    result = runner.invoke(app, reduced)
    assert result.exit_code == 0, result.output
    assert calls[1][2]["config"].prune.budget == ("total_reduction", 0.3)
    assert re.match(
        r"512 to 280 neurons a layer: removes 45.3 % of the width, .* 30.2 % of all parameters\n", result.stderr
    )
    damaged = runner.invoke(app, ["evaluate", "--model", m])
    assert (damaged.exit_code, damaged.stdout) == (2, "")
    assert damaged.stderr.startswith("error: model.safetensors holds NaN")
