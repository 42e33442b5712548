"""lm-eval through its own library, on tiny models and tiny packaged tasks: offline, repeatable, equal to stock."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsekd.config import Evaluate
from sparsekd.errors import ConfigError, SourceError
from sparsekd.evaluation.lm_eval_adapter import run_tasks
from sparsekd.evaluation.packaged_tasks import PACKAGED, choose_rows
from sparsekd.evaluation.shared_context import SharedContextLM
from sparsekd.models import load_model, load_tokenizer
from tests.small_benchmarks import write_benchmarks

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"), rows=12)


@pytest.fixture(scope="module")
def loaded(tiny_llama_dir: Path) -> Loaded:
    return load_model(tiny_llama_dir), load_tokenizer(tiny_llama_dir)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def requests(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Several choices a context, one-token choices, twins, a lone context, and one longer than the model's 256."""
    texts = [
        ("the river", [" stone", " light small", " great old house tree", " stone"]),
        ("a small house near the old tree", [" walks", " sees"]),
        ("water", [" and bread and music and letter"]),
        ("the teacher walks over the road " * 60, [" slowly", " morning light"]),
    ]
    return [
        ((context, choice), tokenizer(context)["input_ids"], tokenizer(choice)["input_ids"])
        for context, choices in texts
        for choice in choices
    ]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_log_likelihoods_are_those_of_stock_hflm(make_model: Callable[..., Path], family: str, batch_size: int) -> None:
    path = make_model(family, seed=2)
    model, tokenizer = load_model(path), load_tokenizer(path)
    asked = requests(tokenizer)
    assert max(len(context) for _, context, _ in asked) > 256
    stock = HFLM(model, tokenizer=tokenizer, batch_size=batch_size)._loglikelihood_tokens(asked, disable_tqdm=True)
    ours = SharedContextLM(model, tokenizer, batch_size)._loglikelihood_tokens(asked)
    for (log_prob, greedy), (expected, hits) in zip(ours, stock, strict=True):
        assert log_prob == pytest.approx(expected, abs=2e-4)
        assert greedy is hits


def test_two_batches_at_a_time_give_the_same(loaded: Loaded) -> None:
    asked = requests(loaded[1])
    lm = SharedContextLM(*loaded, 2)
    alone = lm._loglikelihood_tokens(asked)
    torch.set_num_threads(2)
    assert lm._loglikelihood_tokens(asked) == alone
    assert torch.get_num_threads() == 2


def test_a_greedy_continuation_is_recognised(loaded: Loaded) -> None:
    model, tokenizer = loaded
    context = tokenizer("the river")["input_ids"]
    with torch.inference_mode():
        first = int(model(torch.tensor([context])).logits[0, -1].argmax())
        second = int(model(torch.tensor([[*context, first]])).logits[0, -1].argmax())
    lm = SharedContextLM(model, tokenizer, 4)
    asked: list[Any] = [(None, context, tokens) for tokens in ([first, second], [first, second + 1], [first])]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(asked)] == [True, False, True]


def test_a_sliding_window_is_left_to_stock(make_model: Callable[..., Path]) -> None:
    path = make_model("mistral", sliding_window=8)
    model, tokenizer = load_model(path), load_tokenizer(path)
    asked = requests(tokenizer)[:7]
    stock = HFLM(model, tokenizer=tokenizer, batch_size=2)._loglikelihood_tokens(asked, disable_tqdm=True)
    ours = SharedContextLM(model, tokenizer, 2)._loglikelihood_tokens(asked)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], abs=2e-4)


