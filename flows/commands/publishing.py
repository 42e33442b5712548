"""`sparsekd push`: what would be sent to the hub, and sending it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.commands import steps
from flows.commands.display import make_console
from sparsekd.artifacts import MANIFEST
from sparsekd.sources import upload
from sparsekd.sources.upload import Shipment
from tasks.quick import importing


@dataclass(frozen=True)
class Request:
    """What was asked for, as the command line gives it."""

    repo: str
    folder: Path
    report: bool
    exports: bool
    private: bool
    revision: str | None
    message: str | None


def push(request: Request, send: bool) -> None:
    """Check and list the files, then send them if `send`. Raises SparseKDError before anything is sent."""
    report = _beside(request.folder, "report")
    exports = _beside(request.folder, "export") if request.exports else None
    shipment = upload.prepare(request.repo, request.folder, report, exports, with_report=request.report)
    console = make_console()
    _list(shipment, request, console)
    if not send:
        console.print("Nothing was sent. `--yes` sends it.")
        return
    upload.check_token()
    with steps.working("push"), importing():
        from sparsekd.models import check_tensors

        check_tensors(request.folder)
        message = request.message or f"Add {request.folder.resolve().name} of sparsekd"
        commit = upload.send(shipment, message, request.revision, request.private)
    console.print(f"Sent: {commit}", markup=False, soft_wrap=True)


def _beside(folder: Path, name: str) -> Path | None:
    """The stage's output of that name: in the checkpoint (`restore --out`) or beside it (data/); None without one."""
    places = (folder / name, folder.resolve().parent / name)
    return next((place for place in places if (place / MANIFEST).is_file()), None)


def _list(shipment: Shipment, request: Request, console: Console) -> None:
    where = f"branch {request.revision}" if request.revision else "main"
    kind = "private" if request.private else "public"
    console.print(f"To {shipment.repo}, {where} ({kind} if it is new):", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    for name, path in sorted(shipment.files.items()):
        table.add_row(name, f"{path.stat().st_size:,} bytes")
    table.add_row("together", f"{shipment.bytes / 1e6:.1f} MB")
    console.print(table)
    licence = shipment.licence or "not known: write it into README.md, or make the report first"
    console.print(f"Licence: {licence}.", markup=False, soft_wrap=True)
    if shipment.gate and shipment.gate not in ("passed", "no limits"):
        console.print(f"Gate: {shipment.gate}; the page and the card say why.", markup=False, soft_wrap=True)
