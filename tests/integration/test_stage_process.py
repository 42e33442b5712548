"""A stage through DVC without an orchestrator: outcomes, reasons, edits in mid-stage, kills, and what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsekd.errors import ResourceError, StageError
from tasks import environment
from tasks.groups import GUARD, end_recorded_groups, members, start_group
from tasks.repair import clear_stale_rwlock, repair
from tasks.repro import StageResult, reproduce
from tasks.state import log_path, progress_path, read_json, read_state
from tests.miniature import STAGES, Miniature, kill, make_miniature, started, wait_until


@pytest.fixture(scope="session")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """A checkout in miniature in which every stage has run once."""
    miniature = make_miniature(tmp_path_factory.mktemp("miniature") / "checkout")
    for result in run_all(miniature):
        assert result.outcome == "computed"
    return miniature


@pytest.fixture
def checkout(computed: Miniature, tmp_path: Path) -> Miniature:
    """A copy of it."""
    shutil.copytree(computed.root, tmp_path / "checkout", symlinks=True)
    return Miniature(tmp_path / "checkout")


def run_all(miniature: Miniature) -> list[StageResult]:
    return [reproduce(miniature.root, miniature.graph[name]) for name in STAGES]


def test_unchanged_computed_and_restored(checkout: Miniature) -> None:
    def run() -> list[str]:
        return [reproduce(checkout.root, checkout.graph[name]).outcome for name in ("prune", "distill")]

    before = {name: checkout.lock(name) for name in STAGES}
    assert run() == ["unchanged"] * 2
    assert read_state(checkout.root, "prune").state == "cached"
    checkout.edit("width: 0.75", "width: 0.5")
    assert run() == ["computed"] * 2
    assert checkout.value("pruned") == "prune 0.5\n"
    assert read_state(checkout.root, "prune").state == "done"
    checkout.edit("width: 0.5", "width: 0.75")
    assert run() == ["restored"] * 2
    assert checkout.value("pruned") == "prune 0.75\n"
    assert {name: checkout.lock(name) for name in STAGES} == before
    assert checkout.runs("prune") == 2
    assert "prune at work" in log_path(checkout.root, "prune").read_text(), "the log of the latest computation stays"


def test_lines_progress_and_state_while_it_runs(checkout: Miniature) -> None:
    hold = checkout.control("hold", "prune")
    checkout.edit("width: 0.75", "width: 0.5")
    lines: list[str] = []
    thread = threading.Thread(target=reproduce, args=(checkout.root, checkout.graph["prune"], lines.append))
    thread.start()
    checkout.held("prune")
    assert read_state(checkout.root, "prune").state == "running"
    assert read_json(progress_path(checkout.root, "prune")) == {
        "stage": "prune", "done": 1, "total": 2, "unit": "steps", "loss": 2.5,
    }  # fmt: skip
    hold.unlink()
    thread.join()
    assert lines == ["prune at work"], "DVC's own lines are not the stage's"
    assert not list((checkout.root / ".sparsekd" / "groups").iterdir())


def test_reason_is_the_stages_own_sentence(checkout: Miniature) -> None:
    checkout.edit("alpha: 0.5", "alpha: 0.25")
    checkout.control("fail", "distill")
    with pytest.raises(StageError) as caught:
        reproduce(checkout.root, checkout.graph["distill"])
    assert str(caught.value) == (
        "Stage distill failed: distill.learning_rate is 9; the loss is NaN at step 3. Lower it. "
        "Its log is .sparsekd/logs/distill.log."
    )
    assert read_state(checkout.root, "distill").state == "failed"
    assert read_state(checkout.root, "distill").reason == str(caught.value)
    assert not list((checkout.root / "data").glob("*.partial"))


def test_reason_of_a_crash_is_its_last_lines(checkout: Miniature) -> None:
    checkout.edit("alpha: 0.5", "alpha: 0.25")
    checkout.control("crash", "distill")
    with pytest.raises(StageError, match=r"ended with code 1 \(RuntimeError: the bug\)") as caught:
        reproduce(checkout.root, checkout.graph["distill"])
    assert "255" not in str(caught.value)
    assert str(caught.value).splitlines()[-1] == "  RuntimeError: the bug"


def test_a_full_disk_is_named(checkout: Miniature) -> None:
    checkout.control("full", "prune")
    checkout.edit("width: 0.75", "width: 0.5")
    with pytest.raises(StageError, match=r"Stage prune failed: The disk of .* is full\. Free some space"):
        reproduce(checkout.root, checkout.graph["prune"])


def test_reason_of_dvc_itself(checkout: Miniature) -> None:
    shutil.rmtree(checkout.root / "data" / "calibration")
    with pytest.raises(StageError, match=r"Stage prune did not start: .*data/calibration"):
        reproduce(checkout.root, checkout.graph["prune"])
    assert "data/calibration" in log_path(checkout.root, "prune").read_text()


@contextlib.contextmanager
def pruning(checkout: Miniature) -> Iterator[list[StageError]]:
    """Stage prune held at work beside the block; at the end of the block it is waited for. Yields what it raised."""
    caught: list[StageError] = []

    def run() -> None:
        try:
            reproduce(checkout.root, checkout.graph["prune"])
        except StageError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    checkout.held("prune")
    yield caught
    thread.join()


def test_a_stage_that_the_system_kills(checkout: Miniature) -> None:
    checkout.edit("width: 0.75", "width: 0.5")
    checkout.control("hold", "prune")
    with pruning(checkout) as caught:
        [group] = [int(path.stem) for path in (checkout.root / ".sparsekd" / "groups").iterdir()]
        [worker] = [pid for pid in members(group) if _command(pid).startswith("python -m mini.work")]
        os.kill(worker, signal.SIGKILL)
    assert "was killed, most likely because the memory ran out" in str(caught[0])


def test_parameters_edited_while_the_stage_works(checkout: Miniature) -> None:
    hold = checkout.control("hold", "prune")
    checkout.edit("statistics_tokens: 1024", "statistics_tokens: 2048")
    before = checkout.lock("prune")
    with pruning(checkout) as caught:
        checkout.edit("width: 0.75", "width: 0.5")
        hold.unlink()
    assert "params.yaml: prune changed while stage prune ran" in str(caught[0])
    assert checkout.lock("prune") == before
    assert reproduce(checkout.root, checkout.graph["prune"]).outcome == "computed"
    assert checkout.value("pruned") == "prune 0.5\n"


def test_parameters_edited_between_the_stages_check_and_dvcs(checkout: Miniature) -> None:
    edit = checkout.control("edit", "prune", "width: 0.5")
    checkout.edit("statistics_tokens: 1024", "statistics_tokens: 2048")
    with pytest.raises(StageError, match=r"params\.yaml: prune changed while stage prune ran"):
        reproduce(checkout.root, checkout.graph["prune"])
    edit.unlink()
    assert checkout.lock("prune") == {}, "what DVC recorded is wrong, so it is forgotten"
    # params.yaml says 0.5 now. Had the run-cache kept the entry, this would restore the model of 0.75 for it.
    assert reproduce(checkout.root, checkout.graph["prune"]).outcome == "computed"
    assert checkout.value("pruned") == "prune 0.5\n"
    checkout.edit("statistics_tokens: 2048", "statistics_tokens: 1024")
    checkout.edit("width: 0.5", "width: 0.75")
    assert reproduce(checkout.root, checkout.graph["prune"]).outcome == "restored", "other entries are kept"


_REPRODUCE = """
from pathlib import Path
from tasks.graph import read_graph
from tasks.repro import reproduce
print(reproduce(Path.cwd(), read_graph()["prune"]).outcome)
"""


def test_kill_9_leaves_nothing_and_the_next_run_goes_on(checkout: Miniature) -> None:
    hold = checkout.control("hold", "prune")
    checkout.edit("width: 0.75", "width: 0.5")
    with started(checkout, _REPRODUCE) as process:
        checkout.held("prune")
        assert any("mini.work prune" in command for command in checkout.processes())
        kill(process)
    wait_until(lambda: not checkout.processes(), "everything to end", seconds=5)
    hold.unlink()
    assert json.loads((checkout.root / ".dvc/tmp/rwlock").read_text())["write"], "DVC's stale lock is the test's point"
    repair(checkout.root)
    assert not list((checkout.root / ".sparsekd" / "groups").iterdir())
    assert [result.outcome for result in run_all(checkout)] == ["unchanged", "unchanged", "computed", "computed"]
    assert checkout.value("pruned") == "prune 0.5\n"
    assert not list((checkout.root / "data").glob("*.partial"))


def test_waits_for_another_dvc_process(checkout: Miniature) -> None:
    hold = checkout.control("hold", "prune")
    checkout.edit("width: 0.75", "width: 0.5")
    lines: list[str] = []
    results: list[StageResult] = []
    spec = checkout.graph["prune"]
    thread = threading.Thread(target=lambda: results.append(reproduce(checkout.root, spec, lines.append)))
    with started(
        checkout, "import sys; from dvc.cli import main; sys.exit(main(sys.argv[1:]))", "repro", "-s", "prune"
    ) as other:
        checkout.held("prune")
        thread.start()
        wait_until(lambda: bool(lines), "the wait to be told")
        assert lines[0].startswith("waiting for process ")
        hold.unlink()
        thread.join()
        assert other.wait() == 0, other.stdout.read()
    assert [result.outcome for result in results] == ["unchanged"]
    assert checkout.runs("prune") == 2


def test_stale_records_of_a_dead_dvc_are_cleared(checkout: Miniature) -> None:
    rwlock = checkout.root / ".dvc" / "tmp" / "rwlock"
    foreign = subprocess.Popen(["sleep", "60"])  # its number was DVC's once
    try:
        info = {"pid": foreign.pid, "cmd": "dvc repro"}
        out = str(checkout.root / "data" / "pruned")
        rwlock.write_text(json.dumps({"write": {out: info}, "read": {out: [info]}}))
        checkout.edit("width: 0.75", "width: 0.5")
        assert repair(checkout.root) == ["removed the locks of a killed DVC process"]
        assert reproduce(checkout.root, checkout.graph["prune"]).outcome == "computed"
    finally:
        foreign.kill()
        foreign.wait()
    rwlock.write_text('{"write": {"/x": {"pi')
    assert clear_stale_rwlock(checkout.root)
    assert not clear_stale_rwlock(checkout.root)


@pytest.mark.parametrize(
    "left", [b"", b"schema: '2.0'\nstages:\n  calibrate:\n    cmd: py", b"schema: '2.0'\nstages: {a: {"]
)
def test_dvc_lock_that_was_cut_off_is_written_anew(checkout: Miniature, left: bytes) -> None:
    whole = (checkout.root / "dvc.lock").read_bytes()
    (checkout.root / "dvc.lock").write_bytes(left)
    assert repair(checkout.root) == ["dvc.lock was cut off in the middle; it is written anew from DVC's run-cache"]
    assert [result.outcome for result in run_all(checkout)] == ["restored"] * 4
    assert (checkout.root / "dvc.lock").read_bytes() == whole
    assert [checkout.runs(name) for name in STAGES] == [1, 1, 1, 1]


def test_what_a_kill_left_half_written_goes(checkout: Miniature) -> None:
    half = checkout.root / ".sparsekd" / "pending-track" / "run.17.partial"
    (half / "artifacts").mkdir(parents=True)
    (half / "record.json.partial").touch()
    (checkout.root / ".sparsekd" / "timings.json.17.partial").touch()
    assert repair(checkout.root) == []
    assert not list((checkout.root / ".sparsekd").rglob("*.partial"))


def test_paths_with_a_space(computed: Miniature, tmp_path: Path) -> None:
    checkout = Miniature(tmp_path / "my checkout")
    shutil.copytree(computed.root, checkout.root, symlinks=True)
    (tmp_path / "an environment").symlink_to(sys.prefix)
    interpreter = tmp_path / "an environment" / "bin" / "python"
    work = checkout.root / "mini" / "work.py"
    work.write_text(
        work.read_text().replace('f"{name} at work"', "f'prefix {sys.prefix}; {__import__(\"os\").environ}'")
    )
    program = _REPRODUCE.replace("outcome", "log.read_text()")
    done = subprocess.run([interpreter, "-c", program], cwd=checkout.root, capture_output=True, text=True, check=True)
    prefix = done.stdout.partition("prefix ")[2].partition(";")[0]
    assert prefix, done.stdout
    assert " " not in prefix
    assert Path(prefix).resolve() == Path(sys.prefix).resolve()
    cache = done.stdout.partition("'TORCHINDUCTOR_CACHE_DIR': '")[2].partition("'")[0]
    assert cache
    assert " " not in cache


def test_link_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    name = f"sparsekd-{os.getuid()}"
    assert environment.link_folder() == tmp_path / name
    (tmp_path / name).chmod(0o777)
    with pytest.raises(ResourceError, match="open to others"):
        environment.link_folder()
    (tmp_path / name).rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="belongs to another user"):
        environment.link_folder()


def test_a_group_ends_with_its_command_and_all_it_started(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.Popen(['sleep', '300']); print('started', flush=True); sys.exit(7)"
    group = start_group([sys.executable, "-c", program], root=tmp_path, name="x", env=dict(os.environ))
    assert group.output.readline() == b"started\n"
    assert group.wait() == 7
    wait_until(lambda: members(group.id) == [], "what it started to be gone", 3)


def test_only_orphaned_or_named_groups_are_ended(tmp_path: Path) -> None:
    group = start_group(["sleep", "300"], root=tmp_path, name="mine", env=dict(os.environ))
    assert end_recorded_groups(tmp_path) == [], "its starter, this process, lives"
    assert end_recorded_groups(tmp_path, ["another"]) == []
    assert group.running()
    assert end_recorded_groups(tmp_path, ["mine"]) == ["mine"]
    group.wait()
    record = tmp_path / ".sparsekd" / "groups" / "1.json"
    record.write_text(
        json.dumps({"group": os.getpid(), "created": 1.0, "owner": 1, "owner_created": 1.0, "name": "old"})
    )
    assert end_recorded_groups(tmp_path) == [], "the number belongs to another process now: this one"
    assert not record.exists()


def test_guard_started_by_hand_spares_its_shell() -> None:
    script = f"sleep 0.5 | {sys.executable} -I -S {GUARD} sleep 300; echo alive"  # its stdin ends after 0.5 s
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, start_new_session=True)
    assert done.stdout == "alive\n"


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_time_of_a_stage_is_recorded(checkout: Miniature) -> None:
    begun = time.time()
    result = reproduce(checkout.root, checkout.graph["calibrate"])
    state = read_state(checkout.root, "calibrate")
    assert begun <= state.started < state.ended <= time.time()
    assert state.seconds == pytest.approx(result.seconds)
