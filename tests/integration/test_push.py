"""`sparsekd push`: the hub's own client against a stand-in that takes files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sparsekd.artifacts import writing
from sparsekd.report.inputs import ReportInputs
from sparsekd.report.summarise import summarise
from sparsekd.sources.upload import prepare
from tests.hub_server import WRITER, HubServer
from tests.made_up_run import SOURCE, MadeUpRun

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path, tiny_llama_dir):
    """data/ of a run: a real checkpoint, a report and an export of it."""
    return lay_out(tmp_path / "data", tiny_llama_dir)


def lay_out(data, model, source=SOURCE):
    with writing(data / "distilled", "distill", {}, {}) as draft:
        shutil.copytree(model, draft.path, dirs_exist_ok=True)
    made = {"data/distilled": digest(data / "distilled")}
    with writing(data / "report", "report", {}, made) as draft:
        summary = summarise(ReportInputs.read(MadeUpRun(data.parent / "made", source=source).write()))
        (draft.path / "summary.json").write_text(summary.to_json())
        (draft.path / "index.html").write_text("<!doctype html>")
        (draft.path / "README.md").write_text("---\nlibrary_name: transformers\n---\n# Small\n")
    with writing(data / "export", "export", {}, made) as draft:
        (draft.path / "model-q8_0.gguf").write_bytes(b"GGUF of a model")
    return data


def digest(artifact):
    from sparsekd.artifacts import Artifact

    return Artifact.read(artifact).manifest.sha256()


@pytest.fixture
def hub():
    with HubServer({}) as server:
        yield server


def push(data, *arguments, endpoint="http://127.0.0.1:9", token: str | None = WRITER):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(data.parent / "hf"),
        "HF_HUB_DISABLE_XET": "1",  # the stand-in speaks the older protocol of large files
        "PYTHONPATH": str(ROOT),
        **({"HF_TOKEN": token} if token else {}),
    }
    command = [sys.executable, "-m", "flows", "push", "me/small", *arguments]
    return subprocess.run(command, cwd=data.parent, env=environment, capture_output=True, text=True, check=False)


def test_without_yes_it_says_what_would_be_sent(data, hub):
    done = push(data, endpoint=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    for name in ("config.json", "model.safetensors", "README.md", "report/index.html", "model-q8_0.gguf"):
        assert name in done.stdout
    assert "private if it is new" in done.stdout
    assert "Licence: Apache-2.0." in done.stdout
    assert "Nothing was sent" in done.stdout


def test_what_arrives_is_what_was_there_and_loads(data, hub, tmp_path):
    done = push(data, "--yes", endpoint=hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert hub.created["models/me/small"]["visibility"] == "private"
    repo = hub.repos["models/me/small"]
    assert f"{hub.endpoint}/me/small/commit/{repo.commit}" in done.stdout
    assert repo.files == {name: path.read_bytes() for name, path in expected(data).files.items()}
    assert "manifest.json" not in repo.files, "it tells paths of this machine"
    for name, content in repo.files.items():
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(content)
    AutoModelForCausalLM.from_pretrained(tmp_path / "got")
    assert (tmp_path / "got/README.md").read_text() == (data / "report/README.md").read_text()


def expected(data):
    return prepare("me/small", data / "distilled", data / "report", data / "export")


def test_an_upload_that_was_cut_off_publishes_nothing_and_goes_on(data, hub):
    hub.failing = True
    done = push(data, "--yes", endpoint=hub.endpoint)
    assert done.returncode == 2
    assert "Nothing of this was published in me/small" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.repos["models/me/small"].files == {}
    hub.failing = False
    assert push(data, "--yes", "--public", endpoint=hub.endpoint).returncode == 0
    assert "model.safetensors" in hub.repos["models/me/small"].files


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        (["--yes"], None, "set HF_TOKEN"),
        (["--yes"], "hf_reader", "does not let this token write to me/small"),
        (["--folder", "nowhere"], WRITER, "there is no such directory"),
    ],
)
def test_what_cannot_be_is_one_sentence(data, hub, arguments, token, said):
    done = push(data, *arguments, endpoint=hub.endpoint, token=token)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.repos == {}


def test_a_hub_out_of_reach_is_one_sentence(data):
    done = push(data, "--yes")
    assert done.returncode == 2
    assert "The hub cannot be reached" in done.stderr


def test_damaged_weights_are_not_sent(data, hub):
    weights = data / "distilled/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    done = push(data, "--yes", endpoint=hub.endpoint)
    assert done.returncode == 2
    assert "is not what" in done.stderr
    assert hub.requests == []


def test_weights_that_are_no_numbers_are_not_sent(tmp_path, tiny_llama_dir, hub):
    model = shutil.copytree(tiny_llama_dir, tmp_path / "nan")
    tensors = load_file(model / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    done = push(lay_out(tmp_path / "data", model), "--yes", endpoint=hub.endpoint)
    assert done.returncode == 2
    assert "NaN" in done.stderr
    assert hub.repos == {}


def test_a_report_of_another_checkpoint_is_not_sent(data, tmp_path, tiny_llama_dir):
    with writing(data / "distilled", "distill", {"distill": {"alpha": 1.0}}, {}) as draft:
        shutil.copytree(tiny_llama_dir, draft.path, dirs_exist_ok=True)
    done = push(data)
    assert done.returncode == 2
    assert "is not of the checkpoint" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--no-report"]])
def test_a_model_whose_terms_bind_the_receiver_is_not_sent(tmp_path, tiny_llama_dir, arguments):
    source = SOURCE | {"name": "gemma3-270m-q4_k_m", "kind": "catalogue", "licence": "gemma"}
    done = push(lay_out(tmp_path / "data", tiny_llama_dir, source), *arguments)
    assert done.returncode == 2
    assert "Gemma Terms of Use" in done.stderr


def test_a_name_that_is_none(data):
    from sparsekd.errors import ConfigError

    with pytest.raises(ConfigError, match="must be owner/name"):
        prepare("small", data / "distilled")
