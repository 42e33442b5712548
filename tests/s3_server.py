"""An S3-compatible server on 127.0.0.1 (moto), in a process of its own so that a test can end it, as a DVC remote."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.server.servers import free_port
from tests.miniature import wait_until

BUCKET = "sparsekd"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
"""What a process needs in its environment to talk to it."""


@dataclass
class Storage:
    """The server, with one bucket."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def configure(self, root: Path) -> None:
        """Make it the default DVC remote of the checkout at `root`, in the file that git does not see."""
        (root / ".dvc" / "config.local").write_text(
            f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = s3://{BUCKET}/dvc\n"
            f"    endpointurl = {self.url}\n    use_ssl = false\n"
        )

    def objects(self) -> list[str]:
        """Every key in the bucket."""
        found = _client(self.url).list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [entry["Key"] for entry in found]


@contextlib.contextmanager
def storage(port: int | None = None) -> Iterator[Storage]:
    """A fresh one."""
    port = port or free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        made = Storage(port, process)
        wait_until(lambda: _makes_bucket(made.url), "the S3 server to answer", 60)
        yield made
    finally:
        process.kill()
        process.wait()


def _makes_bucket(url: str) -> bool:
    from botocore.exceptions import BotoCoreError

    with contextlib.suppress(BotoCoreError):
        _client(url).create_bucket(Bucket=BUCKET)
        return True
    return False


def _client(url: str):  # type: ignore[no-untyped-def]
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=url, config=Config(retries={"total_max_attempts": 1}, proxies={}), **keys)
