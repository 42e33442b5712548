"""What a run looks like while it runs: one live line a stage in a terminal, plain lines in a pipe or in CI.

It reads the files that stages leave in .sparsekd/ (tasks/state.py) and asks neither Prefect nor DVC.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tasks.state import StageState, progress_path, read_json, read_state

STAGES = "stages"
"""The unit of a run's own progress, as a sweep shows it."""
_WINDOW_SECONDS = 60.0
_PLAIN_EVERY = 20.0
_BAR = 24
_FIGURES = {"loss": "loss", "kl": "KL", "ce": "CE", "validation_kl": "validation KL"}
_STYLES = {"waiting": "dim", "running": "bold", "cached": "cyan", "done": "green", "failed": "bold red"}
_SIGNS = {"waiting": "·", "running": "▸", "cached": "=", "done": "✓", "failed": "✗"}


def is_live(stream: TextIO | None = None) -> bool:
    """Whether `stream` (stdout) can be redrawn: a terminal that is neither dumb nor CI's."""
    stream = stream or sys.stdout
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def make_console(stderr: bool = False) -> Console:
    """A console for output that people read: colour and redrawing in a terminal, bare text elsewhere."""
    if is_live(sys.stderr if stderr else sys.stdout):
        return Console(stderr=stderr, highlight=False)
    return Console(
        stderr=stderr,
        highlight=False,
        force_terminal=False,
        color_system=None,
        no_color=True,
        width=110,
        soft_wrap=True,
    )


@dataclass
class Meter:
    """Work done over time: from a few measured steps to a rate and the time left."""

    clock: Callable[[], float] = time.monotonic
    unit: str = ""
    done: float = 0.0
    total: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    _samples: deque[tuple[float, float]] = field(default_factory=deque)

    def update(self, done: float, total: float, unit: str, **figures: float) -> None:
        """Take in one report (see sparsekd.progress)."""
        if unit != self.unit or total != self.total or done < self.done:
            self._samples.clear()  # another phase of the same stage
        if not self._samples or done > self.done:
            self._samples.append((self.clock(), done))
        while len(self._samples) > 2 and self._samples[-1][0] - self._samples[0][0] > _WINDOW_SECONDS:
            self._samples.popleft()
        self.done, self.total, self.unit, self.figures = done, total, unit, figures

    @property
    def share(self) -> float:
        """How much is done, in [0, 1]."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total > 0 else 0.0

    @property
    def rate(self) -> float | None:
        """Units a second over the last minute, or None before two steps were seen.

        Stages are too unlike each other to have one.
        """
        if len(self._samples) < 2 or self.unit == STAGES:
            return None
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - start) if end > start else None

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at this rate."""
        rate = self.rate
        return (self.total - self.done) / rate if rate and self.total > 0 else None

    def describe(self) -> str:
        """Rate, figures and time left, such as `312 tokens/s, loss 2.31, 4 min 10 s left`."""
        if self.unit == STAGES:
            return f"{self.done:.0f} of {self.total:.0f} stages"
        parts = []
        if self.unit and (rate := self.rate):
            parts.append(speed(rate, self.unit))
        parts += [f"{label} {self.figures[key]:.3f}" for key, label in _FIGURES.items() if key in self.figures]
        if self.done < self.total and (left := self.seconds_left) is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)


def speed(rate: float, unit: str) -> str:
    """Units a second, or a minute where that is below one: `312 tokens/s`, `1.4 corpora/s`, `2.6 layers/min`."""
    if rate >= 1:
        return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"
    return f"{60 * rate:.1f} {unit}/min"


