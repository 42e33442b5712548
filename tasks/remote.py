"""The DVC remote of a run, if its checkout has a default one: what others computed comes from it, ours goes there.

A remote that is down costs one warning a run: the run goes on without it.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import queue
import re
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.cache import cache_directory
from tasks.content import content_key
from tasks.environment import python, stage_environment
from tasks.graph import StageSpec
from tasks.groups import end_group, start_group
from tasks.quick import QUICK
from tasks.state import FOLDER, read_json, write_json

PUSH = Path(__file__).with_name("push.py")
_RETRY_AFTER = (0.0, 2.0, 8.0)
_PUSH_SECONDS = 3600.0
_CHECK_SECONDS = 30.0
_ADVERTISEMENT = re.compile(r"^unexpected error - |\s*Having any troubles\?.*$")
_PASSWORD = re.compile(r"//[^/@]*@")


@dataclass(frozen=True)
class RemoteConfig:
    """A remote as DVC's configuration has it: its name, and its address without user and password."""

    name: str
    url: str

    def __str__(self) -> str:
        return f"{self.name} ({self.url})"


def default_remote(root: Path) -> RemoteConfig | None:
    """The default remote of the workspace at `root`, or None. (Asking DVC itself takes 1 s.)"""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    for name in ("config", "config.local"):
        with contextlib.suppress(configparser.Error):
            config.read(root / ".dvc" / name)
    name = config.get("core", "remote", fallback="").strip("'\"")
    if not name:
        return None
    url = config.get(f"'remote \"{name}\"'", "url", fallback="").strip("'\"")
    return RemoteConfig(name, _PASSWORD.sub("//", url))


def environment(root: Path, stage: str) -> dict[str, str]:
    """The environment of a DVC process that talks to a remote: one attempt, since ours are counted here."""
    return {"AWS_MAX_ATTEMPTS": "1", **stage_environment(root, stage)}


class Remote:
    """The default remote of one run. Stages are pushed in the background, one after the other."""

    def __init__(self, root: Path, config: RemoteConfig, warn: Callable[[str], None]) -> None:
        self.config = config
        self._root = root
        self._warn = warn
        self._lost = threading.Event()
        self._stopping = threading.Event()
        _lost_path(root).unlink(missing_ok=True)
        self._waiting: queue.SimpleQueue[StageSpec | None] = queue.SimpleQueue()
        self._pusher = threading.Thread(target=self._push_all, daemon=True)
        self._pusher.start()

    @property
    def usable(self) -> bool:
        """Whether nothing has gone wrong with it in this run."""
        return not self._lost.is_set()

    def lose(self, reason: str) -> None:
        """Go on without it; the first call of a run says so."""
        if not self._lost.is_set():
            self._lost.set()
            reason = _PASSWORD.sub("//", _ADVERTISEMENT.sub("", reason))[:300].rstrip(".")
            text = (
                f"The DVC remote {self.config} cannot be used: {reason}. The run goes on without it; what it "
                "computes is sent by the next run that uses it and finds the remote."
            )
            write_json(_lost_path(self._root), {"warning": text})
            self._warn(text)

    def offer(self, spec: StageSpec) -> None:
        """Send what stage `spec` has made, unless this cache has sent it before; returns at once."""
        self._waiting.put(spec)

    def finish(self) -> None:
        """Wait until all that was offered is sent, or has failed."""
        self._waiting.put(None)
        self._pusher.join()

    def stop(self) -> None:
        """Send nothing more. Whoever ends the stages' groups ends the push that goes on too: it has a stage's name."""
        self._stopping.set()
        self._waiting.put(None)

    def _push_all(self) -> None:
        """Send what has come together since the last time: a process for all of it, since its start takes a second."""
        ended = False
        while not ended:
            specs = [self._waiting.get()]
            while not self._waiting.empty():
                specs.append(self._waiting.get())
            ended = None in specs or self._stopping.is_set()
            if not self._stopping.is_set():
                try:
                    self._push([spec for spec in specs if spec is not None])
                except Exception as error:  # a run does not fail for its remote
                    self.lose(f"{type(error).__name__}: {error}")

    def _push(self, specs: list[StageSpec]) -> None:
        marks = {spec.name: mark for spec in specs if not (mark := self._mark(spec)).exists()}
        fault = ""
        for seconds in _RETRY_AFTER if self.usable else _RETRY_AFTER[:1]:
            if not marks or self._stopping.wait(seconds):
                return
            fault = push(self._root, list(marks))
            if not fault:
                for mark in marks.values():
                    mark.parent.mkdir(parents=True, exist_ok=True)
                    mark.touch()
                return
        if not self._stopping.is_set():
            self.lose(fault)

    def _mark(self, spec: StageSpec) -> Path:
        """An empty file that says that this content has been sent to this remote."""
        remote = hashlib.sha256(self.config.url.encode()).hexdigest()[:12]
        return cache_directory(self._root) / "pushed" / remote / f"{spec.name}-{content_key(self._root, spec)}"


def warning_of_run(root: Path) -> str | None:
    """What the latest run in the workspace at `root` said of its remote, if it had to go on without it."""
    values = read_json(_lost_path(root))
    return values.get("warning") if isinstance(values, dict) else None


def _lost_path(root: Path) -> Path:
    return root / FOLDER / "remote-lost.json"


def push(root: Path, stages: list[str]) -> str:
    """Send the outputs and the run-cache entries of `stages`; why that failed, or ""."""
    command = [python(), "-P", str(QUICK), str(PUSH), *stages]
    group = start_group(command, root=root, name=stages[0], env=environment(root, stages[0]))
    timer = threading.Timer(_PUSH_SECONDS, end_group, [group.id])
    timer.start()
    try:
        text = group.output.read().decode("utf-8", "replace")
        return "" if group.wait() == 0 else _fault(text)
    finally:
        timer.cancel()


def check(root: Path) -> str:
    """Whether the default remote answers; why not, or "". Takes some seconds."""
    try:
        done = subprocess.run(
            [python(), "-P", str(QUICK), str(PUSH)],
            cwd=root,
            env=environment(root, "remote"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_CHECK_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_CHECK_SECONDS:.0f} s"
    return "" if done.returncode == 0 else _fault(done.stdout)


def _fault(text: str) -> str:
    """The last line of what the program printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ").rstrip(".") if lines else "it ended without a word"
