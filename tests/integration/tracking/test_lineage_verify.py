"""`sparsekd lineage --verify`: a chain that holds, and each kind of link broken, found and named as the first."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.workspaces.workspace import experiments
from sparsekd.artifacts import Artifact
from tasks.lineage.repository import CommitTree
from tasks.track import track
from tests.traced_project import EDITED, Traced, first_difference, lineage, one_byte, replaced, values
from tests.tracked_project import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),  # MLflow's, at its import
]
Break = Callable[[Traced], contextlib.AbstractContextManager[Any]]


@pytest.mark.parametrize("run", ["half", "plain"])
def test_a_chain_that_holds_is_one_line(traced: Traced, run: str) -> None:
    name = getattr(traced, run)
    result = lineage(name, "--verify")
    assert result.exit_code == 0, result.output
    match = re.search(r"^verified: every link holds \((\d+) files, [\d.]+ kB hashed in \d+ s\)$", result.stdout, re.M)
    assert match
    verification = values(name, "--verify")["verification"]
    assert verification["ok"] is True
    assert verification["difference"] is None
    assert verification["files"] == int(match[1])
    outs = {o["path"]: o for stage in traced.lock(name).values() for o in stage["outs"]}
    assert verification["bytes"] > sum(o["size"] for o in outs.values())


@pytest.mark.parametrize(
    ("damage", "link", "place", "kind"),
    [
        (
            lambda t: one_byte(t.registered("1", "model/model.safetensors")),
            "registry version",
            "model/model.safetensors of tiny/1",
            "different",
        ),
        (lambda t: one_byte(t.registered("1", "model/config.json")), "registry version", "config.json", "different"),
        (lambda t: one_byte(t.registered("1", "model/README.md")), "registry version", "README.md", "different"),
        (
            lambda t: one_byte(t.registered("1", "components/tokenizer/tokenizer.json")),
            "registry version",
            "components/tokenizer/tokenizer.json",
            "different",
        ),
        (lambda t: replaced(t.registered("1", "model/new.py"), b"x"), "registry version", "model/new.py", "different"),
        (
            lambda t: replaced(t.registered("1", "model/model.safetensors"), None),
            "registry version",
            "model.safetensors",
            "missing",
        ),
        (lambda t: moved(t.registered("1", "")), "registry version", "artifacts/model", "missing"),
        (lambda t: t.tags(t.half, model__version="9"), "registry version", "tiny/9", "missing"),
        (lambda t: t.tags(t.half, git__commit="0" * 40), "registry version", "tag git.commit of tiny/1", "different"),
        (lambda t: t.experiment_at(None), "experiment and commit", "experiment half", "missing"),
        (lambda t: one_byte(t.artifact(t.half, "dvc.lock")), "dvc.lock", "artifact dvc.lock of run", "different"),
        (
            lambda t: replaced(t.artifact(t.half, "dvc.lock"), b"{"),
            "dvc.lock",
            "artifact dvc.lock of run",
            "different",
        ),
        (
            lambda t: one_byte(t.cached(t.half, "data/raw/texts", "wiki.jsonl")),
            "texts",
            "data/raw/texts/wiki.jsonl",
            "different",
        ),
        (
            lambda t: one_byte(t.cached(t.half, "data/raw/model", "data")),
            "source model",
            "data/raw/model/data",
            "different",
        ),
        (
            lambda t: one_byte(t.cached(t.half, "data/teacher", "data")),
            "dvc.lock",
            "data/teacher/data (object ",
            "different",
        ),
        (lambda t: one_byte(t.cached(t.half, "data/pruned", "")), "dvc.lock", "data/pruned (object ", "different"),
        (
            lambda t: one_byte(t.cached(t.half, "data/pruned", "manifest.json")),
            "dvc.lock",
            "pruned/manifest",
            "different",
        ),
        (
            lambda t: replaced(t.cached(t.half, "data/raw/benchmarks", "arc_easy.arrow"), None),
            "benchmarks",
            "arc_easy.arrow",
            "missing",
        ),
        (
            lambda t: one_byte(t.artifact(t.half, "manifests/calibration.json")),
            "manifests",
            "artifact manifests/calibration.json",
            "different",
        ),
        (lambda t: edited_commit(t, EDITED), "code", f"{EDITED} in commit", "different"),
        (lambda t: edited_commit(t, "sparsekd/report/kept/.hidden"), "code", "sparsekd/report in commit", "different"),
        (lambda t: edited_commit(t, "requirements.lock"), "libraries", "requirements.lock in commit", "different"),
    ],
)
def test_the_first_link_that_does_not_hold_is_named(
    traced: Traced, damage: Break, link: str, place: str, kind: str
) -> None:
    with damage(traced):
        result = lineage("half", "--verify")
        first = values("half", "--verify")["verification"]["difference"]
    assert result.exit_code == 1, result.output
    assert (first["link"], first["kind"]) == (link, kind)
    assert place in first["place"]
    assert (first["found"] is None) == (kind == "missing")
    block = result.stdout.split("NOT VERIFIED")[1]
    assert block.startswith(f", first at link: {link} ({kind})\n")
    assert re.search(r"place .*\n +recorded .*\n +found .*\n +meaning .{40,}\n +before it +\d+ files", block), block
    if link in {"benchmarks", "dvc.lock", "texts", "source model"} and "object" in first["place"]:
        assert "`dvc pull`" in first["meaning"]
    assert lineage("half", "--verify").exit_code == 0, "and it holds again"


def test_no_byte_of_what_mlflow_keeps_can_change_unseen(traced: Traced) -> None:
    """Nor does any end in a traceback, whatever comes of YAML and JSON."""
    draw = random.Random(0)
    files = [traced.artifact(traced.half, "dvc.lock")] * 8
    files += sorted(traced.artifact(traced.half, "manifests").glob("*.json"))
    for _ in range(60):
        file = draw.choice(files)
        content = bytearray(file.read_bytes())
        at = draw.randrange(len(content))
        content[at] = draw.choice([byte for byte in b"[]{}:,\"'\n 0x-#!~&*" if byte != content[at]])
        with replaced(file, bytes(content)):
            result = lineage(traced.half, "--verify")
        assert result.exit_code == 1, (file.name, at, result.output)
        assert (
            "NOT VERIFIED, first at link: " + ("dvc.lock" if file.name == "dvc.lock" else "manifests") in result.stdout
        )


@contextlib.contextmanager
def moved(folder: Path) -> Iterator[None]:
    aside = folder.with_name("aside")
    folder.rename(aside)
    try:
        yield
    finally:
        aside.rename(folder)


def edited_commit(traced: Traced, path: str) -> contextlib.AbstractContextManager[None]:
    kept = experiments(traced.root)["half"]
    return traced.experiment_at(traced.commit_with(str(kept.overlay), path, "# another\n"))


# Deeper: every hash above is made to fit, so that only the link in question is wrong


def test_an_output_of_another_run_is_found(traced: Traced) -> None:
    manifest = "manifests/distilled.json"
    theirs = traced.artifact(traced.half, manifest).read_bytes()
    with mixed(traced, "    outs:\n"), replaced(traced.artifact(traced.plain, manifest), theirs):
        first = first_difference(traced.plain)
    assert first["link"] == "manifests"
    assert first["place"] == "data/pruned, as the manifest of data/distilled names its input"
    assert first["found"] != first["recorded"]


def test_a_stage_that_read_another_output_is_found(traced: Traced) -> None:
    with mixed(traced, "    cmd: python -m tasks.benchmark\n    deps:\n"):
        first = first_difference(traced.plain)
    assert first["link"] == "dvc.lock"
    assert first["place"] == "data/distilled, which stage benchmark read"
    assert first["recorded"] == traced.out(traced.half, "data/distilled")
    assert first["found"] == traced.out(traced.plain, "data/distilled")


def mixed(traced: Traced, before: str) -> contextlib.AbstractContextManager[None]:
    """dvc.lock of `plain` with the distilled model of `half` in the entry that follows `before`."""
    entry = f"{before}    - path: data/distilled\n      hash: md5\n      md5: "
    own, other = (traced.out(run, "data/distilled") for run in (traced.plain, traced.half))
    return traced.forged_lock(entry + own, entry + other)


def test_an_output_that_is_not_what_its_manifest_says_is_found(traced: Traced) -> None:
    digest, place = forged_output(traced, "data/report", "index.html", b"<html>forged")
    with traced.forged_lock(traced.out(traced.plain, "data/report"), digest):
        first = first_difference(traced.plain)
    assert (first["link"], first["place"]) == ("manifests", "data/report/index.html")
    assert first["recorded"] == f"sha256 {place}"


def forged_output(traced: Traced, out: str, name: str, content: bytes) -> tuple[str, str]:
    """Put an output with one other file into the cache, consistently; its md5, and the sha256 that the manifest has."""
    listing = json.loads(traced.object(traced.out(traced.plain, out)).read_text())
    for entry in listing:
        if entry["relpath"] == name:
            entry["md5"] = hashlib.md5(content).hexdigest()
            add(traced, entry["md5"], content)
    text = json.dumps(listing, sort_keys=True).encode()
    digest = hashlib.md5(text).hexdigest() + ".dir"
    add(traced, digest, text)
    return digest, Artifact.read(traced.root / out, verify=False).manifest.files[name].sha256


def add(traced: Traced, digest: str, content: bytes) -> None:
    path = traced.object(digest)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def test_a_version_of_another_model_is_found(traced: Traced) -> None:
    with traced.tags(traced.plain, model__version="1"):
        first = first_difference(traced.plain)
    assert first["link"] == "registry version"
    assert first["place"] == "model.safetensors of tiny/1"
    assert first["meaning"].startswith("The version agrees with its own tags but is not the model that this run made")
    assert "`dvc checkout` with the run's dvc.lock in place" in first["meaning"], "it is no experiment to restore"
    with one_byte(traced.registered("1", "model/model.safetensors")):
        assert "`sparsekd restore half --out DIR`" in first_difference("half")["meaning"]


def test_libraries_that_the_commit_does_not_pin_are_found(traced: Traced) -> None:
    base = str(traced.store.get_run(traced.plain).data.tags["git.commit"])
    pins = str((CommitTree(traced.root, base).read("requirements.lock") or b"").decode())
    other = re.sub(r"^tokenizers==.*? ", "tokenizers==0.0.1 ", pins, flags=re.MULTILINE)
    commit = traced.commit_with(base, "requirements.lock", other)
    old = traced.dependency(traced.plain, "requirements.lock")
    with traced.forged_lock(old, hashlib.md5(other.encode()).hexdigest(), git__commit=commit):
        first = first_difference(traced.plain)
    assert first["link"] == "libraries"
    assert first["place"].startswith("tokenizers, as the manifests of fetch-model, ")
    assert first["recorded"] == f"{traced.versions['tokenizers']}, which ran"
    assert first["found"] == f"0.0.1, which commit {commit} pins"


def test_a_commit_that_is_elsewhere_is_missing(traced: Traced) -> None:
    with traced.tags(traced.plain, "2", git__commit="f" * 40):
        assert values(traced.plain)["experiment"]["commit_in_repository"] is False
        first = first_difference(traced.plain)
    assert (first["link"], first["kind"], first["place"]) == ("experiment and commit", "missing", f"commit {'f' * 40}")
    assert "`git fetch`" in first["meaning"]


def test_code_that_was_never_committed_is_said_to_be_lost(traced: Traced) -> None:
    """A run in the checkout with uncommitted code: the hashes of half's lock, without its experiment."""
    lock = traced.artifact(traced.plain, "dvc.lock").read_text()
    own, edited = traced.dependency(traced.plain, EDITED), traced.dependency(traced.half, EDITED)
    assert own in lock
    with traced.forged_lock(own, edited, git__dirty="true"):
        first = first_difference(traced.plain)
    assert first["link"] == "code"
    assert first["place"].startswith(f"{EDITED} in commit")
    assert "made from uncommitted changes, and nothing has kept them" in first["meaning"]


