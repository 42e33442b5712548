"""`sparsekd texts`: the user's corpora, their versions, and the runs that used each."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.commands.display import make_console
from flows.settings import params
from flows.workspaces.history import used_texts
from sparsekd.report.formatting import percent
from sparsekd.sources import catalogue
from sparsekd.sources.texts import MOST_CHARACTERS
from tasks.corpora import Recorded, recorded

_LABELS = 12
HERE = "params.yaml"
"""Stands among the runs of a version for the checkout itself."""


def show(as_json: bool = False) -> None:
    """Print every version, newest first, as a table, or all that is known of it as JSON."""
    root = params.find_root()
    found = recorded(root)
    users = _users(root)
    if as_json:
        rows = [_values(root, version, versions[0], users) for versions in found.values() for version in versions]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    console = make_console()
    if found:
        _print_table(root, found, users, console)
    else:
        console.print("No corpus of yours yet: `sparsekd texts add NAME PATH…`.")
    console.print(f"The catalogue has {', '.join(catalogue().texts)}.", markup=False)


def _users(root: Path) -> dict[tuple[str, str], list[str]]:
    """(source, revision) → names of the runs that used it, newest first, and HERE."""
    texts = params.load(root).texts
    users = {pair: [HERE] for pair in zip(texts.sources, texts.revisions or (), strict=False)}
    for run, pairs in used_texts(root).items():
        for pair in pairs.items():
            users.setdefault(pair, []).append(run)
    return users


def _print_table(
    root: Path, found: Mapping[str, Sequence[Recorded]], users: Mapping[tuple[str, str], list[str]], console: Console
) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "version", "added", "documents", "characters", "language", "bytes", "used by"):
        right = column in ("documents", "characters")
        table.add_column(column, overflow="fold", justify="right" if right else "left")
    for versions in found.values():
        for version in versions:
            facts = version.facts
            table.add_row(
                version.name,
                version.short,
                _when(version),
                f"{facts['documents']:,}",
                f"{facts['characters']:,}",
                next(iter(_languages(facts)), ""),
                "here" if _here(root, version) else "dvc pull",
                ", ".join(users.get((version.name, version.revision), [])),
            )
    console.print(table, soft_wrap=not console.is_terminal)


def _values(
    root: Path, version: Recorded, newest: Recorded, users: Mapping[tuple[str, str], list[str]]
) -> dict[str, Any]:
    names = users.get((version.name, version.revision), [])
    return {
        "name": version.name,
        "version": version.short,
        "revision": version.revision,
        "added": version.added,
        "newest": version == newest,
        "bytes": version.bytes,
        "md5": version.md5,
        "record": version.record.as_posix(),
        "here": _here(root, version),
        **version.facts,
        "runs": [name for name in names if name != HERE],
        "in_params_yaml": HERE in names,
    }


def _here(root: Path, version: Recorded) -> bool:
    return any(path.is_file() for path in version.places(root))


def _when(version: Recorded) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(version.seconds))


def print_facts(version: Recorded, earlier: Sequence[Recorded], console: Console) -> None:
    """What `sparsekd texts add` says of a new version; `earlier` are those before it, newest first."""
    after = f", after {earlier[0].short} of {_when(earlier[0])}" if earlier else ", its first"
    rows = [
        ("corpus", f"{version.name}, version {version.short}{after}"),
        *_facts(version),
        ("kept", f"{version.record}, staged in git: `git commit` keeps it, `dvc push` shares its bytes"),
        ("use", f"sparsekd compress --texts {version.name}"),
    ]
    if not console.is_terminal:
        for label, text in rows:
            console.print(f"{label:<{_LABELS}}{text}", markup=False, soft_wrap=True)
        return
    table = Table.grid()
    table.add_column(style="bold", width=_LABELS)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, Text(text))
    console.print(table)


def _facts(version: Recorded) -> list[tuple[str, str]]:
    facts = version.facts
    short, copies = facts["short"], facts["copies_left_out"]
    rows = [
        ("files", ", ".join(facts["files"])),
        ("columns", _columns(facts)),
        (
            "documents",
            f"{facts['documents']:,}{' conversations' if facts['kind'] == 'messages' else ''}, {facts['characters']:,} "
            f"characters, {version.bytes / 1e6:,.1f} MB; half have {facts['median_characters']:,} characters or more",
        ),
        ("copies", f"{copies:,} left out (case and white space do not count)"),
        ("short", f"{short['documents']:,} below {short['below']:,} characters: calibrate leaves those out"),
        ("language", ", ".join(_languages(facts)) + " of the characters"),
        ("overlap", _overlap(facts["overlap"])),
    ]
    if facts["characters"] > MOST_CHARACTERS:
        rows.append(("limit", f"a run uses the first {MOST_CHARACTERS:,} characters alone"))
    return rows


def _columns(facts: Mapping[str, Any]) -> str:
    used = facts["used_columns"]
    names = [f"{name}: {kind}{' (used)' if name in used else ''}" for name, kind in facts["columns"].items()]
    without = f"{facts['rows_without_text']:,} of {facts['rows']:,} rows have no text"
    return f"{', '.join(names) or 'none, plain text'}; {without}"


def _languages(facts: Mapping[str, Any]) -> list[str]:
    return [f"{name} {percent(share)}" for name, share in facts["languages"].items()]


def _overlap(overlap: Mapping[str, Any] | None) -> str:
    if overlap is None:
        return (
            "not looked for: no benchmark is on this machine yet (`sparsekd compress` fetches them); the run's own "
            "evaluation looks again"
        )
    shared = [f"{rows:,} of {overlap['rows'][task]:,} rows of {task}" for task, rows in overlap["shared"].items()]
    clean = ", ".join(task for task in overlap["rows"] if task not in overlap["shared"])
    which = ", ".join([*shared, *([f"no rows of {clean}"] if clean else [])])
    unseen = ", ".join(sorted(set(catalogue().benchmarks) - set(overlap["rows"])))
    return f"{which} share {overlap['words']} words in a row with it" + (unseen and f"; not looked at: {unseen}")
