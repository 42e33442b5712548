"""Each bad input that can be seen before a run: the sentence that is printed, and that good input passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from flows.checks import machine, preflight
from flows.checks.estimate import Estimate, compressed, estimate
from flows.settings import params
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError, ExportError, ModelError, ResourceError, SourceError, SparseKDError
from sparsekd.settings import parse_config
from tasks.graph import read_graph
from tests.tiny_models import tiny_config

CHECKOUT = Path(__file__).parents[3]

DENSE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "dtype": "bfloat16",
}


def config(**sections: Any) -> RunConfig:
    return parse_config(sections)


def checkpoint(path: Path, **changes: Any) -> Path:
    """A directory that looks like a checkpoint to every check that loads no weights."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(DENSE | changes))
    (path / "tokenizer.json").write_text("{}")
    save_file({"model.embed_tokens.weight": np.zeros((4, 2), np.float32)}, path / "model.safetensors")
    return path


def fault(kind: type[SparseKDError], check: Any, *arguments: Any) -> str:
    """What `check` says; one sentence or two on one line."""
    with pytest.raises(kind) as error:
        check(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_that_fits_passes() -> None:
    preflight.check_model(config(prune={"multiple_of": 64}), DENSE)


@pytest.mark.parametrize(
    ("model", "sections", "kind", "said"),
    [
        ({"model_type": "mamba"}, {}, ModelError, "The model's layout is 'mamba'; supported are llama"),
        ({"model_type": None}, {}, ModelError, "The model's layout is 'None'; supported are llama"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            {},
            ModelError,
            "has quantised weights (gptq); its unquantised",
        ),
        ({"intermediate_size": None}, {}, ModelError, "has no usable 'intermediate_size'"),
        (
            {},
            {"teacher": {"cache": "sampled", "top_k": 512}},
            ConfigError,
            "teacher.top_k is 512; smollm2-135m-instruct-q4_1 has 512 tokens, and some must be left to draw from",
        ),
        ({}, {"prune": {"width": 0.1}}, ConfigError, "prune.width is 0.1; of 256 neurons that rounds to none"),
        (
            {},
            {"prune": {"width": 300}},
            ConfigError,
            "prune.width is 300; the model's 256 neurons a layer are the most",
        ),
        (
            {},
            {"calibrate": {"sequence_length": 2048}},
            ConfigError,
            "calibrate.sequence_length is 2048; smollm2-135m-instruct-q4_1 takes at most 1024 tokens.",
        ),
        (
            {},
            {"benchmark": {"prefill_tokens": 1000, "decode_tokens": 50}},
            ConfigError,
            "benchmark.prefill_tokens + benchmark.decode_tokens is 1050; ",
        ),
    ],
)
def test_what_does_not_fit_the_model(
    model: dict[str, Any], sections: dict[str, Any], kind: type[SparseKDError], said: str
) -> None:
    assert said in fault(kind, preflight.check_model, config(**sections), DENSE | model)


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "gemma3_text", "qwen3_5_text"])
def test_a_model_with_names_of_its_own_passes_and_is_estimated(tmp_path: Path, model_type: str) -> None:
    """From its config.json as Transformers writes it; a width of GPT-2 that config.json leaves open is four times d."""
    values = tiny_config(model_type, max_position_embeddings=1024).to_dict()
    if model_type == "gpt2":
        values |= {"n_inner": None, "n_embd": 16}
    checkpoint(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(values, default=str))
    wanted = config(model={"source": str(tmp_path / "model")}, prune={"width": 32})
    model = preflight.dense_config(tmp_path, wanted)
    preflight.check_model(wanted, model)
    made = estimate(tmp_path, wanted, model, list(read_graph(CHECKOUT)), measure=False)
    assert made.memory > 0
    assert compressed(wanted, model).reduction["width"] == 0.5
    short = wanted.model_copy(update={"calibrate": config(calibrate={"sequence_length": 2048}).calibrate})
    assert "takes at most 1024 tokens" in fault(ConfigError, preflight.check_model, short, model)


