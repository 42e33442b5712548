"""Who may do what through the server: a password off loopback, files in one directory, no shell, no leak."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.server.servers import free_port
from flows.workspaces.commands import git
from tests.databases import copy_mlflow_database
from tests.integration.test_command_line import command
from tests.miniature import Miniature, make_miniature, started, wait_until
from tests.prefect_api import ask

pytestmark = pytest.mark.slow

SERVE = """
import sys
from pathlib import Path
from flows.commands.serve import serve
serve(prefect_port=int(sys.argv[1]), mlflow_port=int(sys.argv[2]), host="127.0.0.2", sources=Path(sys.argv[3]))
"""
SECRETS = {
    "HF_TOKEN": "hf_planted-one",
    "AWS_SECRET_ACCESS_KEY": "planted-two/key",
    "SPARSEKD_WEBHOOK": "http://127.0.0.1:9/planted-three",
    "PREFECT_API_AUTH_STRING": "planted:four-password",
    "PREFECT_SERVER_API_AUTH_STRING": "planted:four-password",
}


class Guarded:
    """A server on another address of loopback than the usual one, whose password is planted."""

    def __init__(self, checkout: Miniature, url: str, process: subprocess.Popen[str]) -> None:
        self.checkout, self.url, self.process = checkout, url, process

    def ask(self, path: str, body: Any = None, password: str | None = "planted:four-password") -> Any:
        return ask(f"{self.url}/api", path, body, password)

    def run(self, deployment: str, **parameters: Any) -> Any:
        """Start a run and wait for its end; the run."""
        found = self.ask(f"deployments/name/{deployment}/current")
        body = {"parameters": found["parameters"] | parameters, "state": {"type": "SCHEDULED"}}
        run = self.ask(f"deployments/{found['id']}/create_flow_run", body)["id"]
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_until(lambda: self.ask(f"flow_runs/{run}")["state_type"] in final, "the run to end", 150)
        return self.ask(f"flow_runs/{run}")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    root = tmp_path_factory.mktemp("guarded")
    checkout = make_miniature(root / "check out")
    copy_mlflow_database(checkout.root)
    (root / "allowed").mkdir()
    (root / "secret.txt").write_text("not for everybody " * 500)
    (root / "allowed" / "link.txt").symlink_to(root / "secret.txt")
    port = str(free_port())
    with started(checkout, SERVE, port, str(free_port()), str(root / "allowed"), **SECRETS) as process:
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        text = "".join(lines)
        assert "warning: Prefect answers on 127.0.0.2" in text, text
        assert "four-password" not in text, "a password of the user's own is not repeated"
        yield Guarded(checkout, f"http://127.0.0.2:{port}", process)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def test_without_the_password_nothing_is_answered(guarded: Guarded) -> None:
    for wrong in (None, "planted:other"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            guarded.ask("flows/count", {}, password=wrong)
        assert refused.value.code == 401
        refused.value.close()
    assert guarded.ask("flows/count", {}) >= 4


def test_other_commands_of_the_user_know_it_and_others_cannot_read_it(guarded: Guarded) -> None:
    noted = guarded.checkout.root / ".sparsekd" / "serve.json"
    assert stat.S_IMODE(noted.stat().st_mode) == 0o600
    done = command("compress", cwd=guarded.checkout.root)
    assert guarded.checkout.runs("distill") == 1, done.stderr


def test_files_outside_the_directory_are_refused(guarded: Guarded) -> None:
    secret = str(guarded.checkout.root.parent / "secret.txt")
    for source in (
        "hf:../..@" + 40 * "0",
        "file:" + secret,
        str(guarded.checkout.root.parent / "allowed" / "link.txt"),
    ):
        run = guarded.run("compress", texts={"sources": [source], "revisions": None})
        assert run["state"]["message"].startswith("texts.sources is "), run["state"]["message"]
        assert "reads local files from" in run["state"]["message"] or source.startswith("hf:")
    run = guarded.run("evaluate", model=str(guarded.checkout.root.parent))
    assert run["state"]["message"].startswith("model is "), run["state"]["message"]
    run = guarded.run("refresh", settings=[f"texts.sources=[{secret}]"])
    assert "reads local files from" in run["state"]["message"]


def test_no_value_reaches_a_shell(guarded: Guarded, tmp_path: Path) -> None:
    mark = tmp_path / "p"
    evil = f"x; touch {mark}; $(touch {mark})"
    for deployment, parameters in (
        ("compress", {"model": {"source": evil, "revision": None}}),
        ("compress", {"at": evil}),
        ("compress", {"name": evil}),
        ("compress", {"name": "../.."}),
        ("evaluate", {"model": evil}),
        ("sweep", {"settings": [f"report.name={evil},b"], "name": evil}),
    ):
        run = guarded.run(deployment, **parameters)
        assert run["state_type"] == "FAILED", (deployment, parameters, run["state"])
    assert not mark.exists()


def test_no_secret_is_left_in_files(guarded: Guarded) -> None:
    run = guarded.run("compress", prune={"width": 0.5})
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    root, noted = guarded.checkout.root, guarded.checkout.root / ".sparsekd" / "serve.json"
    found = [
        (str(file.relative_to(root)), secret)
        for file in root.rglob("*")
        if file.is_file() and file != noted
        for secret in SECRETS.values()
        if secret.encode() in file.read_bytes() or b"planted" in file.read_bytes()
    ]
    assert not found
    listed = git(root, "cat-file", "--batch-all-objects", "--batch-check").splitlines()
    blobs = "\n".join(line.split()[0] for line in listed if " blob " in line)
    dump = subprocess.run(
        ["git", "cat-file", "--batch"], cwd=root, input=blobs.encode(), capture_output=True, check=True
    )
    assert b"width: 0.5" in dump.stdout, "the experiment is in it"
    assert b"planted" not in dump.stdout
