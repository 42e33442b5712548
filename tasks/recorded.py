"""What DVC recorded for a stage against what the stage says it was made from.

DVC hashes parameters and inputs after the command. The stage itself refuses to finish when they changed while it
worked (tasks/process.py); this closes the moment between that check and DVC's hashing.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sparsekd.artifacts import Artifact
from sparsekd.errors import StageError
from tasks.environment import python, stage_environment
from tasks.graph import StageSpec

_READ_TRIES = 20


def check_recorded(root: Path, spec: StageSpec) -> None:
    """Compare the manifest of the stage's output with dvc.lock and with its inputs.

    Raises StageError when they differ, after making DVC forget what it recorded, so that nothing is ever restored
    under the wrong parameters.
    """
    artifact = Artifact.read(root / spec.out, verify=False)
    recorded = _recorded_params(root, spec.name)
    changed = [
        f"params.yaml: {key}"
        for key, value in artifact.manifest.config.items()
        if _canonical(recorded.get(key)) != _canonical(value)
    ]
    for path, sha256 in artifact.manifest.inputs.items():
        if Artifact.read(root / path, verify=False).manifest.sha256() != sha256:
            changed.append(path)
    if not changed:
        return
    _forget(root, spec.name)
    raise StageError(
        f"{', '.join(changed)} changed while stage {spec.name} ran: its output is not what params.yaml says, so what "
        "DVC recorded for it was removed. Run `sparsekd compress` again."
    )


def _recorded_params(root: Path, stage: str) -> dict[str, Any]:
    """The stage's parameters in dvc.lock, by dotted key. Another DVC process may be in the middle of writing it."""
    for _ in range(_READ_TRIES):
        try:
            entry = YAML(typ="safe", pure=True).load((root / "dvc.lock").read_text())["stages"][stage]
            return dict((entry.get("params") or {}).get("params.yaml") or {})
        except (OSError, YAMLError, KeyError, TypeError, AttributeError):
            time.sleep(0.1)
    raise StageError(f"dvc.lock has no entry for stage {stage} although it has run; run `sparsekd compress` again.")


def _canonical(value: Any) -> Any:
    """`value` with numbers that were quoted by hand as numbers."""
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _forget(root: Path, stage: str) -> None:
    done = subprocess.run(
        [python(), "-P", str(Path(__file__).with_name("forget.py")), stage],
        cwd=root,
        env=stage_environment(root, stage),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StageError(
            f"dvc.lock holds wrong parameters for stage {stage} and could not be mended "
            f"({done.stderr.strip()[-300:]}); run `dvc repro --force --single-item {stage}`."
        )
