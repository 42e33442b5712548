"""`sparsekd texts add` with real git and DVC: what a version is, what it says, and that it is whole or not there."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.commands import adding
from flows.workspaces.commands import dvc, git
from sparsekd.artifacts import hash_file
from sparsekd.errors import ResourceError, StageError
from tasks.cache import cached_object
from tasks.corpora import Recorded, recorded
from tests.integration.test_command_line import command
from tests.miniature import CHECKOUT, Miniature, kill, make_miniature, started, wait_until
from tests.tiny_models import make_documents

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]
_HANGING = """\
import sys, time
from pathlib import Path
from flows.commands import adding
real = adding.dvc
def dvc(root, *arguments):
    if sys.argv[1] == "after":
        real(root, *arguments)
    Path(sys.argv[2]).touch()
    time.sleep(120)
adding.dvc = dvc
adding.add("talks", [Path(sys.argv[3])])
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in miniature in which nothing has run."""
    return make_miniature(tmp_path_factory.mktemp("fresh") / "a checkout").root


@pytest.fixture
def mini(fresh: Path, tmp_path: Path) -> Miniature:
    """A copy of it, to change at will."""
    shutil.copytree(fresh, tmp_path / "a checkout", symlinks=True)
    return Miniature(tmp_path / "a checkout")


@pytest.fixture
def run(mini: Miniature, tmp_path: Path) -> Run:
    """`sparsekd …` in the checkout, where no benchmark has been fetched."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return command(*arguments, cwd=mini.root, SPARSEKD_CACHE=str(tmp_path / "cache"), **environment)

    return run


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "all")


