"""The flow as Prefect deployments, whose forms are generated from the configuration's own models.

`compress/current` shows params.yaml as it stands; `compress/smoke`, `compress/default` and `compress/quality` show what
the preset would make of it. What a form shows is what its run writes to the params.yaml of its workspace.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tasks import environment

environment.apply(environment.checkout_root(), name_root=False)  # before prefect is imported

from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.actions import DeploymentUpdate  # noqa: E402
from prefect.deployments.runner import EntrypointType, RunnerDeployment  # noqa: E402

from flows import params  # noqa: E402
from flows.compress import compress  # noqa: E402
from sparsekd.config import RunConfig  # noqa: E402
from sparsekd.errors import ConfigError  # noqa: E402

CURRENT = "current"
TAG = "sparsekd"
"""What all runs of our deployments are marked with, in `prefect.yaml` too."""
_POLL_SECONDS = 2.0


def deployments(root: Path, cron: str | None = None) -> list[RunnerDeployment]:
    """One deployment a form; `cron` (local time) also starts the current one. Raises ConfigError for a bad `cron`."""
    made = []
    for name, config in _forms(root).items():
        schedule = {"schedule": _schedule(cron)} if cron and name == CURRENT else {}
        described = "params.yaml as it stands" if name == CURRENT else f"the preset {name}"
        made.append(
            compress.to_deployment(
                name,
                parameters=form_values(config),
                description=f"Compress a language model end to end, starting from {described}.",
                tags=[TAG],
                entrypoint_type=EntrypointType.MODULE_PATH,
                **schedule,
            )
        )
    return made


def form_values(config: RunConfig) -> dict[str, Any]:
    """The flow's parameters that stand for `config`; a run from a form works in a workspace of its own."""
    values = config.model_dump(mode="json")
    values.pop("preset")
    return {**values, "isolated": True}


def refresh(root: Path) -> None:
    """Make the forms show params.yaml as it stands now."""
    with get_client(sync_client=True) as client:
        for name, config in _forms(root).items():
            found = client.read_deployment_by_name(f"{compress.name}/{name}")
            client.update_deployment(found.id, DeploymentUpdate(parameters=form_values(config)))


def keep_fresh(root: Path, ended: threading.Event) -> None:
    """Refresh the forms whenever params.yaml has changed, until `ended`."""
    path = root / "params.yaml"
    shown = path.read_bytes()
    while not ended.wait(_POLL_SECONDS):
        try:
            if path.read_bytes() != shown:
                shown = path.read_bytes()
                refresh(root)
        except Exception as error:  # half-edited YAML, a busy server: the next change or round shows it
            print(f"warning: the forms still show the earlier params.yaml: {error}", flush=True)


def _forms(root: Path) -> dict[str, RunConfig]:
    current = params.load(root)
    return {CURRENT: current} | {name: params.with_preset(current, name, root) for name in params.PRESETS}


def _schedule(cron: str) -> Any:
    from prefect.schedules import Cron
    from prefect.server.schemas.schedules import CronSchedule  # checks the text

    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise ConfigError(
            f"--cron is {cron!r}; it must be a cron expression such as '0 3 * * *' (every night at 3)."
        ) from None
    return Cron(cron, _local_zone())


def _local_zone() -> str:
    """This machine's time zone by name, UTC where it has none."""
    name = str(Path("/etc/localtime").resolve())
    return name.partition("zoneinfo/")[2] or "UTC"
