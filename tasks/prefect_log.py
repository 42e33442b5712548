"""Prefect logs a failed run with a traceback; for an error whose text says it all, the text will do."""

from __future__ import annotations

import logging

from sparsekd.errors import SparseKDError

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


class _OnlyTheText(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raised = record.exc_info[1] if record.exc_info else None
        if raised is None or isinstance(raised, SparseKDError):
            record.exc_info = None  # (None, None, None) would be shown as `NoneType: None`
            if isinstance(raised, SparseKDError):
                record.msg, record.args = f"{record.getMessage()}: {raised}", ()
        return True


def shorten() -> None:
    """Install it in this process, once."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, _OnlyTheText) for present in logger.filters):
            logger.addFilter(_OnlyTheText())