def duration(seconds: float) -> str:
    """4.2 → 4 s, 250 → 4 min 10 s, 5000 → 1 h 23 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def roughly(seconds: float) -> str:
    """An estimate as precise as it is: seconds below a minute and a half, then whole minutes."""
    return duration(seconds) if seconds < 90 or seconds > 5400 else f"{round(seconds / 60)} min"


class Display:
    """Shows the stages of a run while the block it surrounds runs.

    `expected` holds estimated seconds a stage, for the time left in all.
    """

    def __init__(
        self,
        root: Path,
        stages: Iterable[str],
        console: Console | None = None,
        expected: dict[str, float] | None = None,
    ) -> None:
        self.root = root
        self.console = console or make_console()
        self.stages = {name: StageState(name, "waiting") for name in stages}
        self.expected = expected or {}
        self.started = time.time()
        self.meters = {name: Meter() for name in self.stages}
        self._printed: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                console=self.console, get_renderable=self.render, refresh_per_second=4, vertical_overflow="visible"
            )
            self._live.__enter__()
        else:
            self._thread = threading.Thread(target=self._print_lines, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)  # draws once more
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self.poll()

    def poll(self) -> None:
        """Read the files once; in a pipe, print what changed."""
        for name, shown in self.stages.items():
            state = read_state(self.root, name)
            if state is None or (state.ended or state.started or 0.0) < self.started - 1.0:
                continue  # of an earlier run
            self.stages[name] = state
            if state.state == "running":
                self._read_progress(name)
            if self._live is None:
                self._print_change(name, shown, state)

    def _read_progress(self, name: str) -> None:
        report: Any = read_json(progress_path(self.root, name))
        if isinstance(report, dict) and {"done", "total", "unit"} <= set(report):
            report.pop("stage", None)
            self.meters[name].update(**report)

    def render(self) -> Table:
        """The live picture."""
        self.poll()
        table = Table.grid(padding=(0, 2, 0, 0))
        for width in (max(map(len, self.stages)) + 2, len("running"), _BAR):
            table.add_column(width=width)  # fixed, or the picture jumps
        for name, state in self.stages.items():
            style = _STYLES[state.state]
            row: list[Any] = [Text(f"{_SIGNS[state.state]} {name}", style), Text(state.state, style), "", ""]
            if state.state == "running":
                meter = self.meters[name]
                if meter.total:
                    row[2] = ProgressBar(total=1.0, completed=meter.share, width=_BAR)
                row[3] = Text(meter.describe() or self._running_for(state))
            elif state.state == "failed":
                row[3] = Text(_one_line(state.reason), style)
            elif state.state == "done" and state.seconds is not None:
                row[3] = Text(duration(state.seconds), "dim")
            table.add_row(*row)
        left = self.seconds_left()
        table.add_row(Text(""), Text(""), Text(""), Text("" if left is None else f"about {roughly(left)} left in all"))
        return table

    def _running_for(self, state: StageState) -> str:
        return f"for {duration(time.time() - state.started)}" if state.started else ""

    def seconds_left(self) -> float | None:
        """Estimated time to the end of the run: measured for what runs, estimated for what waits."""
        if not self.expected or any(state.state == "failed" for state in self.stages.values()):
            return None
        left = 0.0
        for name, state in self.stages.items():
            if state.state == "waiting":
                left += self.expected.get(name, 0.0)
            elif state.state == "running":
                measured = self.meters[name].seconds_left
                estimated = self.expected.get(name, 0.0) - (time.time() - (state.started or time.time()))
                left += max(estimated, 0.0) if measured is None else measured
        return left or None

    def _print_lines(self) -> None:
        while not self._stop.wait(0.5):
            self.poll()

    def _print_change(self, name: str, before: StageState, now: StageState) -> None:
        if now.state != before.state:
            detail = ""
            if now.state == "done" and now.seconds is not None:
                detail = f" in {duration(now.seconds)}"
            elif now.state == "failed":
                detail = f": {_one_line(now.reason)}"
            self._line(name, now.state + detail)
            self._printed[name] = time.monotonic()
        elif now.state == "running" and time.monotonic() - self._printed.get(name, 0.0) >= _PLAIN_EVERY:
            meter = self.meters[name]
            if meter.total:
                figures = meter.describe()
                self._line(name, f"{100 * meter.share:.0f} %" + (f", {figures}" if figures else ""))
                self._printed[name] = time.monotonic()

    def _line(self, name: str, text: str) -> None:
        try:
            print(f"{time.strftime('%H:%M:%S')}  {name:<18} {text}", file=self.console.file, flush=True)
        except BrokenPipeError:  # nobody reads any more (`| head`): the run goes on without lines
            self._stop.set()


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())[:160]


class StepProgress:
    """Progress of a single step (prune, distill, evaluate): a live bar in a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        self.name = name
        self.console = console or make_console(stderr=True)
        self.meter = Meter()
        self._printed = time.monotonic()
        self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.__exit__(kind, error, trace)

    def __call__(self, done: float, total: float, unit: str, **values: float) -> None:
        """A sparsekd.progress.Progress."""
        self.meter.update(done, total, unit, **values)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._printed >= _PLAIN_EVERY:
            self._printed = now
            line = f"{self.name}: {100 * self.meter.share:.0f} %, {self.meter.describe()}"
            print(line, file=self.console.file, flush=True)

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=self.meter.share, width=_BAR)
        table.add_row(Text(self.name, "bold"), bar, Text(self.meter.describe()))
        return table
