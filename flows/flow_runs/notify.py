"""Tell somebody: a JSON message to a webhook when a run fails, crashes or does not pass its gate."""

from __future__ import annotations

import json
import logging
import os
import urllib.request
from typing import Any

VARIABLE = "SPARSEKD_WEBHOOK"
"""The address that messages go to. In the environment and not in params.yaml: such an address is a secret."""
_SECONDS = 10


def notify(event: str, run: str, message: str, **more: Any) -> None:
    """POST {"event", "run", "message", "text", …} to $SPARSEKD_WEBHOOK, if that is set.

    `text` is a line for people, as chat services show it. A receiver that is down costs a warning.
    """
    address = os.environ.get(VARIABLE)
    if not address:
        return
    body = {"event": event, "run": run, "message": message, "text": f"sparsekd {run}: {event}. {message}", **more}
    headers = {"Content-Type": "application/json"}
    try:
        if not address.startswith(("http://", "https://")):
            raise ValueError("no address of the web")
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=_SECONDS):
            pass
    except (OSError, ValueError) as error:  # its address is not in the log: it may hold a token
        logging.getLogger(__name__).warning("The webhook in %s was not told: %s", VARIABLE, type(error).__name__)
