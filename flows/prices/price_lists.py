"""Price lists of this checkout, kept by what they were computed from, in .sparsekd/prices."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import sparsekd
from flows.settings.params import sections
from sparsekd.config import BUDGETS, RunConfig
from sparsekd.errors import SparseKDError
from sparsekd.evaluation.offers import PriceList
from sparsekd.settings import parse_config
from tasks.state import FOLDER, write_json

_READ = ("model", "texts", "calibrate", "runtime")


def kept(home: Path, config: RunConfig, widths: Sequence[float]) -> PriceList | None:
    """The list of an earlier preview of the same model, texts, settings and widths by the same code."""
    try:
        return PriceList.model_validate_json(_file(home, config, widths).read_text())
    except (OSError, ValueError):
        return None


def keep(home: Path, config: RunConfig, widths: Sequence[float], prices: PriceList) -> None:
    """Keep a list for the next who asks."""
    file = _file(home, config, widths)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, prices.model_dump(mode="json"))


def computed_apart(home: Path, config: RunConfig, widths: Sequence[float]) -> PriceList:
    """The list, by a process of its own where it is not kept: a model stays in no memory that a run needs after it.

    Its progress is shown; SparseKDError says what went wrong.
    """
    if (found := kept(home, config, widths)) is None:
        request = json.dumps({"config": config.model_dump(mode="json"), "widths": list(widths)})
        command = [sys.executable, "-m", "flows.prices.price_lists"]
        done = subprocess.run(command, cwd=home, input=request, text=True, check=False)
        if done.returncode:
            raise SparseKDError("The price list could not be made; its own message is above.")
        found = kept(home, config, widths)
        assert found is not None, "the process keeps what it computed"
    return found


def _file(home: Path, config: RunConfig, widths: Sequence[float]) -> Path:
    values = {key: values for key, values in sections(config).items() if key in _READ}
    prune = {key: value for key, value in config.prune.model_dump(mode="json").items() if key not in BUDGETS}
    text = json.dumps([values, prune, list(widths), _code()], sort_keys=True, default=str)
    return home / FOLDER / "prices" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _code() -> str:
    """A digest of the library's own sources: after a change of them every list is made anew."""
    folder = Path(sparsekd.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Read a request from stdin, compute and keep its list. The exit code is the error's."""
    from flows.commands.previewing import price

    request = json.loads(sys.stdin.read())
    try:
        price(parse_config(request["config"], "the request"), request["widths"])
    except SparseKDError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
