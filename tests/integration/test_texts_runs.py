"""Runs with corpora of the user's own, with real git and DVC: the version that is meant, gc, restore, and forms."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.commands import freeing
from flows.settings import params, settle
from flows.workspaces.commands import dvc, git
from flows.workspaces.workspace import create, experiments
from tasks.cache import cached_object, dvc_objects
from tasks.corpora import recorded
from tests.integration.test_command_line import command, computed  # noqa: F401 - a fixture
from tests.integration.test_texts_add import added, commit, talks
from tests.miniature import Miniature
from tests.tiny_models import make_documents

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]
_STAGE = """\
  fetch-texts:
    cmd: python -m mini.fetch
    params: [texts]
    deps: [mini/fetch.py]
    outs: [data/raw/texts]
"""
# The stage itself; what is held out comes out of a package, and tests are offline
_FETCH = """\
from sparsekd.sources import texts
from tasks.fetch import texts as fetch
from tasks.process import run_stage
found = texts.catalogue().model_copy(update={"held_out": ()})
texts.catalogue = lambda: found
run_stage(["mini.fetch"], fetch)
"""


@pytest.fixture
def mini(computed: Miniature, tmp_path: Path) -> Miniature:  # noqa: F811
    """A checkout in which everything is committed, with the real stage that fetches texts, not run yet."""
    root = tmp_path / "a checkout"
    shutil.copytree(computed.root, root, symlinks=True)
    with (root / "dvc.yaml").open("a") as stream:
        stream.write(_STAGE)
    (root / "mini" / "fetch.py").write_text(_FETCH)
    commit(root)
    return Miniature(root)


@pytest.fixture
def run(mini: Miniature, tmp_path: Path) -> Run:
    """`sparsekd …` in the checkout, where no benchmark has been fetched."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return command(*arguments, cwd=mini.root, SPARSEKD_CACHE=str(tmp_path / "cache"), **environment)

    return run


def fetched(root: Path, experiment: str) -> list[str]:
    """The documents that the run `experiment` worked with, from DVC's cache."""
    lock = git(root, "show", f"{experiments(root)[experiment].tree}:dvc.lock")
    file = dvc_objects(root, "data/raw/texts", lock)["talks.jsonl"]
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def records(root: Path, experiment: str) -> list[str]:
    """The records of versions that are in the experiment's tree."""
    tree = experiments(root)[experiment].tree
    return [path for path in git(root, "ls-tree", "-r", "--name-only", tree).splitlines() if path.endswith(".dvc")]


