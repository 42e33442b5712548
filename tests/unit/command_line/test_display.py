"""The display: rates and times from measured steps, plain lines in a pipe, a live picture in a terminal."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows.commands.display import Display, Meter, StepProgress, duration, is_live, make_console, speed
from tasks.state import StageState, progress_path, write_json

STAGES = ("calibrate", "distill", "report")


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pipe() -> Console:
    """A console as make_console gives it where stdout is no terminal, into a buffer."""
    return Console(file=io.StringIO(), force_terminal=False, color_system=None, no_color=True, width=110)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=110)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def running(root: Path, stage: str, done: float, total: float, **figures: float) -> None:
    StageState(stage, "running", started=time.time()).write(root)
    write_json(progress_path(root, stage), {"stage": stage, "done": done, "total": total, "unit": "tokens", **figures})


def test_a_meter_measures_rate_and_time_left() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    meter.update(0, 1000, "tokens")
    assert (meter.rate, meter.seconds_left, meter.describe()) == (None, None, "")
    clock.now = 10.0
    meter.update(250, 1000, "tokens", loss=2.3144)
    assert meter.rate == 25.0
    assert meter.seconds_left == 30.0
    assert meter.describe() == "25 tokens/s, loss 2.314, 30 s left"


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (1234.5, "1,234 layers/s"),
        (10, "10 layers/s"),
        (1.44, "1.4 layers/s"),
        (1, "1.0 layers/s"),
        (0.044, "2.6 layers/min"),
    ],
)
def test_a_speed_has_digits_that_say_something(rate: float, said: str) -> None:
    assert speed(rate, "layers") == said


def test_stages_of_a_run_are_counted_without_a_rate() -> None:
    meter = Meter(clock=iter(range(10)).__next__)
    for done in (1, 2, 3):
        meter.update(done, 12, "stages")
    assert (meter.rate, meter.seconds_left, meter.describe()) == (None, None, "3 of 12 stages")


def test_the_rate_is_that_of_the_last_minute() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    for second in range(200):
        clock.now = float(second)
        meter.update(second if second < 100 else 100 + 10 * (second - 100), 10_000, "tokens")
    assert meter.rate == pytest.approx(10.0)


def test_another_phase_starts_the_measurement_anew() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    meter.update(0, 10, "corpora")
    clock.now = 5.0
    meter.update(10, 10, "corpora")
    meter.update(0, 64, "prompts")
    assert meter.rate is None
    assert meter.share == 0.0


def test_a_pause_lowers_the_rate_and_nothing_divides_by_zero() -> None:
    meter = Meter(clock=Clock())
    meter.update(0, 0, "rows")
    meter.update(5, 0, "rows")
    assert (meter.share, meter.rate, meter.seconds_left) == (0.0, None, None)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (899, "15 min"), (4980, "1 h 23 min"), (3599.7, "1 h 0 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_in_a_pipe_changes_are_plain_lines(tmp_path: Path) -> None:
    console = pipe()
    with Display(tmp_path, STAGES, console) as display:
        StageState("calibrate", "cached", started=time.time(), ended=time.time(), seconds=0.1).write(tmp_path)
        display.poll()
        running(tmp_path, "distill", 0, 100)
        display.poll()
        display._printed["distill"] = -1e9  # as if the last line were long ago
        running(tmp_path, "distill", 50, 100, loss=2.5)
        display.poll()
        StageState("distill", "done", time.time(), time.time(), 75.0).write(tmp_path)
        StageState("report", "failed", time.time(), time.time(), 1.0, "Stage report failed:\n  disk full").write(
            tmp_path
        )
    lines = [line.split("  ", 1)[1] for line in text(console).splitlines()]
    assert [" ".join(line.split()) for line in lines] == [
        "calibrate cached",
        "distill running",
        "distill 50 %, " + lines[2].split("%, ", 1)[1],
        "distill done in 1 min 15 s",
        "report failed: Stage report failed: disk full",
    ]
    assert "loss 2.500" in lines[2]
    assert not set("\r\x1b") & set(text(console))


def test_progress_in_a_pipe_is_not_printed_at_every_report(tmp_path: Path) -> None:
    console = pipe()
    display = Display(tmp_path, STAGES, console)
    for done in range(50):
        running(tmp_path, "distill", done, 100)
        display.poll()
    assert len(text(console).splitlines()) == 1


def test_what_an_earlier_run_left_is_not_shown(tmp_path: Path) -> None:
    StageState("calibrate", "failed", time.time() - 900, time.time() - 800, 100.0, "old").write(tmp_path)
    write_json(progress_path(tmp_path, "distill"), {"stage": "distill", "done": 9, "total": 10, "unit": "tokens"})
    console = pipe()
    display = Display(tmp_path, STAGES, console)
    display.poll()
    assert text(console) == ""
    assert {state.state for state in display.stages.values()} == {"waiting"}


def test_a_terminal_shows_a_line_a_stage_with_bar_rate_loss_and_time_left(tmp_path: Path) -> None:
    console = terminal()
    display = Display(tmp_path, STAGES, console, expected={"report": 12.0})
    display._live = object()  # type: ignore[assignment]  # drawn by hand
    clock = Clock()
    display.meters["distill"] = Meter(clock=clock)
    StageState("calibrate", "done", time.time(), time.time(), 31.0).write(tmp_path)
    running(tmp_path, "distill", 0, 1000)
    display.poll()
    clock.now = 10.0
    running(tmp_path, "distill", 250, 1000, loss=2.25, kl=0.5)
    console.print(display.render())
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text(console))
    assert "✓ calibrate" in plain
    assert re.search(r"▸ distill +running +━+.* 25 tokens/s, loss 2.250, KL 0.500, 30 s left", plain)
    assert "· report" in plain
    assert "about 42 s left in all" in plain


def test_the_live_picture_is_drawn_and_ends_with_the_last_state(tmp_path: Path) -> None:
    console = terminal()
    with Display(tmp_path, STAGES, console):
        StageState("report", "done", time.time(), time.time(), 3.0).write(tmp_path)
    assert "✓ report" in text(console)


def test_damaged_and_half_written_files_do_not_disturb(tmp_path: Path) -> None:
    console = pipe()
    display = Display(tmp_path, STAGES, console)
    running(tmp_path, "distill", 1, 10)
    progress_path(tmp_path, "distill").write_text('{"done": 1, "tot')
    display.poll()
    progress_path(tmp_path, "distill").write_text('{"unit": "tokens"}')
    display.poll()
    assert "distill" in text(console)


def test_ci_and_dumb_terminals_are_no_place_to_redraw(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert is_live(Terminal())
    assert not is_live(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("CI", "true")
    assert not is_live(Terminal())


def test_forced_colour_does_not_reach_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    make_console().print("[bold red]plain[/]")
    assert capsys.readouterr().out == "plain\n"


def test_a_single_step_reports_now_and_then_in_a_pipe() -> None:
    console = pipe()
    with StepProgress("prune", console) as progress:
        progress(1, 30, "layers")
        assert text(console) == ""
        progress._printed = -1e9
        progress(15, 30, "layers")
    assert text(console).startswith("prune: 50 %")


def test_a_single_step_has_a_bar_in_a_terminal() -> None:
    console = terminal()
    with StepProgress("prune", console) as progress:
        progress(15, 30, "layers", loss=1.0)
    assert "prune" in text(console)
    assert "━" in text(console)