def talks(tmp_path: Path, seed: int, count: int = 250) -> Path:
    """A file of that many documents, different ones for each seed."""
    path = tmp_path / f"talks-{seed}.jsonl"
    rows = [{"text": text, "id": number} for number, text in enumerate(make_documents(count, seed))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def added(run: Run, root: Path, *arguments: str) -> Recorded:
    """The version that `sparsekd texts add talks …` makes."""
    done = run("texts", "add", "talks", *arguments)
    assert done.returncode == 0, done.stderr
    return recorded(root)["talks"][0]


def test_files_become_a_version_that_dvc_tracks_and_git_has_staged(mini: Miniature, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    text = "This is what was said to all of them, and it was not the first time that they had been there. " * 7
    pq.write_table(pa.table({"body": [text, text.upper(), None]}), folder / "t.parquet")
    (folder / "b.jsonl").write_text(json.dumps({"body": "short", "n": 1}) + "\n")
    head = git(mini.root, "rev-parse", "HEAD")
    assert run("texts").stdout.startswith("No corpus of yours yet: `sparsekd texts add NAME PATH…`.")
    assert run("texts", "--json").stdout == "[]\n"
    done = run("texts", "add", "my-talks", str(folder), "--column", "body")
    assert done.returncode == 0, done.stderr
    [version] = recorded(mini.root)["my-talks"]
    assert hash_file(mini.root / version.file) == hash_file(cached_object(mini.root, version.md5)) == version.revision
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert said["corpus"] == f"my-talks, version {version.short}, its first"
    assert said["files"] == "b.jsonl, t.parquet"
    assert said["columns"] == "body: string (used), n: integer; 1 of 4 rows have no text"
    assert said["documents"].startswith("2, 663 characters, 0.0 MB; half have 332 characters or more")
    assert said["copies"].startswith("1 left out")
    assert said["short"].startswith("1 below 500 characters")
    assert said["language"] == "English 99.2 %, undetermined 0.8 % of the characters"
    assert said["overlap"].startswith("not looked for: no benchmark is on this machine yet")
    assert said["use"] == "sparsekd compress --texts my-talks"
    assert not set("\r\x1b") & set(done.stdout)
    assert git(mini.root, "rev-parse", "HEAD") == head, "the commit is the user's"
    staged = git(mini.root, "diff", "--cached", "--name-only").splitlines()
    assert staged == ["data/corpora/my-talks/.gitignore", version.record.as_posix()]
    assert len(git(mini.root, "status", "--porcelain", "--untracked-files=all").splitlines()) == len(staged)
    assert str(tmp_path) not in (mini.root / version.record).read_text(), "no path of this machine goes into git"
    assert json.loads(dvc(mini.root, "status", "--json", version.record.as_posix())) == {}

    [listed] = json.loads(run("texts", "--json").stdout)
    assert listed | {"runs": None} == listed | {"runs": None, "name": "my-talks", "newest": True, "here": True}
    assert (listed["documents"], listed["copies_left_out"], listed["overlap"]) == (2, 1, None)
    row = next(line for line in run("texts").stdout.splitlines() if line.startswith("my-talks"))
    assert row.split()[:2] == ["my-talks", version.short]


def test_the_same_documents_are_no_new_version_and_mend_the_old_one(mini: Miniature, run: Run, tmp_path: Path) -> None:
    first = added(run, mini.root, str(talks(tmp_path, 1)))
    second = added(run, mini.root, str(talks(tmp_path, 2)))
    assert [version.revision for version in recorded(mini.root)["talks"]] == [second.revision, first.revision]
    before = {path: path.read_bytes() for path in (mini.root / "data" / "corpora").rglob("*") if path.is_file()}
    same = talks(tmp_path, 1)
    same.write_text(same.read_text().replace('"id": 7,', '"id": 700,'))
    done = run("texts", "add", "talks", str(same))
    assert done.returncode == 0
    assert done.stdout == (
        f"No new version: talks has these documents since {first.added[:10]}, as {first.short}. The newest version is "
        f"{second.short}; `--texts talks@{first.short}` uses this one.\n"
    )
    damaged = cached_object(mini.root, first.md5)
    damaged.chmod(0o600)
    damaged.write_text("damaged")
    back = run("texts", "add", "talks", str(same))
    assert "Their bytes were missing or damaged in DVC's cache and are back." in back.stdout
    assert hash_file(damaged) == first.revision
    after = {path: path.read_bytes() for path in (mini.root / "data" / "corpora").rglob("*") if path.is_file()}
    assert after == before


BAD: list[tuple[list[str], str]] = [
    (["talks", "absent.jsonl"], "`sparsekd texts add` names 'absent.jsonl'; there is no such file or folder."),
    (["talks", "empty.txt"], "names 'empty.txt', which holds no text; name a file that does."),
    (["talks", "nothing"], "names 'nothing', where no file ends in .jsonl, .parquet, .txt; name another."),
    (["talks", "picture.txt"], "picture.txt is a binary file (it holds NUL bytes); name a text file."),
    (["talks", "table.csv"], "names 'table.csv', a .csv file; it must end in .jsonl, .parquet, .txt."),
    (["talks", "body.jsonl"], "its columns are body. Set --column to the one that holds the text."),
    (["talks", "body.jsonl", "--column", "text"], "has no column 'text'; its columns are body."),
    (["talks", "late.jsonl"], "late.jsonl, line 2, has int in column 'text'; it must hold text or a list of messages."),
    (["talks", "fake.parquet"], "fake.parquet is no Parquet file; write it again, or name another."),
    (["wiki", "good.txt"], "'wiki' is the catalogue's; choose another name, such as my-wiki."),
    (["chat", "good.txt"], "'chat' is that of the dense model's own answers; choose another name"),
    (["My Talks", "good.txt"], "'My Talks' is no name for a corpus; use lower-case letters, digits and '-'"),
    (["../up", "good.txt"], "'../up' is no name for a corpus"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_is_left(
    mini: Miniature, run: Run, arguments: list[str], said: str
) -> None:
    (mini.root / "nothing").mkdir()
    contents = {
        "empty.txt": b" \n", "good.txt": b"good words", "picture.txt": b"GIF\0\0", "table.csv": b"a,b\n",
        "body.jsonl": b'{"body": "x"}\n', "late.jsonl": b'{"text": "x"}\n{"text": 7}\n', "fake.parquet": b"PAR0",
    }  # fmt: skip
    for name, data in contents.items():
        (mini.root / name).write_bytes(data)
    done = run("texts", "add", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "texts.column" not in done.stderr
    assert not (mini.root / "data" / "corpora").exists()


def test_a_full_disk_and_a_failing_dvc_leave_the_versions_as_they_were(
    mini: Miniature, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = added(run, mini.root, str(talks(tmp_path, 1)))
    commit(mini.root)
    monkeypatch.chdir(mini.root)
    monkeypatch.setenv("SPARSEKD_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as full:
        full.setattr(adding.machine, "free_disk", lambda place: 10**6)
        with pytest.raises(
            ResourceError, match=r"The documents need about 0\.1 GB on the disk of .*; 0\.0 GB are free"
        ):
            adding.add("talks", [talks(tmp_path, 2)])

    def fail(root: Path, *arguments: str) -> str:
        raise StageError("`dvc add` failed")

    with monkeypatch.context() as failing:
        failing.setattr(adding, "dvc", fail)
        for name in ("talks", "others"):
            with pytest.raises(StageError):
                adding.add(name, [talks(tmp_path, 2)])
    assert recorded(mini.root) == {"talks": [first]}
    assert git(mini.root, "status", "--porcelain", "--untracked-files=all") == ""
    assert sorted(path.name for path in (mini.root / "data/corpora").rglob("*")) == sorted(
        ["talks", ".gitignore", first.file.name, first.record.name]
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_addition_is_no_version_and_the_next_one_completes_it(
    mini: Miniature, run: Run, tmp_path: Path, when: str
) -> None:
    mark = tmp_path / "in dvc"
    first = added(run, mini.root, str(talks(tmp_path, 1)))
    with started(
        mini, _HANGING, when, str(mark), str(talks(tmp_path, 2)),
        PYTHONPATH=str(CHECKOUT), SPARSEKD_CACHE=str(tmp_path / "cache"),
    ) as process:  # fmt: skip
        wait_until(mark.exists, "dvc to be called")
        kill(process)
    assert recorded(mini.root) == {"talks": [first]}
    assert [entry["version"] for entry in json.loads(run("texts", "--json").stdout)] == [first.short]
    second = added(run, mini.root, str(talks(tmp_path, 2)))
    assert second.revision != first.revision
    assert hash_file(cached_object(mini.root, second.md5)) == second.revision
    assert not list((mini.root / "data").rglob("*.partial"))
