"""What a source names, and which revision is meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparsekd.errors import ConfigError, SourceError
from sparsekd.sources.reference import Reference, parse_source, wanted_revision

KNOWN = ("smollm2-135m-instruct-q4_1", "wiki")
COMMIT, HASH = "c" * 40, "0" * 64


def parse(source: str) -> Reference:
    return parse_source(source, "model.source", KNOWN, (".jsonl", ".txt"))


@pytest.mark.parametrize(
    ("source", "kind", "name", "config", "revision"),
    [
        ("wiki", "catalogue", "wiki", None, None),
        ("Qwen/Qwen3-0.6B", "hub", "Qwen/Qwen3-0.6B", None, None),
        ("hf:Qwen/Qwen3-0.6B@v1.0", "hub", "Qwen/Qwen3-0.6B", None, "v1.0"),
        ("hf:gpt2", "hub", "gpt2", None, None),
        ("Salesforce/wikitext:wikitext-2-raw-v1@main", "hub", "Salesforce/wikitext", "wikitext-2-raw-v1", "main"),
        ("file:models/mine", "local", "models/mine", None, None),
        ("./mine", "local", "./mine", None, None),
        ("/models/mine", "local", "/models/mine", None, None),
        ("~/mine", "local", "~/mine", None, None),
        ("talks/one.jsonl", "local", "talks/one.jsonl", None, None),
    ],
)
def test_a_source_is_told_by_its_form(
    source: str, kind: str, name: str, config: str | None, revision: str | None
) -> None:
    found = parse(source)
    assert (found.kind, found.name, found.config, found.revision) == (kind, name, config, revision)
    assert found.source == source.partition("@")[0]


def test_an_existing_directory_comes_before_the_hub_and_after_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "wiki").mkdir()
    assert parse("owner/name").kind == "local"
    assert parse("hf:owner/name").kind == "hub"
    assert parse("wiki").kind == "catalogue"
    assert parse("file:wiki").kind == "local"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(SourceError, match=r"model.source is 'smollm2'.* Did you mean smollm2-135m-instruct-q4_1\?"):
        parse("smollm2")
    with pytest.raises(SourceError, match="The catalogue has smollm2-135m-instruct-q4_1, wiki"):
        parse("???")
    with pytest.raises(SourceError, match="hf:owner/name"):
        parse("hf:a/b/c")


def test_a_revision_of_another_kind_of_source_is_passed_over() -> None:
    hub, local = parse("owner/name"), parse("./mine")
    assert wanted_revision(hub, HASH, "model.source") is None
    assert wanted_revision(hub, "main", "model.source") == "main"
    assert wanted_revision(local, COMMIT, "model.source") is None
    assert wanted_revision(local, HASH, "model.source") == HASH


def test_revisions_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="asks for revision v1 and the revision setting beside it for v2"):
        wanted_revision(parse("owner/name@v1"), "v2", "model.source")
    with pytest.raises(ConfigError, match="not on the hub and has no branches"):
        wanted_revision(parse("wiki"), "main", "texts.sources")


def test_resolving_the_catalogue_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sparsekd.sources import model_config, packaged_tasks, resolve_model, resolve_text; "
        "name = 'smollm2-135m-instruct-q4_1'; resolve_model(name); model_config(name); resolve_text('wiki'); "
        "packaged_tasks(); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