def test_every_packaged_task_runs_offline(loaded: Loaded, benchmarks: Path, tmp_path: Path) -> None:
    progress: list[tuple[float, float, str]] = []
    run = run_tasks(
        *loaded,
        Evaluate(tasks=tuple(PACKAGED), rows=5),
        tmp_path / "out",
        benchmarks,
        progress=lambda done, total, unit, **_: progress.append((done, total, unit)),
    )
    assert set(run.tasks) == set(PACKAGED)
    chances = {"arc_easy": 0.25, "hellaswag": 0.25, "piqa": 0.5, "boolq": 0.5, "winogrande": 0.5, "copa": 0.5}
    for task, score in run.tasks.items():
        assert (score.n, score.n_total) == (5, 12)
        assert score.metric == ("acc_norm" if task in {"hellaswag", "arc_challenge", "openbookqa"} else "acc")
        assert 0 <= score.value <= 1
        assert score.stderr is not None
        assert score.higher_is_better
        assert score.chance == pytest.approx(chances.get(task, 0.25))
        samples = read_samples(tmp_path / "out", task)
        assert [sample["doc_id"] for sample in samples] == choose_rows(task, 12, 5, 1234)
        assert sum(sample[score.metric] for sample in samples) / 5 == pytest.approx(score.value)
    assert progress[-1][0] == progress[-1][1]
    assert progress[-1][2] == "requests"


