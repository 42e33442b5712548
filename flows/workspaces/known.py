"""Results that this checkout knows, `.sparsekd/results/NAME.json`: the summary of every run that ended with a report.

Runs in the checkout leave no experiment, and an experiment may be given up: its figures stay for comparison.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from flows.prices import price_lists
from flows.settings import params
from flows.workspaces.kept import kept_runs, kept_summary
from sparsekd.errors import SparseKDError
from sparsekd.evaluation.offers import WIDTHS
from sparsekd.report.context import Context, same_model
from sparsekd.report.summary import Summary, read_summary
from tasks.state import FOLDER, context_path, write_json

MOST = 40
"""As many of the newest results go onto a page."""


def remember(home: Path, root: Path, name: str | None) -> None:
    """Note what the run at `root` reported: an isolated one by its `name`, one in the checkout by its model's.

    The same model measured again takes the place of its older figures.
    """
    with contextlib.suppress(SparseKDError):
        summary = read_summary(root / "data/report/summary.json")
        _write(home, name or _name(home, summary), summary)


def known(home: Path) -> dict[str, Summary]:
    """The newest results by name, newest first: those noted here, and of experiments that came with the repository."""
    noted = {unquote(path.stem): path for path in _folder(home).glob("*.json")}
    for record in kept_runs(home):
        with contextlib.suppress(SparseKDError):  # of another version: it is only shown, and must not end a run
            if record.name not in noted and (summary := kept_summary(home, record.name)):
                noted[record.name] = _write(home, record.name, summary, record.ended)
    newest = sorted(noted.items(), key=lambda item: item[1].stat().st_mtime, reverse=True)[:MOST]
    found = {}
    for name, path in newest:
        with contextlib.suppress(SparseKDError):  # of an older format
            found[name] = read_summary(path)
    return found


@contextlib.contextmanager
def telling(root: Path, home: Path) -> Iterator[None]:
    """While a run goes on at `root`, its report can read what the checkout at `home` knows."""
    path = context_path(root)
    context = Context(runs=known(home), prices=price_lists.kept(home, params.load(root), WIDTHS))
    write_json(path, context.model_dump(mode="json"))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _name(home: Path, summary: Summary) -> str:
    for number in itertools.count(1):
        name = summary.model.name if number == 1 else f"{summary.model.name}-{number}"
        path = _file(home, name)
        if not path.exists():
            return name
        with contextlib.suppress(SparseKDError):
            if same_model(read_summary(path), summary):
                return name
    raise AssertionError("unreachable")


def _write(home: Path, name: str, summary: Summary, when: float | None = None) -> Path:
    path = _file(home, name)
    write_json(path, summary.model_dump(mode="json"))
    if when is not None:
        os.utime(path, (when, when))
    return path


def _file(home: Path, name: str) -> Path:
    """A name may have a slash: report.name is the user's."""
    return _folder(home) / f"{quote(name, safe='')}.json"


def _folder(home: Path) -> Path:
    return home / FOLDER / "results"
