"""Python processes that cost two thirds of what they did, most of it at their start and end.

The rest is the search for cycles of garbage: while Prefect, MLflow or DVC are imported it looks again and again through
a million objects that stay, and once more when the process ends. `python quick.py MODULE …` is `python -m MODULE …`,
and `python quick.py FILE.py …` is `python FILE.py …`.
"""

import atexit
import contextlib
import gc
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

QUICK = Path(__file__)
_USUAL = gc.get_threshold()


def quicken() -> None:
    """Search for cycles seldom, and not at the end. Not while tensors are at work: a cycle may hold large ones."""
    gc.set_threshold(50_000)
    leave_quickly()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """`sparsekd.runtime.importing` for a process that may be `quicken`ed: afterwards cycles are looked for as usual."""
    from sparsekd import runtime  # not at the top: what this file starts needs nothing of ours

    try:
        with runtime.importing():
            yield
    finally:
        gc.set_threshold(*_USUAL)


def leave_quickly() -> None:
    """Take nothing apart at the end of this process."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


if __name__ == "__main__":
    quicken()
    del sys.argv[0]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
