"""One run at a time in a checkout."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.workspaces.lock import current_holder, run_lock
from sparsekd.errors import StageError

HOLD = """
import sys
from pathlib import Path
from flows.workspaces.lock import run_lock
with run_lock(Path(sys.argv[1]), command="sparsekd compress -S prune.width=0.5"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_by_name_or_waits(tmp_path: Path) -> None:
    with hold(tmp_path) as other:
        named = rf"`sparsekd compress -S prune\.width=0\.5` \(process {other.pid}, since "
        with pytest.raises(StageError, match=named), run_lock(tmp_path):
            pass
        told: list[str] = []
        entered = threading.Event()

        def wait() -> None:
            with run_lock(tmp_path, wait=True, on_wait=told.append):
                entered.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(0.7)
        assert other.stdin is not None
        other.stdin.close()
        thread.join(10)
        assert entered.is_set()
        assert len(told) == 1
        assert told[0].startswith("waiting for `sparsekd compress")


def test_kill_9_lets_go(tmp_path: Path) -> None:
    with hold(tmp_path) as other:
        assert current_holder(tmp_path).pid == other.pid
        other.kill()
        other.wait()
        assert current_holder(tmp_path) is None
        with run_lock(tmp_path):
            pass


def test_one_process_may_take_it_again(tmp_path: Path) -> None:
    with run_lock(tmp_path), run_lock(tmp_path):
        assert current_holder(tmp_path) is not None
    assert current_holder(tmp_path) is None
