"""When a process looks for cycles of garbage: not while it imports, as usual when it computes."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import gc
usual = gc.get_threshold()
from tasks.quick import importing, quicken
quicken()
assert gc.get_threshold()[0] > usual[0]
try:
    with importing():
        assert not gc.isenabled()
        raise ImportError
except ImportError:
    pass
assert gc.isenabled() and gc.get_threshold() == usual and gc.get_freeze_count() > 1000
cycle = []
cycle.append(cycle)
del cycle
assert gc.collect() > 0, "what came later is looked at"
"""


def test_cycles_are_looked_for_as_usual_after_the_imports() -> None:
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True)
