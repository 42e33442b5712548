"""Evaluation of whole checkpoints, by the library and by the stage: dense against itself, and a narrower model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from sparsekd.artifacts import Artifact, writing
from sparsekd.calibration.packing import CalibrationSet, pack, pad
from sparsekd.config import Evaluate, RunConfig, Teacher
from sparsekd.decoding import greedy
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.evaluation import Evaluation, evaluate_model
from sparsekd.evaluation.perplexity import document_sums
from sparsekd.feed_forward import feed_forwards, set_width
from sparsekd.models import load_model, load_tokenizer, save_checkpoint
from sparsekd.runtime import compute_dtype
from tests.small_benchmarks import write_benchmarks

CHECKOUT = Path(__file__).parents[2]
CONFIG = Evaluate(tasks=("piqa", "hellaswag"), rows=6)
PROMPTS = ("the river", "a small house")
FASTEST = str(compute_dtype(torch.device("cpu"))).removeprefix("torch.")


class Inputs:
    """A dense and a narrower checkpoint, test parts, the teacher cache and benchmarks, as the stages leave them."""

    def __init__(self, dense: Path, root: Path) -> None:
        self.dense, self.pruned, self.root = dense, root / "pruned", root
        model, tokenizer = load_model(dense), load_tokenizer(dense)
        texts = ["the river sees a small house " * 12, "bread and music near the old tree " * 9, "light " * 80]
        packed = pack([tokenizer(f"{n} {text}")["input_ids"] for n, text in enumerate(texts * 2)], 32, 256)
        chat = [tokenizer(text)["input_ids"] for text in ("<|user|>music<|end|><|assistant|>", "<|user|>tree<|end|>")]
        answers = greedy(model, chat, 20)
        answered = pad([(p + a, len(p)) for p, a in zip(chat, answers, strict=True)], tokenizer.pad_token_id)
        other = pack([tokenizer(f"{n} {text}")["input_ids"] for n, text in enumerate(reversed(texts))], 32, 128)
        self.data = CalibrationSet(packed, {"wiki": other}, {"wiki": packed, "chat": answered})
        (root / "teacher").mkdir()
        write_teacher_cache(model, self.data, root / "teacher", Teacher(batch_size=2))
        self.teacher = TeacherCache.open(root / "teacher")
        self.benchmarks = write_benchmarks(root / "benchmarks")
        for block in feed_forwards(model):
            block.keep(torch.arange(24))
        set_width(model, 24)
        self.pruned.mkdir()
        save_checkpoint(model, dense, self.pruned)

    def evaluate(self, path: Path, out: Path, variant: str = "dense", config: Evaluate = CONFIG) -> Evaluation:
        return evaluate_model(
            path,
            config,
            out,
            variant=variant,
            test=self.data.test,
            teacher=self.teacher,
            benchmarks=self.benchmarks,
            prompts=PROMPTS,
            prompt_tokens=5,
        )


@pytest.fixture(scope="module")
def inputs(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    dense = make_model(seed=4, dtype=torch.bfloat16, tie_word_embeddings=True)
    return Inputs(dense, tmp_path_factory.mktemp("inputs"))


def test_the_dense_model_is_what_it_is(inputs: Inputs, tmp_path: Path) -> None:
    found = inputs.evaluate(inputs.dense, tmp_path)
    assert found.variant == "dense"
    assert found.dtype == FASTEST
    assert found.bytes == (inputs.dense / "model.safetensors").stat().st_size
    assert found.parameters == {"total": 384 * 32 + 2 * (3 * 32 * 64 + 32 * 96 + 64) + 32} | {
        "non_embedding": 2 * (3 * 32 * 64 + 32 * 96 + 64) + 32,
        "ffn": 2 * 3 * 32 * 64,
    }
    for corpus in ("wiki", "chat"):
        agreement, perplexity = found.agreement[corpus], found.perplexity[corpus]
        assert 0 <= agreement.kl.value < 0.01  # bfloat16 rounding, no more
        assert agreement.top1.value > 0.9
        assert perplexity.low <= perplexity.value <= perplexity.high
    assert (found.perplexity["wiki"].tokens, found.perplexity["chat"].documents) == (248, 2)
    assert found.perplexity["wiki"].value > 1
    assert set(found.tasks) == {"piqa", "hellaswag"}
    assert 0 <= found.repetition["chat"] <= 1


def test_a_narrower_model_differs_on_the_same_documents_and_rows(inputs: Inputs, tmp_path: Path) -> None:
    dense = inputs.evaluate(inputs.dense, tmp_path / "dense")
    pruned = inputs.evaluate(inputs.pruned, tmp_path / "pruned", "pruned")
    assert pruned.parameters["ffn"] == dense.parameters["ffn"] * 24 / 64
    assert pruned.bytes < dense.bytes
    assert pruned.agreement["wiki"].kl.low > dense.agreement["wiki"].kl.high
    assert pruned.agreement["wiki"].top1.value < dense.agreement["wiki"].top1.value
    documents = [json.loads((tmp_path / name / "documents.json").read_text()) for name in ("dense", "pruned")]
    for corpus in ("wiki", "chat"):
        assert documents[0][corpus]["tokens"] == documents[1][corpus]["tokens"]
        assert documents[0][corpus]["nll"] != documents[1][corpus]["nll"]


def test_files_are_those_of_the_contract(inputs: Inputs, tmp_path: Path) -> None:
    found = inputs.evaluate(inputs.dense, tmp_path)
    assert Evaluation.model_validate_json((tmp_path / "evaluation.json").read_text()) == found
    documents = json.loads((tmp_path / "documents.json").read_text())
    for corpus, perplexity in found.perplexity.items():
        record = documents[corpus]
        assert {"nll", "kl", "top1", "tokens"} <= set(record)
        assert sum(record["tokens"]) == perplexity.tokens
        loss = sum(record["nll"]) / sum(record["tokens"])
        assert perplexity.value == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
        assert found.agreement[corpus].kl.value == pytest.approx(sum(record["kl"]) / sum(record["tokens"]))
        assert found.agreement[corpus].top1.value == pytest.approx(sum(record["top1"]) / sum(record["tokens"]))
    assert sum(documents["chat"]["degenerate"]) / 2 == found.repetition["chat"]
    answers = json.loads((tmp_path / "prompts.json").read_text())
    assert [answer["prompt"] for answer in answers] == list(PROMPTS)
    assert all(set(answer) == {"prompt", "answer"} for answer in answers)
    assert {file.name for file in (tmp_path / "lm_eval").glob("samples_*.jsonl")} == {
        "samples_piqa.jsonl",
        "samples_hellaswag.jsonl",
    }


def test_validation_is_other_documents_and_other_rows(inputs: Inputs, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"validation_rows": 4})
    evaluate_model(
        inputs.pruned,
        config,
        tmp_path,
        test=inputs.data.test,
        validation=inputs.data.validation,
        teacher=inputs.teacher,
        benchmarks=inputs.benchmarks,
    )
    documents = json.loads((tmp_path / "validation" / "documents.json").read_text())
    slow = document_sums(
        load_model(inputs.pruned), inputs.data.validation["wiki"], 1, inputs.teacher, "validation-wiki"
    )
    assert list(documents) == ["wiki"]
    assert documents["wiki"]["tokens"] == slow.to_json()["tokens"]
    assert documents["wiki"]["nll"] == pytest.approx(slow.to_json()["nll"], rel=2e-2)
    assert documents["wiki"]["nll"] != json.loads((tmp_path / "documents.json").read_text())["wiki"]["nll"]
    assert min(documents["wiki"]["kl"]) > 0
    tasks = json.loads((tmp_path / "validation" / "tasks.json").read_text())
    assert {task: score["n"] for task, score in tasks.items()} == {"piqa": 4, "hellaswag": 4}
    for task, score in tasks.items():
        seen, unseen = (
            [json.loads(line) for line in (folder / "lm_eval" / f"samples_{task}.jsonl").read_text().splitlines()]
            for folder in (tmp_path, tmp_path / "validation")
        )
        assert not {row["doc_id"] for row in seen} & {row["doc_id"] for row in unseen}
        assert sum(row[score["metric"]] for row in unseen) / 4 == pytest.approx(score["value"])


def test_a_task_without_other_rows_is_left_out_of_validation(inputs: Inputs, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"tasks": ("piqa",), "rows": 12, "validation_rows": 4})
    evaluate_model(inputs.pruned, config, tmp_path, validation=inputs.data.validation, benchmarks=inputs.benchmarks)
    assert json.loads((tmp_path / "validation" / "tasks.json").read_text()) == {}


def test_two_evaluations_are_the_same_bytes(inputs: Inputs, tmp_path: Path) -> None:
    for name in ("one", "two"):
        evaluate_model(
            inputs.pruned,
            CONFIG,
            tmp_path / name,
            test=inputs.data.test,
            teacher=inputs.teacher,
            benchmarks=inputs.benchmarks,
            prompts=PROMPTS,
            home=Path("data/evaluation/pruned"),
        )
    files = [file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file()]
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_less_may_be_asked(inputs: Inputs, tmp_path: Path) -> None:
    found = evaluate_model(
        inputs.dense, Evaluate(tasks=(), dtype="float32"), tmp_path, test={"wiki": inputs.data.test["wiki"]}
    )
    assert found.dtype == "float32"
    assert (found.agreement, found.tasks, found.repetition, found.command) == ({}, {}, {}, None)
    assert json.loads((tmp_path / "prompts.json").read_text()) == []
    assert set(json.loads((tmp_path / "documents.json").read_text())["wiki"]) == {"nll", "tokens"}


def make_checkout(inputs: Inputs, root: Path) -> None:
    """What the stages before evaluate leave behind."""
    shutil.copy(CHECKOUT / "dvc.yaml", root)
    settings = {"evaluate": CONFIG.model_dump(mode="json"), "runtime": {"threads": 1, "device": "cpu"}}
    settings |= {"report": {"prompts": list(PROMPTS), "prompt_tokens": 5}}
    (root / "params.yaml").write_text(yaml.safe_dump(settings))
    sources = {"raw/model": inputs.dense, "pruned": inputs.pruned}
    sources |= {"teacher": inputs.root / "teacher", "raw/benchmarks": inputs.benchmarks}
    for name, source in sources.items():
        with writing(root / "data" / name, name, {}, {}) as draft:
            shutil.copytree(source, draft.path, dirs_exist_ok=True)
            if name == "raw/benchmarks":
                draft.facts["benchmarks"] = {task: {"file": f"{task}.arrow"} for task in CONFIG.tasks}
    with writing(root / "data/calibration", "calibrate", {}, {}) as draft:
        inputs.data.save(draft.path)


def run_stage(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_stage_writes_a_repeatable_artifact(inputs: Inputs, tmp_path: Path) -> None:
    make_checkout(inputs, tmp_path)
    manifests = []
    for _ in range(2):
        ended = run_stage(tmp_path, "tasks.evaluate", "pruned")
        assert ended.returncode == 0, ended.stderr
        manifests.append(Artifact.read(tmp_path / "data/evaluation/pruned").manifest)
    assert manifests[0] == manifests[1]
    assert "piqa: acc " in ended.stdout
    found = Evaluation.model_validate_json((tmp_path / "data/evaluation/pruned/evaluation.json").read_text())
    assert found.variant == "pruned"
    assert found.agreement["wiki"].kl.value > 0.01
    assert found.command is not None
    assert f"pretrained=data/pruned,dtype={FASTEST}" in found.command
    assert "--samples data/evaluation/pruned/lm_eval/samples.json" in found.command
    for file in (tmp_path / "data/evaluation/pruned").rglob("*"):
        assert not file.is_file() or str(tmp_path) not in file.read_text()


@pytest.mark.slow
def test_a_wrong_setting_ends_the_stage_in_a_sentence(inputs: Inputs, tmp_path: Path) -> None:
    make_checkout(inputs, tmp_path)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["evaluate"]["include_path"] = "nowhere"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    ended = run_stage(tmp_path, "tasks.evaluate", "dense")
    assert ended.returncode == 2
    assert "error: evaluate.include_path is 'nowhere'; it must be a directory" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "data/evaluation/dense").exists()


def test_defaults_of_the_stage_are_the_configuration(inputs: Inputs) -> None:
    """The stage passes whole sections: a new setting cannot be forgotten on the way."""
    assert set(RunConfig().evaluate.model_dump()) == set(CONFIG.model_dump())