def test_a_run_uses_the_version_that_it_is_pinned_to(mini: Miniature, run: Run, tmp_path: Path, api: str) -> None:
    def compress(*arguments: str) -> str:
        done = run("compress", *arguments, PREFECT_API_URL=api)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def used() -> dict[str, tuple[set[str], bool]]:
        entries = json.loads(run("texts", "--json").stdout)
        return {entry["version"]: (set(entry["runs"]), entry["in_params_yaml"]) for entry in entries}

    old, new = make_documents(250, 1), make_documents(250, 2)
    first = added(run, mini.root, str(talks(tmp_path, 1)))
    (mini.root / "talks").mkdir()  # a folder of that name is not meant
    compress("--isolated", "--name", "first", "--texts", "talks")
    assert fetched(mini.root, "first") == old
    second = added(run, mini.root, str(talks(tmp_path, 2)))
    compress("--at", "HEAD", "--name", "second", "--texts", "talks")
    assert fetched(mini.root, "second") == new, "a commit that knows no such corpus takes the checkout's newest version"
    assert records(mini.root, "first") == [first.record.as_posix()]
    assert records(mini.root, "second") == [second.record.as_posix()]

    compress("--at", "first", "--name", "again", "-S", "texts.column=body")  # meant for other texts: it is fetched anew
    assert fetched(mini.root, "again") == old, "the experiment's own version"
    again = next(record for record in json.loads(run("runs", "--json").stdout) if record["name"] == "again")
    assert again["outcomes"]["fetch-texts"] == "computed"
    assert again["texts"] == {"talks": first.revision}

    assert used() == {second.short: ({"second"}, False), first.short: ({"first", "again"}, False)}
    shutil.rmtree(mini.root / ".sparsekd" / "runs")  # as in a clone that has the experiments alone
    assert used() == {second.short: ({"second"}, False), first.short: ({"first", "again"}, False)}

    for path in (mini.root / second.file, cached_object(mini.root, second.md5)):
        path.unlink()  # never pulled: no other version's run needs it
    assert run("restore", "first").returncode == 0
    assert used()[first.short][1], "params.yaml is the run's"
    said = compress("-S", "texts.column=other")
    assert f"talks: version {first.short} is used, as params.yaml says; {second.short} is newer" in said
    lines = (mini.root / "data" / "raw" / "texts" / "talks.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == old, "in the checkout too"


def test_gc_keeps_versions_that_experiments_branches_and_the_checkout_name(
    mini: Miniature, run: Run, tmp_path: Path, api: str
) -> None:
    root = mini.root
    versions = {1: added(run, root, str(talks(tmp_path, 1)))}
    done = run("compress", "--isolated", "--name", "kept", "--texts", "talks", PREFECT_API_URL=api)
    assert done.returncode == 0, done.stderr

    def forget(seed: int) -> None:
        git(root, "rm", "-q", "--force", "--cached", versions[seed].record.as_posix())
        (root / versions[seed].record).unlink()

    def objects() -> set[int]:
        return {seed for seed, version in versions.items() if cached_object(root, version.md5).exists()}

    forget(1)
    versions[2] = added(run, root, str(talks(tmp_path, 2)))
    commit(root)
    git(root, "branch", "other")
    forget(2)
    commit(root)
    versions[3] = added(run, root, str(talks(tmp_path, 3)))
    versions[4] = added(run, root, str(talks(tmp_path, 4)))
    forget(4)
    dry = dvc(root, "gc", "--workspace", "--all-branches", "--all-tags", "--all-experiments", "--force", "--dry")
    assert freeing.unneeded(root).objects == [cached_object(root, versions[4].md5)]
    assert dry.count("Removing ") == 1
    assert run("gc", "--yes").returncode == 0
    assert objects() == {1, 2, 3}, "an experiment's, a branch's and the checkout's, which is staged alone"
    git(root, "branch", "-q", "-D", "other")
    assert run("gc", "--yes", "--drop", "kept").returncode == 0
    assert objects() == {3}


def test_bytes_that_are_gone_or_damaged_stop_a_run_in_words(
    mini: Miniature, run: Run, tmp_path: Path, api: str
) -> None:
    version = added(run, mini.root, str(talks(tmp_path, 1)))
    (mini.root / version.file).unlink()
    kept = cached_object(mini.root, version.md5)
    kept.chmod(0o600)
    kept.write_bytes(kept.read_bytes()[:-1] + b" ")
    kept.chmod(0o444)  # or DVC notices, and removes it
    damaged = run("compress", "--texts", "talks", PREFECT_API_URL=api)
    assert damaged.returncode == 2
    assert f"Stage fetch-texts failed: Version {version.short} of talks is damaged: the sha256 of" in damaged.stderr
    kept.unlink()
    gone = run("compress", PREFECT_API_URL=api)
    assert gone.returncode == 2
    said = f"its bytes are not on this machine; fetch them with `dvc pull {version.record}`."
    assert said in gone.stderr
    assert "Traceback" not in gone.stdout + gone.stderr


def test_a_corpus_too_small_for_its_share_is_refused_before_a_run(mini: Miniature, run: Run, tmp_path: Path) -> None:
    version = added(run, mini.root, str(talks(tmp_path, 1, count=3)))
    done = run("compress", "--texts", "talks")
    assert done.returncode == 2
    assert f"texts.sources names 'talks', a corpus of {version.bytes:,} bytes; it cannot hold its share" in done.stderr


def test_a_form_that_names_a_corpus_gets_its_newest_version(
    mini: Miniature, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = create(mini.root, "form", at="HEAD")  # made before the corpus was
    version = added(run, mini.root, str(talks(tmp_path, 1)))
    monkeypatch.chdir(space.path)
    form = params.load(space.path).texts.model_dump() | {"sources": ["talks"]}
    changes = {change.key: change.after for change in settle.settle({"texts": form}, space.path, mini.root)}
    assert changes == {"texts.sources": ["talks"], "texts.revisions": [version.revision]}
    assert [found.revision for found in recorded(space.path)["talks"]] == [version.revision]
    assert settle.settle({}, space.path, mini.root) == []
