"""What Prefect's log need not say: the traceback of an error whose text says it all, and of its own shutdown."""

from __future__ import annotations

import asyncio
import logging

from sparsekd.errors import SparseKDError

_RUNS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")
_OBSERVERS = ("prefect.FlowRunCancellingObserver", "prefect.FlowRunSuspendingObserver")


class _OnlyTheText(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raised = record.exc_info[1] if record.exc_info else None
        if raised is None or isinstance(raised, SparseKDError):
            record.exc_info = None  # (None, None, None) would be shown as `NoneType: None`
            if isinstance(raised, SparseKDError):
                record.msg, record.args = f"{record.getMessage()}: {raised}", ()
        return True


class _NothingCancelled(logging.Filter):
    """Where its server was away, Prefect ends by asking tasks that it has just cancelled what went wrong (3.8.8)."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class _NoTraceback(logging.Filter):
    """They tell of a server that was away, which is no error of this process."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = None
        return True


def shorten() -> None:
    """Install it in this process, once."""
    filters: dict[str, type[logging.Filter]] = {"asyncio": _NothingCancelled}
    filters |= dict.fromkeys(_RUNS, _OnlyTheText) | dict.fromkeys(_OBSERVERS, _NoTraceback)
    for name, wanted in filters.items():
        logger = logging.getLogger(name)
        if not any(isinstance(present, wanted) for present in logger.filters):
            logger.addFilter(wanted())
