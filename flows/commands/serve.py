"""`sparsekd serve`: Prefect's and MLflow's pages, kept up, and the flows as deployments with forms and schedules."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from pathlib import Path

from flows.commands.launch import sigterm_raises
from flows.flow_runs.orphan import name_server
from flows.server.servers import (
    AUTH_VARIABLES,
    HOST,
    announced,
    kept_up,
    require_free,
    served_api,
    start_mlflow,
    start_prefect,
)
from flows.settings import confined, params
from sparsekd.errors import ConfigError
from tasks import environment
from tasks.groups import end_recorded_groups


def serve(
    cron: str | None = None,
    prefect_port: int = 4200,
    mlflow_port: int = 5000,
    root: Path | None = None,
    retention_days: float = 90,
    refresh_cron: str | None = None,
    sources: Path | None = None,
    host: str = HOST,
) -> None:
    """Serve until Ctrl-C or SIGTERM; then, or when this process is killed, everything it started ends too.

    `cron` also starts runs at these times (local), `refresh_cron` runs where something is new; flow runs older than
    `retention_days` are removed. Runs read local files only in `sources`, where that is given. On another `host` than
    this machine's own, Prefect asks for a password; MLflow, which has none, stays on this machine. Raises ConfigError
    when a port is in use, params.yaml is wrong, or another `sparsekd serve` works in this checkout; ResourceError when
    a server does not start.
    """
    root = (root or params.find_root()).absolute()
    sources = sources.absolute() if sources is not None else None
    os.chdir(root)
    params.load(root)
    environment.apply(root)
    _check(root, prefect_port, mlflow_port, host)
    if sources is not None:
        if not sources.is_dir():
            raise ConfigError(f"--sources is {sources}, which is no directory; name one that holds models and texts.")
        os.environ[confined.VARIABLE] = str(sources)
    if host != HOST:
        protect(host)
    end_recorded_groups(root)  # servers that a killed `serve` left for the moment until its guard acts
    with contextlib.ExitStack() as stack:
        stack.enter_context(sigterm_raises())
        prefect = start_prefect(root, prefect_port, ui=True, host=host)
        stack.callback(prefect.end)
        mlflow = start_mlflow(root, mlflow_port)
        stack.callback(mlflow.end)
        print("Starting the Prefect and MLflow servers …", flush=True)
        prefect.wait_until_ready("/api/health")
        mlflow.wait_until_ready("/health")
        stack.enter_context(announced(root, prefect, mlflow))
        os.environ["PREFECT_API_URL"] = f"{prefect.url}/api"
        os.environ["PREFECT_UI_URL"] = prefect.url
        stack.enter_context(kept_up(prefect, mlflow))
        _run(root, cron, refresh_cron, prefect.url, mlflow.url, retention_days)


def protect(host: str) -> None:
    """Set Prefect's basic authentication for server, runs and pages: the user's own, or a password made now.

    It is told in this terminal; this user's other commands find it in .sparsekd/serve.json, closed to others.
    """
    own = next((os.environ[name] for name in AUTH_VARIABLES if os.environ.get(name)), None)
    text = own or f"admin:{secrets.token_urlsafe(18)}"
    os.environ.update(dict.fromkeys(AUTH_VARIABLES, text))
    said = "those of your environment" if own else text
    print(
        f"warning: Prefect answers on {host}: whoever knows the password can start runs as you, and it goes over the "
        f"network unencrypted. Put TLS in front of it. User and password: {said}",
        flush=True,
    )


def _check(root: Path, prefect_port: int, mlflow_port: int, host: str) -> None:
    if os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            f"PREFECT_API_URL is {os.environ['PREFECT_API_URL']}; `sparsekd serve` starts a server of its own. Unset "
            "it, or use `prefect deploy` and a worker with yours."
        )
    if (running := served_api(root)) is not None:
        raise ConfigError(f"`sparsekd serve` already works in this checkout, at {running.removesuffix('/api')}.")
    require_free(prefect_port, "the Prefect server", "--port", host)
    require_free(mlflow_port, "the MLflow server", "--mlflow-port")


def _run(
    root: Path, cron: str | None, refresh_cron: str | None, prefect_url: str, mlflow_url: str, retention_days: float
) -> None:
    """Register the deployments and start the runs that are asked for, until a signal."""
    name_server()
    from flows.flow_runs.holding import close_unfinished
    from flows.server import automations
    from flows.server.deployments import deployments, keep_fresh
    from flows.server.retention import keep_clean
    from flows.server.runner import serve_deployments
    from flows.workspaces.workspace import left_behind

    def close_all(why: str) -> None:
        for place in (root, *(space.path for space in left_behind(root))):
            close_unfinished(place, why)

    made = deployments(root, cron, refresh_cron)
    automations.ensure()
    close_all("`sparsekd serve` was killed while it ran.")
    automations.start_again()
    ended = threading.Event()
    keepers = [
        threading.Thread(target=keep_fresh, args=(root, ended), daemon=True),
        threading.Thread(target=keep_clean, args=(retention_days, ended), daemon=True),
        threading.Thread(target=automations.keep_going, args=(ended,), daemon=True),
    ]

    def ready() -> None:
        for keeper in keepers:
            keeper.start()
        print(
            f"Prefect   {prefect_url}  (Deployments → compress, sweep, refresh, evaluate: start a run from its form)\n"
            f"MLflow    {mlflow_url}\n"
            + (f"A run starts by itself at: {cron}\n" if cron else "")
            + (f"A run starts where something is new at: {refresh_cron}\n" if refresh_cron else "")
            + "Ctrl-C ends both.",
            flush=True,
        )

    try:
        serve_deployments(made, ready)
    finally:
        ended.set()
        close_all("`sparsekd serve` was stopped while it ran; start it again and it goes on.")
