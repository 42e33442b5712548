"""Which stages of a run may work at once. In a process of its own: it needs Prefect's imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[3]
PROGRAM = """
import sys, threading, time
from pathlib import Path
from sparsekd.errors import StageError
from tasks.graph import StageSpec, read_graph
from tasks.stage import Run

HOME = Path(sys.argv[1])

def spec(number, alone=False):
    return StageSpec(str(number), "", (), (), (f"data/{number}",), alone=alone)

def at_once(side_by_side, alone):
    graph = {str(number): spec(number, number in alone) for number in range(8)}
    run = Run(HOME, graph, side_by_side)
    working, most, lone = 0, 0, []
    lock = threading.Lock()
    def work(stage):
        nonlocal working, most
        with run.slot(stage):
            with lock:
                working += 1
                most = max(most, working)
                if stage.alone:
                    lone.append(working)
            time.sleep(0.05)
            with lock:
                if stage.alone:
                    lone.append(working)
                working -= 1
    threads = [threading.Thread(target=work, args=(stage,)) for stage in graph.values()]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return most, lone

print(at_once(2, set()), at_once(3, {4}))

one, other = spec(1), spec(2)
run = Run(HOME, {"1": one, "2": other}, 1)
assert run.why_not() is None
entered = threading.Event()
def second():
    with run.slot(other):
        entered.set()
with run.slot(one):
    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.wait(0.1)
    run.fail("prune", StageError("no"))
    assert entered.wait(5), "who waits is let in to see that the run has ended"
thread.join()
print(run.why_not())

graph = read_graph()
run = Run(HOME, graph, 1)
order = []
def ask(name):
    with run.slot(graph[name]):
        order.append(name)
def asking(name):
    thread = threading.Thread(target=ask, args=(name,))
    thread.start()
    return thread
for name in ("fetch-model", "fetch-texts", "fetch-benchmarks", "calibrate", "teacher"):
    ask(name)
with run.slot(graph["prune"]):
    early = asking("evaluate@dense")
late = asking("evaluate@pruned")
time.sleep(0.3)  # Prefect needs a moment before it starts what waited for prune
distill = asking("distill")
[thread.join() for thread in (early, late, distill)]
print(order[5])
never = Run(HOME, graph, 1)
for name in ("fetch-model", "fetch-texts", "fetch-benchmarks", "calibrate", "teacher", "prune"):
    with never.slot(graph[name]):
        pass
with never.slot(graph["evaluate@pruned"]):  # distill never asks: its place is not kept for ever
    print("went on")
"""


def test_slots(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, cwd=HOUSE)
    expected = "(2, []) (3, [1, 1])\nstage prune failed\ndistill\nwent on\n"
    assert done.stdout == expected, done.stderr
