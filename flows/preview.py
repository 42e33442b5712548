"""The flow `preview`: the price list of a model as `sparsekd preview` makes it, with table and picture in Prefect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks import environment

environment.apply(environment.checkout_root(), name_root=False)  # before prefect is imported

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.states import Failed  # noqa: E402

from flows.commands.previewing import as_markdown  # noqa: E402
from flows.flow_runs.apart import COMMAND_FLOW, run_command  # noqa: E402
from flows.flow_runs.hooks import begin  # noqa: E402
from flows.flow_runs.result import embedded  # noqa: E402
from flows.settings.params import PresetName  # noqa: E402
from sparsekd.errors import SparseKDError  # noqa: E402
from sparsekd.evaluation.offers import WIDTHS  # noqa: E402


@flow(name="preview", **COMMAND_FLOW)
def preview(
    model: str | None = None,
    widths: str = ",".join(map(str, WIDTHS)),
    preset: PresetName | None = None,
    settings: list[str] = [],  # noqa: B006 - Prefect's form shows it, nobody changes it
    max_late: float | None = None,
) -> Any:
    """Price a model: what every width would cost and keep, before anything is compressed.

    Nothing is compressed and no DVC stage runs. The table and the picture are an artifact of this flow run.

    Args:
        model: owner/name on the hub, a directory, or a catalogue name; by default that of params.yaml.
        widths: Fractions of intermediate_size, or integers, with commas between them.
        preset: Whose settings to take; by default params.yaml as it stands.
        settings: As `stage.key=value`, over them.
        max_late: A scheduled run that starts so many minutes after its time is skipped.
    """
    home = environment.checkout_root()
    try:
        if (late := begin(home, max_late)) is not None:
            return late
        return _preview(home, {"widths": widths, "model": model, "preset": preset}, settings)
    except SparseKDError as error:
        return Failed(message=str(error), data=error)


def _preview(home: Path, given: dict[str, str | None], settings: list[str]) -> Any:
    arguments = [f"--{key}={value}" for key, value in given.items() if value is not None]
    out = run_command(home, "preview", [*arguments, *(f"--set={setting}" for setting in settings)])
    found = json.loads((out / "preview.json").read_text())
    picture = embedded(out / "preview.png", "KL to the dense model against parameters")
    markdown = f"## {found['model']}\n\n{as_markdown(found)}\n\n{picture}"
    create_markdown_artifact(key="price-list", markdown=markdown, description=found["model"])
    get_run_logger().info("The files are in %s.", out.relative_to(home))
    return found
