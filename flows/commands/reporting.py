"""`sparsekd report`: one page that compares results."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from flows.commands.display import make_console
from flows.workspaces.known import known
from sparsekd.errors import ConfigError
from sparsekd.report.summary import Summary, read_summary
from tasks.environment import checkout_root
from tasks.state import FOLDER


def report(names: Sequence[str], out: Path | None) -> None:
    """Write the page of the results named, or of all that the checkout knows, and say where it is.

    A name is one that the checkout knows, or a directory with a summary.json. Raises SparseKDError for another.
    """
    root = checkout_root()
    here = (root / "dvc.yaml").is_file()
    results = known(root) if here else {}
    found = {name: _summary(name, results) for name in names} or results
    if not found:
        raise ConfigError("No result is known here yet; `sparsekd compress` makes one. Or name directories with one.")
    from sparsekd.report.comparison import headline, write_comparison
    from sparsekd.report.context import groups
    from sparsekd.report.tradeoff import results as compared

    page = write_comparison(found, out or (root / FOLDER / "comparison" if here else Path("comparison")))
    console = make_console()
    for group in groups(found):
        console.print(headline(compared(group)), markup=False, soft_wrap=True)
    console.print(f"Page: {page}", markup=False, soft_wrap=True)


def _summary(name: str, results: dict[str, Summary]) -> Summary:
    if name in results:
        return results[name]
    for place in (Path(name), Path(name) / "report", Path(name) / "data/report"):
        if (place / "summary.json").is_file():
            return read_summary(place / "summary.json")
    near = difflib.get_close_matches(name, results, n=1, cutoff=0.4)
    meant = f"did you mean {near[0]}?" if near else "`sparsekd report` without a name compares all that is known."
    raise ConfigError(f"{name} is no result known here and no directory with a summary.json; {meant}")
