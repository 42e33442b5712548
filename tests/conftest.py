"""Shared by all tests: tiny random models, small texts, a Prefect server; offline, nothing left for the next test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Or every child compiles this repository's modules anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "true",
    "TOKENIZERS_PARALLELISM": "false",
}

# What takes long to import is imported where it is used: the process that only hands out tests needs none of it
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NO_GPU = "no CUDA device"
"""Begins the reason of a skip that is none of the environment's faults: tests/unit/distillation/test_cuda.py."""

_ENVIRONMENT = dict(os.environ)

# Started in the background by a shell, this process and so its children would ignore Ctrl-C, which tests send
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Modules with flows set Prefect's home and more as they are imported; each test's checkout has its own."""
    _restore(_ENVIRONMENT)


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: two more than there are cores, since half of the time is waiting for servers; at most six."""
    return min(6, len(os.sched_getaffinity(0)) + 2)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With SPARSEKD_NO_SKIPS set, as in CI, a skipped test is a failure: it means that something is not installed.

    Except a GPU, which cannot be: what was not tested for want of one is said in any case.
    """
    skipped = terminalreporter.stats.get("skipped", [])
    missing = [report for report in skipped if NO_GPU not in str(report.longrepr[-1])]
    if len(missing) < len(skipped):
        terminalreporter.line(f"{len(skipped) - len(missing)} tests need CUDA devices and were skipped", yellow=True)
    if os.environ.get("SPARSEKD_NO_SKIPS") and missing:
        for report in missing:
            terminalreporter.line(f"skipped: {report.nodeid}: {report.longrepr[-1]}", red=True)
        pytest.exit("tests were skipped although SPARSEKD_NO_SKIPS is set", returncode=1)


@pytest.fixture(autouse=True, scope="module")
def _environment_of_the_module() -> Iterator[None]:
    """What a module's fixtures and a flow that runs in this process leave in os.environ reaches no other module."""
    with _kept_environment():
        yield


@pytest.fixture(autouse=True)
def _environment_of_the_test() -> Iterator[None]:
    """Nor does what a test leaves reach the next one."""
    with _kept_environment():
        yield


@contextlib.contextmanager
def _kept_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        _restore(before)


def _restore(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """Tiny models are faster on one thread, and the tests' bits do not depend on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the tests' own sentences, with a chat template."""
    from tests.tiny_models import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Write a tiny random stock checkpoint of a family and return its directory; arguments as of `write_model`."""
    from tests.tiny_models import write_model

    def make(model_type: str = "llama", **changes: Any) -> Path:
        return write_model(tmp_path_factory.mktemp(model_type) / "model", tokenizer, model_type, **changes)

    return make


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server for one module's tests: a run that starts its own takes 8 s longer.

    Not for all tests of a process: idle it takes 2 % of a core, and its start 4 CPU-seconds.
    """
    from flows.server.servers import free_port, start_prefect
    from tests.databases import copy_prefect_database

    root = tmp_path_factory.mktemp("prefect")
    copy_prefect_database(root)
    server = start_prefect(root, free_port(), ui=False)
    try:
        server.wait_until_ready("/api/health")
        yield f"{server.url}/api"
    finally:
        server.end()


@pytest.fixture(scope="session")
def tiny_llama_dir(make_model: Callable[..., Path]) -> Path:
    """A tiny random Llama checkpoint with tied embeddings; read only."""
    return make_model("llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 80 documents."""
    from tests.tiny_models import make_documents

    file = tmp_path_factory.mktemp("texts") / "sentences.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_documents(80, seed=1)))
    return file