def test_the_checks_of_a_run_with_nothing_to_do_load_no_torch(tmp_path: Path) -> None:
    """Whatever the layout: only an estimate has Transformers count a rarer one."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("gemma2", max_position_embeddings=1024).to_dict()))
    program = (
        "import json, sys; from flows.checks import preflight; from sparsekd.config import RunConfig, Prune\n"
        "from sparsekd.families import standard_config\n"
        f"model = standard_config(json.load(open({str(tmp_path / 'config.json')!r})))\n"
        "preflight.check_model(RunConfig(prune=Prune(width=32)), model)\n"
        f"preflight.check_model(RunConfig(prune=Prune(total_reduction=0.3, multiple_of=8)), {DENSE!r})\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_width_one_is_the_identity() -> None:
    preflight.check_model(config(prune={"width": 1.0}), DENSE)


def test_a_task_of_ones_own_is_found_in_include_path_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "capitals.yaml").write_text("task: capitals\ndataset_path: json\n")
    evaluate = {"tasks": ["sciq", "capitals"], "include_path": "mine"}
    preflight.check_settings(tmp_path, config(evaluate=evaluate, prune={"multiple_of": 64}), DENSE)
    missing = config(evaluate={"tasks": ["capitals"], "include_path": "theirs"}, prune={"multiple_of": 64})
    assert "theirs" in fault(ConfigError, preflight.check_settings, tmp_path, missing, DENSE)


def test_a_text_that_cannot_hold_its_tokens(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short " * 20)
    wanted = config(texts={"sources": [str(text), "wiki"]})
    said = fault(SourceError, preflight.check_texts, wanted)
    assert "a file of 200 bytes; it cannot hold its share of 40,960 calibration tokens." in said
    text.write_text("long enough " * 10_000)
    preflight.check_texts(wanted)


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_fault", lambda: "no NVIDIA driver was found")
    said = fault(ResourceError, preflight.check_device, config(runtime={"device": "cuda"}))
    assert said.startswith("runtime.device is cuda, but no NVIDIA driver was found. Set it to cpu or auto")
    preflight.check_device(RunConfig())


def test_disk_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 1_000_000_000)
    monkeypatch.setattr(machine, "free_memory", lambda: 2_000_000_000)
    preflight.check_resources(tmp_path, RunConfig(), Estimate({}, 1_900_000_000, 900_000_000))
    disk = fault(ResourceError, preflight.check_resources, tmp_path, RunConfig(), Estimate({}, 0, 5_000_000_000))
    assert f"The outputs need about 5.0 GB on the disk of {tmp_path}; 1.0 GB are free." in disk
    memory = fault(ResourceError, preflight.check_resources, tmp_path, RunConfig(), Estimate({}, 3_000_000_000, 0))
    assert memory.startswith("The run needs about 3.0 GB of memory; 2.0 GB are free.")


def test_no_git_and_no_dvc_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no git repository" in fault(ConfigError, preflight.check_repository, tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert "has no .dvc directory" in fault(ConfigError, preflight.check_repository, tmp_path)
    (tmp_path / ".dvc").mkdir()
    preflight.check_repository(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert "git is not installed" in fault(ConfigError, preflight.check_repository, tmp_path)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"source": "./nowhere"}}, "nowhere'; there is no such directory."),
        ({"model": {"source": "smollm2"}}, "Did you mean smollm2-135m-instruct-q4_1?"),
        ({"texts": {"sources": ["./nowhere.txt"]}}, "'nowhere.txt'; there is no such file."),
        ({"texts": {"sources": ["table.jsonl"]}}, "body"),
        ({"texts": {"sources": ["binary.txt"]}}, "binary"),
        ({"texts": {"sources": ["empty.txt"]}}, "holds no text"),
    ],
)
def test_a_source_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.jsonl").write_text('{"body": "some words"}\n')
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0\1\2" * 100)
    (tmp_path / "empty.txt").write_text(" \n")
    assert said in fault(SourceError, preflight.resolve_sources, config(**sections))


def test_a_source_is_pinned_to_its_content_and_followed_when_that_changes(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("once upon a time " * 100)
    wanted = config(model={"source": str(model)}, texts={"sources": [str(text), "wiki"]})
    first, resolved = preflight.resolve_sources(wanted)
    assert resolved.label == "model"
    assert len(first.model.revision or "") == 64
    assert preflight.resolve_sources(first)[0] == first
    text.write_text("another story " * 100)
    second, _ = preflight.resolve_sources(first)
    assert second.model == first.model
    assert second.texts.revisions is not None
    assert first.texts.revisions is not None
    assert second.texts.revisions[0] != first.texts.revisions[0]
    assert second.texts.revisions[1] == first.texts.revisions[1]


def test_own_tasks_are_pinned_to_their_content(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/mine.yaml").write_text("task: mine\n")
    config = params.with_settings(RunConfig(), [f"evaluate.include_path={tmp_path / 'tasks'}"])
    first = preflight.resolve_sources(config)[0].evaluate.include_revision
    assert first == preflight.resolve_sources(config)[0].evaluate.include_revision
    (tmp_path / "tasks/mine.yaml").write_text("task: mine\nnum_fewshot: 5\n")
    assert first != preflight.resolve_sources(config)[0].evaluate.include_revision
    assert preflight.resolve_sources(RunConfig())[0].evaluate.include_revision is None


def test_the_fetched_model_is_asked_before_its_source(tmp_path: Path) -> None:
    fetched = tmp_path / "data" / "raw" / "model"
    wanted = config(model={"source": "owner/not-reachable", "revision": "a" * 40})
    checkpoint(fetched, num_hidden_layers=7)
    (fetched / "manifest.json").write_text(json.dumps({"config": {"model": wanted.model.model_dump()}}))
    assert preflight.dense_config(tmp_path, wanted)["num_hidden_layers"] == 7
    local = config(model={"source": str(checkpoint(tmp_path / "other", num_hidden_layers=3))})
    assert preflight.dense_config(tmp_path, local)["num_hidden_layers"] == 3


def test_a_cuda_build_is_told_by_its_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.metadata, "version", lambda name: "9.9.9+cpu")
    assert machine.cuda_fault() == "torch 9.9.9+cpu is built without CUDA"


def test_every_preset_passes_for_the_default_model(tmp_path: Path) -> None:
    from sparsekd.sources import model_config

    for name in params.PRESETS:
        preflight.check_settings(tmp_path, params.load_preset(name), model_config("smollm2-135m-instruct-q4_1"))


def test_a_width_that_an_export_cannot_take_is_refused_before_the_run() -> None:
    narrow = config(prune={"width": 40})
    preflight.check_model(narrow, DENSE)
    assert "intermediate_size is 40, and q8_0 needs rows divisible by 32" in fault(
        ExportError, preflight.check_exports, narrow, DENSE
    )
    preflight.check_exports(config(prune={"width": 40}, export={"formats": ["gguf-f16"]}), DENSE)
