"""The flows as Prefect deployments, whose forms are generated from the configuration's own models.

`compress/current` shows params.yaml as it stands; `compress/smoke` and so on, one for each preset, show what
the preset would make of it. What a form shows is what its run writes to the params.yaml of its workspace.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

from tasks import environment

environment.apply(environment.checkout_root(), name_root=False)  # before prefect is imported

from prefect import Flow  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.actions import DeploymentUpdate  # noqa: E402
from prefect.deployments.runner import RunnerDeployment  # noqa: E402
from prefect.types.entrypoint import EntrypointType  # noqa: E402

from flows.compress import compress  # noqa: E402
from flows.evaluate import evaluate  # noqa: E402
from flows.preview import preview  # noqa: E402
from flows.refresh import refresh  # noqa: E402
from flows.settings import params  # noqa: E402
from flows.sweep import sweep  # noqa: E402
from sparsekd.config import RunConfig  # noqa: E402
from sparsekd.errors import ConfigError  # noqa: E402

CURRENT = "current"
TAG = "sparsekd"
"""What all runs of our deployments are marked with, in `prefect.yaml` too."""
_POLL_SECONDS = 2.0


def deployments(root: Path, cron: str | None = None, refresh_cron: str | None = None) -> list[RunnerDeployment]:
    """One deployment a form of compress, and one of each other flow.

    `cron` (local time) also starts compress/current, `refresh_cron` refresh/current. Raises ConfigError for a bad one.
    """
    made = []
    for name, config in _forms(root).items():
        start = "params.yaml as it stands" if name == CURRENT else f"the preset {name}"
        times = cron if name == CURRENT else None
        made.append(_deployment(compress, name, f"Starts from {start}.", form_values(config), times, "--cron"))
    widths = {"settings": ["prune.width=0.9,0.75,0.58,0.4"]}
    start = "Starts from params.yaml as it stands."
    return [
        *made,
        _deployment(sweep, CURRENT, start, widths),
        _deployment(refresh, CURRENT, start, {}, refresh_cron, "--refresh-cron"),
        _deployment(evaluate, CURRENT, "", {}),
        _deployment(preview, CURRENT, start, {}),
    ]


def _deployment(
    flow: Flow[..., Any], name: str, start: str, parameters: dict[str, Any], cron: str | None = None, option: str = ""
) -> RunnerDeployment:
    described = (flow.description or "").strip().partition("\n")[0]
    made = flow.to_deployment(
        name,
        parameters=parameters,
        description=f"{described} {start}".strip(),
        tags=[TAG],
        entrypoint_type=EntrypointType.MODULE_PATH,
        **({"schedule": _schedule(cron, option)} if cron else {}),
    )
    return cast(RunnerDeployment, made)  # a coroutine only where an event loop runs


def form_values(config: RunConfig) -> dict[str, Any]:
    """The flow's parameters that stand for `config`; a run from a form works in a workspace of its own."""
    return {**params.sections(config), "isolated": True}


def refresh_forms(root: Path) -> None:
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
                refresh_forms(root)
        except Exception as error:  # half-edited YAML, a busy server: the next change or round shows it
            print(f"warning: the forms still show the earlier params.yaml: {error}", flush=True)


def _forms(root: Path) -> dict[str, RunConfig]:
    current = params.load(root)
    return {CURRENT: current} | {name: params.with_preset(current, name, root) for name in params.PRESETS}


def _schedule(cron: str, option: str) -> Any:
    from prefect.schedules import Cron
    from prefect.server.schemas.schedules import CronSchedule  # checks the text

    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise ConfigError(
            f"{option} is {cron!r}; it must be a cron expression such as '0 3 * * *' (every night at 3)."
        ) from None
    return Cron(cron, _local_zone(), slug="serve")  # without one, Prefect would replace the schedules set on its page


def _local_zone() -> str:
    """This machine's time zone by name, UTC where it has none."""
    name = str(Path("/etc/localtime").resolve())
    return name.partition("zoneinfo/")[2] or "UTC"
