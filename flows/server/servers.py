"""Prefect's and MLflow's servers as children under the guard, on 127.0.0.1 unless told otherwise."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsekd.errors import ConfigError, ResourceError
from tasks.environment import python, settings
from tasks.groups import Group, created, lives, start_group
from tasks.quick import QUICK
from tasks.state import log_path, read_json, write_json
from tasks.tracking.store import shown

HOST = "127.0.0.1"
AUTH_VARIABLES = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")
"""Prefect's basic authentication, `user:password`: the server asks for the first, clients send the second."""
_READY_SECONDS = 120.0
_GRACE_SECONDS = 5.0
_WATCH_SECONDS = 1.0
_REST_SECONDS = 20.0  # between two starts of a server that dies each time


@dataclass
class Server:
    """A server that runs: where it answers, its process group, and how it was started."""

    name: str
    url: str
    log: Path
    start: Callable[[], Group]
    group: Group

    def wait_until_ready(self, path: str) -> None:
        """Return once `url + path` answers. Raises ResourceError with the server's last lines when it never does."""
        deadline = time.monotonic() + _READY_SECONDS
        while not answers(self.url + path):
            if not self.group.running() or time.monotonic() > deadline:
                last = " ".join(self.log.read_text(errors="replace").split()[-60:])
                raise ResourceError(f"The {self.name} server did not start; the end of {self.log}: {last}")
            time.sleep(0.1)

    def restart(self) -> None:
        """Start it again on the same port and the same data, after it has died."""
        self.group.wait()
        self.group = self.start()

    def end(self) -> None:
        """Let it stop by itself for some seconds, then end what is left."""
        self.group.end(_GRACE_SECONDS)


def start_prefect(root: Path, port: int, ui: bool, host: str = HOST) -> Server:
    """Prefect's API, with its pages if `ui`; state in PREFECT_HOME inside the checkout."""
    url = f"http://{HOST if host == '0.0.0.0' else host}:{port}"
    command = ["-m", "flows.server.prefect_server", "server", "start", "--host", host, "--port", str(port)]
    # the browser of another machine cannot reach this one's loopback
    page = f"http://{socket.gethostname()}:{port}" if host == "0.0.0.0" else url
    extra = {"PREFECT_SERVER_UI_API_URL": f"{page}/api", "PREFECT_API_URL": f"{url}/api"}
    return _start(root, "prefect", url, [*command, "--ui" if ui else "--no-ui"], extra)


def start_mlflow(root: Path, port: int) -> Server:
    """MLflow's pages over mlflow/mlflow.db, with the settings in mlflow/server.env."""
    if not (root / "mlflow" / "mlflow.db").is_file():  # else MLflow need not load here too
        from tasks.tracking.store import create_database

        create_database(root)
    command = ["-P", str(QUICK), "mlflow", "--env-file", "mlflow/server.env", "server"]
    return _start(root, "mlflow", f"http://{HOST}:{port}", command, {"MLFLOW_HOST": HOST, "MLFLOW_PORT": str(port)})


def _start(root: Path, name: str, url: str, arguments: list[str], extra: dict[str, str]) -> Server:
    log = log_path(root, f"{name}-server")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**settings(root), **os.environ, "PATH": _path(), "PYTHONUNBUFFERED": "1", **extra}
    log.write_bytes(b"")

    def start() -> Group:
        with log.open("ab") as output:
            return start_group([python(), *arguments], root=root, name=f"{name} server", env=environment, output=output)

    return Server(name, url, log, start, start())


@contextlib.contextmanager
def kept_up(*servers: Server) -> Iterator[None]:
    """Start again what dies of `servers` in this block: Prefect's clients in a run ask again for about a minute."""
    ended = threading.Event()
    keeper = threading.Thread(target=_keep_up, args=(servers, ended), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()


def _keep_up(servers: Collection[Server], ended: threading.Event) -> None:
    rest = {server.name: 0.0 for server in servers}
    while not ended.wait(_WATCH_SECONDS):
        for server in servers:
            if not server.group.running() and time.monotonic() >= rest[server.name]:
                rest[server.name] = time.monotonic() + _REST_SECONDS
                print(f"warning: The {server.name} server has died; it is started again. Log: {server.log}", flush=True)
                server.restart()


def _path() -> str:
    return os.pathsep.join([str(Path(python()).parent), os.environ.get("PATH", os.defpath)])


def require_free(port: int, what: str, option: str, host: str = HOST) -> None:
    """Raise ConfigError when `port` of `host` is in use, or this machine does not have that address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise ConfigError(f"{option} is {port}; a port lies in 1 to 65535.") from None
        except OSError as error:
            raise ConfigError(
                f"Port {port} on {host} cannot be had for {what} ({error.strerror}); stop what uses it, or choose "
                f"another with {option}."
            ) from None


def free_port() -> int:
    """A port that nothing uses right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_for_answer(url: str, seconds: float = 30.0) -> bool:
    """Whether `url` answers within `seconds`."""
    deadline = time.monotonic() + seconds
    while not answers(url):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def answers(url: str) -> bool:
    """Whether a GET of `url` succeeds; no proxy is asked, it is on this machine or named by the user."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError, urllib.error.URLError, ValueError), opener.open(url, timeout=5) as response:
        return bool(response.status == 200)
    return False


def served_path(root: Path) -> Path:
    """`.sparsekd/serve.json`: where a running `sparsekd serve` answers."""
    return root / ".sparsekd" / "serve.json"


def served_api(root: Path) -> str | None:
    """The API address of a `sparsekd serve` that runs in this checkout, or None; its password goes to the environment.

    Its process decides, not its answer: a second server beside a busy one would lock the database for both.
    """
    values = read_json(served_path(root))
    if not isinstance(values, dict) or not lives(values["pid"], values["created"]):
        return None
    if values.get("auth"):
        os.environ.setdefault(AUTH_VARIABLES[1], values["auth"])
    return f"{values['prefect']}/api"


def served_mlflow(root: Path) -> str | None:
    """Where MLflow's pages are: MLFLOW_TRACKING_URI where that is a server, else a running `sparsekd serve`'s."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if named.startswith(("http://", "https://")):
        return shown(named).rstrip("/")
    values = read_json(served_path(root))
    if not isinstance(values, dict) or not lives(values["pid"], values["created"]):
        return None
    return str(values["mlflow"])


@contextlib.contextmanager
def announced(root: Path, prefect: Server, mlflow: Server) -> Iterator[None]:
    """Tell other commands in this checkout where the servers are, as long as they run."""
    mine = {"pid": os.getpid(), "created": created(os.getpid())}
    where = {"prefect": prefect.url, "mlflow": mlflow.url, "auth": os.environ.get(AUTH_VARIABLES[1])}
    write_json(served_path(root), {**mine, **where}, mode=0o600)
    try:
        yield
    finally:
        served_path(root).unlink(missing_ok=True)
