"""A DVC remote between checkouts: pulled instead of computed, pushed behind the run's back, and lost without harm."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.commands.doctor import checks
from flows.workspaces.commands import git
from flows.workspaces.workspace import create
from tasks.remote import Remote, check, default_remote, push, warning_of_run
from tasks.repro import reproduce
from tests.e2e.test_flow import LAUNCH
from tests.miniature import STAGES, Miniature, make_miniature, started
from tests.s3_server import KEYS, Storage, storage

pytestmark = pytest.mark.slow


@pytest.fixture
def s3(keys: None) -> Iterator[Storage]:
    with storage() as server:
        yield server


@dataclass
class Filled:
    """A storage that has every stage of the checkout `first`, sent by a run as Prefect sees it."""

    first: Miniature
    s3: Storage

    def checkout(self, path: Path) -> Miniature:
        """Another one, that shares the storage."""
        return checkout(path, self.s3)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, api: str) -> Iterator[Filled]:
    """One for all tests that leave the server running. What they send themselves is of another `prune.width`."""
    with storage() as s3:
        first = checkout(tmp_path_factory.mktemp("filled") / "one", s3)
        assert launch(first, api).startswith("outcome"), "a run with a remote"
        yield Filled(first, s3)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def checkout(path: Path, s3: Storage | None = None) -> Miniature:
    miniature = make_miniature(path)
    if s3 is not None:
        s3.configure(miniature.root)
    return miniature


def run(miniature: Miniature) -> tuple[dict[str, str], list[str]]:
    """Every stage, as a run does it: how each went, and the warnings about the remote."""
    warnings: list[str] = []
    config = default_remote(miniature.root)
    assert config is not None
    remote = Remote(miniature.root, config, warnings.append)
    outcomes = {}
    for name in STAGES:
        outcomes[name] = reproduce(miniature.root, miniature.graph[name], remote=remote).outcome
        remote.offer(miniature.graph[name])
    remote.finish()
    return outcomes, warnings


def launch(miniature: Miniature, api: str) -> str:
    with started(miniature, LAUNCH, PREFECT_API_URL=api, **KEYS) as process:
        output, _ = process.communicate()
    return str(output)


def test_without_a_remote_nothing_is_asked(tmp_path: Path) -> None:
    assert default_remote(checkout(tmp_path / "alone").root) is None


def test_a_second_checkout_computes_nothing(tmp_path: Path, filled: Filled, api: str) -> None:
    second = filled.checkout(tmp_path / "two")
    output = launch(second, api)
    assert output.startswith("outcome"), output
    assert [second.runs(stage) for stage in STAGES] == [0, 0, 0, 0]
    assert second.value("distilled") == filled.first.value("distilled")
    assert warning_of_run(second.root) is None


def test_what_the_remote_lacks_is_computed_and_sent(tmp_path: Path, filled: Filled, keys: None) -> None:
    first, second = filled.first.copy(tmp_path / "one"), filled.checkout(tmp_path / "two")
    second.edit("width: 0.75", "width: 0.5")
    outcomes, warnings = run(second)
    assert outcomes == {"calibrate": "restored", "teacher": "restored", "prune": "computed", "distill": "computed"}
    assert not warnings
    first.edit("width: 0.75", "width: 0.5")
    assert run(first)[0] == {
        "calibrate": "unchanged",
        "teacher": "unchanged",
        "prune": "restored",
        "distill": "restored",
    }


def test_outputs_that_are_gone_here_come_back(tmp_path: Path, filled: Filled, keys: None) -> None:
    """dvc.lock is there, as after `git clone`, and the cache is not."""
    first = filled.first.copy(tmp_path / "one")
    git(first.root, "add", "dvc.lock")
    git(first.root, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "results")
    subprocess.run(["git", "clone", "-q", str(first.root), str(tmp_path / "clone")], check=True)
    clone = Miniature(tmp_path / "clone")
    (clone.root / "control").mkdir()
    filled.s3.configure(clone.root)
    assert set(run(clone)[0].values()) == {"restored"}
    assert [clone.runs(stage) for stage in STAGES] == [0, 0, 0, 0]


def test_a_remote_that_is_down_costs_one_warning_and_is_caught_up_with(tmp_path: Path, s3: Storage, api: str) -> None:
    first, second = checkout(tmp_path / "one", s3), checkout(tmp_path / "two", s3)
    s3.process.kill()
    s3.process.wait()
    output = launch(first, api)
    assert output.count("cannot be used") == 1, output
    assert output.startswith("warning: The DVC remote storage (s3://sparsekd/dvc) cannot be used: Could not connect")
    assert "unexpected error" not in output
    assert "outcome" in output
    assert [first.runs(stage) for stage in STAGES] == [1, 1, 1, 1]
    with storage(s3.port):
        assert set(run(first)[0].values()) == {"unchanged"}
        assert set(run(second)[0].values()) == {"restored"}, "the next run sent what the first could not"


def test_it_dies_in_the_middle_of_a_run(tmp_path: Path, s3: Storage) -> None:
    miniature = checkout(tmp_path / "one", s3)
    warnings: list[str] = []
    remote = Remote(miniature.root, default_remote(miniature.root), warnings.append)  # type: ignore[arg-type]
    for name in STAGES:
        if name == "prune":
            s3.process.kill()
        assert reproduce(miniature.root, miniature.graph[name], remote=remote).outcome == "computed"
        remote.offer(miniature.graph[name])
    remote.finish()
    assert len(warnings) == 1
    assert not remote.usable


def test_a_failed_stage_is_not_blamed_on_the_remote(tmp_path: Path, s3: Storage) -> None:
    miniature = checkout(tmp_path / "one", s3)
    miniature.control("fail", "calibrate")
    with pytest.raises(Exception, match="learning_rate is 9"):
        run(miniature)
    assert warning_of_run(miniature.root) is None
    assert miniature.runs("calibrate") == 1


def test_a_folder_is_named_rightly_in_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniature = checkout(tmp_path / "one")
    monkeypatch.setenv("SPARSEKD_HOME", str(miniature.root))
    (miniature.root / ".dvc" / "config.local").write_text(
        "[core]\n    remote = shelf\n['remote \"shelf\"']\n    url = ../../shelf\n"
    )
    space = create(miniature.root, "apart")
    inside = Miniature(space.path)
    config = default_remote(space.path)
    assert config is not None
    assert config.url == str(tmp_path / "shelf")
    assert check(space.path) == ""
    reproduce(inside.root, inside.graph["calibrate"])
    assert push(inside.root, ["calibrate"]) == ""
    assert len(list((tmp_path / "shelf" / "runs").rglob("*"))) == 3
    other = checkout(tmp_path / "two")
    (other.root / ".dvc" / "config.local").write_text((miniature.root / ".dvc" / "config.local").read_text())
    assert run(other)[0]["calibrate"] == "restored"


def test_doctor_asks_the_remote(tmp_path: Path, s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    miniature = checkout(tmp_path / "one", s3)
    monkeypatch.chdir(miniature.root)

    def found() -> tuple[str, str]:
        [line] = [line for line in checks() if line.name == "dvc remote"]
        return line.verdict, line.found

    assert found() == ("ok", "storage (s3://sparsekd/dvc) answers")
    s3.process.kill()
    s3.process.wait()
    verdict, text = found()
    assert verdict == "note"
    assert "Could not connect" in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [("ssh://me:secret@host/store", "ssh://host/store"), ("s3://bucket/dvc", "s3://bucket/dvc")],
)
def test_no_password_is_shown(tmp_path: Path, url: str, shown: str) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(f"[core]\n    remote = r\n['remote \"r\"']\n    url = {url}\n")
    assert str(default_remote(tmp_path)) == f"r ({shown})"
