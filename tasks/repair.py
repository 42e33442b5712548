"""What a killed run can leave behind, and how the next one clears it away before it starts.

Call `repair` only while holding the checkout's run lock (flows/workspaces/lock.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from tasks.groups import end_recorded_groups
from tasks.state import FOLDER, write_json

_POLL_SECONDS = 0.5


def repair(root: Path) -> list[str]:
    """End what still runs of an earlier run and clear DVC's stale records; what was done, a line each."""
    lines = [f"ended what a killed run had left of {name}" for name in end_recorded_groups(root)]
    for partial in sorted((root / FOLDER).rglob("*.partial")):  # a folder before what is in it
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
    if clear_stale_rwlock(root):
        lines.append("removed the locks of a killed DVC process")
    if _lock_file_is_broken(root / "dvc.lock"):
        # Its entries come back from the run-cache as the stages are visited; nothing is computed again.
        (root / "dvc.lock").unlink()
        lines.append("dvc.lock was cut off in the middle; it is written anew from DVC's run-cache")
    return lines


def wait_for_blocker(root: Path, pid: int) -> None:
    """Wait until the DVC process `pid` is gone, or turns out to be something else that got its number."""
    while _is_dvc(pid):
        time.sleep(_POLL_SECONDS)
    clear_stale_rwlock(root)


def clear_stale_rwlock(root: Path) -> bool:
    """Take dead processes out of `.dvc/tmp/rwlock`; True when something was taken out.

    DVC itself only asks whether the number is in use: after a reboot or a long day it may be somebody else's.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    if not path.exists():
        return False
    with path.with_name("rwlock.lock").open("a") as guard:  # what DVC locks while it edits the other file
        fcntl.flock(guard, fcntl.LOCK_EX)
        return _take_out_dead(path)


def _take_out_dead(path: Path) -> bool:
    try:
        lock: dict[str, Any] = json.loads(path.read_text())
        write = {p: info for p, info in lock.get("write", {}).items() if _is_dvc(info["pid"])}
        read = {p: alive for p, infos in lock.get("read", {}).items() if (alive := _alive(infos))}
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        path.unlink(missing_ok=True)  # cut off in the middle: DVC would refuse it for ever
        return True
    if write == lock.get("write", {}) and read == lock.get("read", {}):
        return False
    write_json(path, {"write": write, "read": read})
    return True


def _alive(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [info for info in infos if _is_dvc(info["pid"])]


def _is_dvc(pid: int) -> bool:
    if pid == os.getpid():
        return False
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any("dvc" in part for part in process.cmdline())
    return False


def _lock_file_is_broken(path: Path) -> bool:
    try:
        stages = yaml.safe_load(path.read_text())["stages"]
        return not all(entry["cmd"] and all(out["path"] for out in entry["outs"]) for entry in stages.values())
    except FileNotFoundError:
        return False
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return True
