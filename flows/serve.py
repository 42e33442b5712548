"""`sparsekd serve`: Prefect's and MLflow's pages on 127.0.0.1, and the flow as a deployment with a form."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from flows import params
from flows.launch import sigterm_raises
from flows.orphan import name_server
from flows.servers import announced, require_free, served_api, start_mlflow, start_prefect
from sparsekd.errors import ConfigError
from tasks import environment
from tasks.groups import end_recorded_groups


def serve(
    cron: str | None = None,
    prefect_port: int = 4200,
    mlflow_port: int = 5000,
    root: Path | None = None,
    retention_days: float = 90,
) -> None:
    """Serve until Ctrl-C or SIGTERM; then, or when this process is killed, everything it started ends too.

    `cron` also starts runs at these times (local); flow runs older than `retention_days` are removed. Raises
    ConfigError when a port is in use, params.yaml is wrong, or another `sparsekd serve` works in this checkout;
    ResourceError when a server does not start.
    """
    root = (root or params.find_root()).absolute()
    os.chdir(root)
    params.load(root)
    environment.apply(root)
    _check(root, prefect_port, mlflow_port)
    end_recorded_groups(root)  # servers that a killed `serve` left for the moment until its guard acts
    with contextlib.ExitStack() as stack:
        stack.enter_context(sigterm_raises())
        prefect = start_prefect(root, prefect_port, ui=True)
        stack.callback(prefect.end)
        mlflow = start_mlflow(root, mlflow_port)
        stack.callback(mlflow.end)
        print("Starting the Prefect and MLflow servers …", flush=True)
        prefect.wait_until_ready("/api/health")
        mlflow.wait_until_ready("/health")
        stack.enter_context(announced(root, prefect, mlflow))
        os.environ["PREFECT_API_URL"] = f"{prefect.url}/api"
        os.environ["PREFECT_UI_URL"] = prefect.url
        _run(root, cron, prefect.url, mlflow.url, retention_days)


def _check(root: Path, prefect_port: int, mlflow_port: int) -> None:
    if os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            f"PREFECT_API_URL is {os.environ['PREFECT_API_URL']}; `sparsekd serve` starts a server of its own. Unset "
            "it, or use `prefect deploy` and a worker with yours."
        )
    if (running := served_api(root)) is not None:
        raise ConfigError(f"`sparsekd serve` already works in this checkout, at {running.removesuffix('/api')}.")
    require_free(prefect_port, "the Prefect server", "--port")
    require_free(mlflow_port, "the MLflow server", "--mlflow-port")


def _run(root: Path, cron: str | None, prefect_url: str, mlflow_url: str, retention_days: float) -> None:
    """Register the deployments and start the runs that are asked for, until a signal."""
    name_server()
    from flows import automations
    from flows.deployments import deployments, keep_fresh
    from flows.holding import close_unfinished
    from flows.retention import keep_clean
    from flows.runner import serve_deployments
    from flows.workspace import left_behind

    made = deployments(root, cron)
    automations.ensure()
    ended = threading.Event()
    keepers = [
        threading.Thread(target=keep_fresh, args=(root, ended), daemon=True),
        threading.Thread(target=keep_clean, args=(retention_days, ended), daemon=True),
    ]

    def ready() -> None:
        for keeper in keepers:
            keeper.start()
        print(
            f"Prefect   {prefect_url}  (Deployments → compress: start a run from its form)\n"
            f"MLflow    {mlflow_url}\n"
            + (f"A run starts by itself at: {cron}\n" if cron else "")
            + "Ctrl-C ends both.",
            flush=True,
        )

    try:
        serve_deployments(made, ready)
    finally:
        ended.set()
        for place in (root, *(space.path for space in left_behind(root))):
            close_unfinished(place, "`sparsekd serve` was stopped while it ran; start it again and it goes on.")