def test_an_experiment_whose_name_a_later_run_took_is_not_believed(traced: Traced) -> None:
    kept = experiments(traced.root)["half"]
    lock = yaml.safe_dump({"schema": "2.0", "stages": {}})
    with traced.experiment_at(traced.commit_with(str(kept.overlay), "dvc.lock", lock)):
        found = values("half")
    assert found["experiment"]["in_repository"] is False
    assert "another dvc.lock: a later run took its name" in found["notes"][0]


def test_a_lost_lock_is_taken_from_where_its_hash_is_right(traced: Traced) -> None:
    with replaced(traced.artifact(traced.half, "dvc.lock"), None):
        found = values("half", "--verify")
    assert found["dvc_lock"]["place"] == f"dvc.lock of commit {experiments(traced.root)['half'].overlay}"
    assert found["verification"]["ok"] is True
    with replaced(traced.artifact(traced.plain, "dvc.lock"), None):
        assert values(traced.plain)["dvc_lock"]["place"] == "dvc.lock of this checkout"
        with replaced(traced.root / "dvc.lock", None):
            first = first_difference(traced.plain)
    assert (first["link"], first["kind"]) == ("dvc.lock", "missing")


def test_other_versions_here_are_noted_and_no_failure(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9" if name == "numpy" else version(name))
    result = lineage("half", "--verify")
    assert result.exit_code == 0, result.output
    assert f"note: Installed here is otherwise: numpy 9.9 (ran with {traced.versions['numpy']})" in result.stdout


# Through a server that keeps the files itself


def test_through_a_server_files_are_fetched_and_verified(
    server: Server, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "uploaded")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    result = track(traced.root, "flow-served")
    assert result.run_id, result.warning
    found = values("tiny", "--verify")
    assert found["mlflow_run"]["artifacts"].startswith("mlflow-artifacts:")
    assert found["verification"]["ok"] is True, found["verification"]
    assert values(str(result.run_id)[:8])["mlflow_run"]["id"] == result.run_id
    [weights] = (server.project.root / "mlflow").rglob("model.safetensors")
    with one_byte(weights):
        first = first_difference("tiny")
    assert (first["link"], first["kind"]) == ("registry version", "different")
    with replaced(weights, None):
        assert first_difference("tiny")["kind"] == "missing"
