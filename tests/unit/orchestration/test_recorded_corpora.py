"""Records of versions: what a DVC file says, which is newest, what another run's tree gets."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.settings import params, versions
from flows.workspaces.commands import git
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError
from sparsekd.settings import parse_config
from tasks.corpora import own_corpora, recorded

A, B, C = "a" * 64, "b" * 64, "c" * 64


def record(root: Path, name: str, revision: str, added: str, **facts: Any) -> Path:
    folder = root / "data" / "corpora" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{revision[:12]}.jsonl.dvc"
    values = {
        "outs": [{"md5": revision[:32], "size": 7, "hash": "md5", "path": f"{revision[:12]}.jsonl"}],
        "meta": {"sparsekd": {"revision": revision, "added": added, "documents": 1, **facts}, "theirs": 1},
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def checkouts(tmp_path: Path) -> tuple[Path, Path]:
    """A checkout with two versions of `talks` and one of `mails`, and a workspace of it that has the older talks."""
    home, root = tmp_path / "home", tmp_path / "workspace"
    for place in (home, root):
        place.mkdir()
        git(place, "init", "-q", ".")
        record(place, "talks", A, "2026-01-01T00:00:00Z")
    record(home, "talks", B, "2026-01-02T00:00:00Z")
    record(home, "mails", C, "2026-01-03T00:00:00Z")
    return home, root


def using(*sources: str, revisions: list[str] | None = None) -> RunConfig:
    return parse_config({"texts": {"sources": list(sources), "revisions": revisions}})


def test_versions_are_newest_first_and_other_dvc_files_are_passed_over(checkouts: tuple[Path, Path]) -> None:
    home, _ = checkouts
    (home / "data/corpora/talks/killed.jsonl.dvc").write_text("outs:\n- md5: 0\n  path: killed.jsonl\n")
    (home / "data/corpora/other.dvc").write_text("outs: []\n")
    found = recorded(home)
    assert {name: [v.revision for v in of] for name, of in found.items()} == {"talks": [B, A], "mails": [C]}
    newest = found["talks"][0]
    assert (newest.short, newest.bytes, newest.facts) == ("b" * 12, 7, {"documents": 1})
    assert newest.record.as_posix() == "data/corpora/talks/bbbbbbbbbbbb.jsonl.dvc"
    [own, _] = own_corpora(home)["talks"]
    assert own.place is None
    (home / newest.file).write_text("checked out")
    assert own.place == home / newest.file
    kept = home / ".dvc/cache/files/md5/bb" / ("b" * 30)
    kept.parent.mkdir(parents=True)
    kept.write_text("cached")
    assert own.place == kept
    assert own_corpora(home)["mails"][0].remedy.endswith("`dvc pull data/corpora/mails/cccccccccccc.jsonl.dvc`")


@pytest.mark.parametrize(
    "text",
    ["<<<<<<< HEAD\n", "meta: {sparsekd: {revision: x}}\n", "[]\n", "meta: {sparsekd: 1}\nouts: []\n"],
)
def test_a_damaged_record_is_named(checkouts: tuple[Path, Path], text: str) -> None:
    path = checkouts[0] / "data/corpora/talks" / f"{'b' * 12}.jsonl.dvc"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))} is no record of a corpus that can be read"):
        recorded(checkouts[0])


def test_a_run_that_is_pinned_is_told_of_a_newer_version(checkouts: tuple[Path, Path]) -> None:
    home, _ = checkouts
    assert versions.newer(home, using("talks", "wiki", revisions=[B, C])) == []
    [line] = versions.newer(home, using("talks", revisions=[A]))
    assert line == (
        f"talks: version {A[:12]} is used, as params.yaml says; {B[:12]} is newer, and `--texts talks` takes it."
    )


def test_naming_a_corpus_asks_for_its_newest_version() -> None:
    pinned = using("talks", "me/hub", revisions=[A, "c" * 40])
    newest = {"talks": B}
    assert params.with_texts(pinned, ["talks", "me/hub"], newest).texts.revisions == (B, "c" * 40)
    assert params.with_texts(pinned, ["talks", "me/hub"]) == pinned
    assert params.with_texts(pinned, ["talks"], newest).texts.revisions is None


@pytest.mark.parametrize(
    ("config", "brought"),
    [
        (using("talks"), []),  # the workspace's own newest is the newest
        (using("talks", revisions=[A]), []),
        (using("talks", revisions=[B]), ["talks/bbbbbbbbbbbb"]),
        (using(f"talks@{B[:8]}"), ["talks/bbbbbbbbbbbb"]),
        (using("wiki", "mails"), ["mails/cccccccccccc"]),
        (using("talks", revisions=["d" * 64]), []),  # nobody has it
    ],
)
def test_a_workspace_gets_the_records_that_only_the_checkout_has(
    checkouts: tuple[Path, Path], config: RunConfig, brought: list[str]
) -> None:
    home, root = checkouts
    versions.bring(root, home, config)
    staged = git(root, "diff", "--cached", "--name-only").split()
    assert staged == [f"data/corpora/{name}.jsonl.dvc" for name in brought]
    for path in staged:
        assert (root / path).read_bytes() == (home / path).read_bytes()


def test_a_name_of_a_corpus_is_no_path_of_the_checkout(checkouts: tuple[Path, Path]) -> None:
    home, root = checkouts
    for name in ("talks", "wiki", "words"):
        (home / name).mkdir()
    seen = params.seen_from(root, using("talks", "wiki", "words"), home)
    assert seen.texts.sources == ("talks", "wiki", str(home / "words"))


def test_restoring_brings_back_records_that_are_gone(checkouts: tuple[Path, Path]) -> None:
    home, _ = checkouts
    git(home, "add", "--all")
    git(home, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "all")
    changed = record(home, "mails", C, "2026-01-03T00:00:00Z", mine=True)
    shutil.rmtree(home / "data/corpora/talks")
    versions.bring_recorded(home, "HEAD")
    assert [v.revision for v in recorded(home)["talks"]] == [B, A]
    assert "mine" in changed.read_text(), "a record that is there stays as it is"
