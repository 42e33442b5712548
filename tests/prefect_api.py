"""Prefect's REST API for tests, without Prefect's own client: nothing of Prefect is imported into the test process."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from typing import Any


def ask(api: str, path: str, body: Any = None, password: str | None = None) -> Any:
    """GET `api`/`path`, or POST a `body`. As Prefect's client does, try again where SQLite is busy (503)."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if password is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(password.encode()).decode()
    request = urllib.request.Request(f"{api}/{path}", data, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for remaining in range(20, -1, -1):
        try:
            with opener.open(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503 or not remaining:
                raise
            error.close()
        except TimeoutError:
            if data is not None or not remaining:
                raise
        time.sleep(0.5)
    raise AssertionError("unreachable")