def test_two_runs_write_the_same_bytes_and_nothing_of_this_machine(
    loaded: Loaded, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(benchmarks.parent)
    relative = Path(benchmarks.name)
    config = Evaluate(tasks=("piqa", "winogrande", "hellaswag"), rows=4, dtype="bfloat16")
    home = Path("data/evaluation/dense/lm_eval")
    for name in ("one", "two"):
        run_tasks(*loaded, config, tmp_path / name, relative, "data/raw/model", home)
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert [str(file) for file in files] == [
        "results.json",
        "samples.json",
        *(f"samples_{task}.jsonl" for task in ("hellaswag", "piqa", "winogrande")),
        *(f"tasks/{task}.yaml" for task in ("hellaswag", "piqa", "winogrande")),
    ]
    for file in files:
        text = (tmp_path / "one" / file).read_bytes()
        assert text == (tmp_path / "two" / file).read_bytes()
        for trace in (str(tmp_path), str(benchmarks.parent), sys.prefix, str(Path.cwd())):
            assert trace.encode() not in text
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert not {"date", "git_hash", "pretty_env_info", "upper_git_hash", "total_evaluation_time_seconds"} & set(results)
    assert results["config"]["model_args"] == "pretrained=data/raw/model,dtype=bfloat16,softmax_dtype=float32"
    assert results["n-samples"]["piqa"] == {"original": 12, "effective": 4}
    assert results["configs"]["piqa"]["metadata"]["config_source"] == "piqa.yaml"
    assert results["lm_eval_version"] == "0.4.13"


def test_all_variants_answer_the_same_rows(make_model: Callable[..., Path], benchmarks: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        path = make_model(seed=seed, intermediate_size=32 * seed)
        run_tasks(
            load_model(path), load_tokenizer(path), Evaluate(tasks=("sciq",), rows=5), tmp_path / str(seed), benchmarks
        )
    one, two = (read_samples(tmp_path / str(seed), "sciq") for seed in (1, 2))
    for key in ("doc_id", "doc_hash", "prompt_hash", "target_hash"):
        assert [sample[key] for sample in one] == [sample[key] for sample in two]
    assert [sample["resps"] for sample in one] != [sample["resps"] for sample in two]


def test_rows_0_takes_all_and_needs_no_samples(loaded: Loaded, benchmarks: Path, tmp_path: Path) -> None:
    run = run_tasks(*loaded, Evaluate(tasks=("copa",), rows=0), tmp_path / "out", benchmarks)
    assert (run.tasks["copa"].n, run.tasks["copa"].n_total) == (12, 12)
    assert "--samples" not in run.command
    assert not (tmp_path / "out" / "samples.json").exists()


def test_few_shot_examples_and_chat_template_reach_the_prompt(loaded: Loaded, benchmarks: Path, tmp_path: Path) -> None:
    config = Evaluate(tasks=("piqa",), rows=2, num_fewshot=1, apply_chat_template=True)
    run = run_tasks(*loaded, config, tmp_path / "out", benchmarks)
    for sample in read_samples(tmp_path / "out", "piqa"):
        prompt = sample["arguments"]["gen_args_0"]["arg_0"]
        assert prompt.count("<|user|>Question: ") == 2
        assert prompt.endswith("<|assistant|>")
        assert prompt.count(sample["doc"]["goal"]) == 1  # the row is not its own example
    assert "--num_fewshot 1 --apply_chat_template" in run.command


def test_a_task_of_ones_own_runs_with_its_own_settings(loaded: Loaded, benchmarks: Path, tmp_path: Path) -> None:
    definitions = tmp_path / "definitions"
    definitions.mkdir()
    (definitions / "mine.yaml").write_text(
        "task: mine\ndataset_path: arrow\noutput_type: generate_until\nvalidation_split: validation\n"
        f"dataset_kwargs: {{data_files: {{validation: {benchmarks / 'piqa.arrow'}}}}}\n"
        "doc_to_text: '{{goal}}'\ndoc_to_target: '{{sol1}}'\n"
        "generation_kwargs: {max_gen_toks: 4, until: ['.'], do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {version: 3.0}\n"
    )
    config = Evaluate(tasks=("mine",), rows=3, include_path=str(definitions))
    run = run_tasks(*loaded, config, tmp_path / "out", benchmarks)
    score = run.tasks["mine"]
    assert (score.metric, score.n, score.n_total, score.version, score.chance) == ("exact_match", 3, 12, 3.0, 0.0)
    assert (
        f"--tasks mine --batch_size 8 --samples {tmp_path}/out/samples.json --include_path {definitions}" in run.command
    )


def test_rows_that_are_not_packaged_are_asked_of_the_hub_in_vain(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text("task: far\ndataset_path: nobody/far\noutput_type: multiple_choice\n")
    with pytest.raises(SourceError, match=r"the rows of 'far' are not to be had \(.*nobody/far.*Choose packaged tasks"):
        run_tasks(*loaded, Evaluate(tasks=("far",), include_path=str(tmp_path)), tmp_path / "out", tmp_path / "nothing")


def test_a_task_that_runs_code_is_refused(loaded: Loaded, benchmarks: Path, tmp_path: Path) -> None:
    (tmp_path / "unsafe.yaml").write_text(
        "task: unsafe\ndataset_path: arrow\noutput_type: multiple_choice\nvalidation_split: validation\n"
        f"dataset_kwargs: {{data_files: {{validation: {benchmarks / 'piqa.arrow'}}}}}\nunsafe_code: true\n"
        "doc_to_text: '{{goal}}'\ndoc_to_target: label\ndoc_to_choice: '{{[sol1, sol2]}}'\n"
    )
    with pytest.raises(ConfigError, match=r"lm-eval refuses: .*unsafe"):
        run_tasks(
            *loaded, Evaluate(tasks=("unsafe",), rows=2, include_path=str(tmp_path)), tmp_path / "out", benchmarks
        )


@pytest.mark.slow
def test_the_printed_command_repeats_the_scores(tiny_llama_dir: Path, benchmarks: Path, tmp_path: Path) -> None:
    """lm_eval's own command line, in a process of its own, with stock HFLM."""
    config = Evaluate(tasks=("hellaswag", "winogrande"), rows=5, dtype="float32")
    model, tokenizer = load_model(tiny_llama_dir), load_tokenizer(tiny_llama_dir)
    run = run_tasks(model, tokenizer, config, tmp_path / "out", benchmarks, str(tiny_llama_dir))
    command = shlex.split(run.command)
    assert command[0] == "lm_eval"
    program = [sys.executable, "-m", *command, "--output_path", str(tmp_path / "again"), "--log_samples"]
    subprocess.run(program, check=True, cwd=tmp_path, capture_output=True)
    again = json.loads(next((tmp_path / "again").rglob("results_*.json")).read_text())
    ours = json.loads((tmp_path / "out" / "results.json").read_text())
    for task in config.tasks:
        assert again["results"][task] == pytest.approx(ours["results"][task])
        assert again["n-samples"][task] == ours["n-samples"][task]
        assert again["task_hashes"][task] == ours["task_hashes"][task]
    assert set(ours) <= set(again)
    theirs = next((tmp_path / "again").rglob("samples_hellaswag_*.jsonl")).read_text().splitlines()
    for mine, stock in zip(read_samples(tmp_path / "out", "hellaswag"), map(json.loads, theirs), strict=True):
        assert set(mine) == set(stock)
        assert mine["doc_id"] == stock["doc_id"]
        assert mine["arguments"] == stock["arguments"]
        assert mine["acc_norm"] == stock["acc_norm"]


def read_samples(out: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"samples_{task}.jsonl").read_text().splitlines()]
