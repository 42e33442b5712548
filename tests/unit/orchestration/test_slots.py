"""Which stages of a run may work at once. In a process of its own: it needs Prefect's imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import threading, time
from pathlib import Path
from sparsekd.errors import StageError
from tasks.stage import Run

def at_once(run, alone):
    working, most, lone = 0, 0, []
    lock = threading.Lock()
    def work(is_alone):
        nonlocal working, most
        with run.slot(is_alone):
            with lock:
                working += 1
                most = max(most, working)
                if is_alone:
                    lone.append(working)
            time.sleep(0.05)
            with lock:
                if is_alone:
                    lone.append(working)
                working -= 1
    threads = [threading.Thread(target=work, args=(number in alone,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return most, lone

print(at_once(Run(Path(), {}, 2), set()), at_once(Run(Path(), {}, 3), {4}))
run = Run(Path(), {}, 1)
assert run.why_not() is None
entered = threading.Event()
def second():
    with run.slot(False):
        entered.set()
with run.slot(False):
    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.wait(0.1)
    run.fail("prune", StageError("no"))
    assert entered.wait(5), "who waits is let in to see that the run has ended"
thread.join()
print(run.why_not())
"""


def test_slots() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout == "(2, []) (3, [1, 1])\nstage prune failed\n", done.stderr
