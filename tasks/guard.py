"""Runs a command and ends its whole process group as soon as whoever started it is gone, even by kill -9.

`python guard.py COMMAND…`: stdin is a pipe whose other end the starter holds and never writes to; its end of file
means that the starter is gone. Nothing but the standard library is imported, so the guard starts in 20 ms.
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run `command` in this process's own group; its exit code, 128 + n where signal n ended it."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # started by hand: never end the group of someone's shell
    threading.Thread(target=_end_group_when_orphaned, daemon=True).start()
    code = subprocess.Popen(command, stdin=subprocess.DEVNULL).wait()
    return code if code >= 0 else 128 - code


def _end_group_when_orphaned() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # not sys.exit: the watching thread still sits in its read
