"""The flow `preview`: the price list of a model as `sparsekd preview` makes it, with table and picture in Prefect."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from tasks import environment

environment.apply(environment.checkout_root(), name_root=False)  # before prefect is imported

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.states import Failed  # noqa: E402

from flows.apart import end_command, run_command  # noqa: E402
from flows.confined import check_confined, check_source  # noqa: E402
from flows.hooks import begin, tell  # noqa: E402
from flows.previewing import Asked, as_markdown, settle, widths_of  # noqa: E402
from flows.result import embedded  # noqa: E402
from sparsekd.errors import SparseKDError  # noqa: E402


@flow(
    name="preview",
    on_cancellation=[end_command],
    on_crashed=[end_command, tell],
    on_failure=[tell],
    retries=0,
    persist_result=False,
)
def preview(
    model: str | None = None,
    widths: str = "0.9,0.8,0.7,0.6,0.5,0.4",
    preset: Literal["smoke", "default", "quality"] | None = None,
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
        return _preview(home, Asked(model, preset=preset, settings=settings), widths)
    except SparseKDError as error:
        return Failed(message=str(error), data=error)


def _preview(home: Path, asked: Asked, widths: str) -> Any:
    os.chdir(home)  # relative paths start here
    widths_of(widths)
    if asked.model is not None:
        check_source("model", asked.model)
    check_confined(settle(asked))
    given = {"model": asked.model, "preset": asked.preset}
    arguments = [f"--widths={widths}", *(f"--{key}={value}" for key, value in given.items() if value is not None)]
    out = run_command(home, "preview", [*arguments, *(f"--set={one}" for one in asked.settings or ())])
    found = json.loads((out / "preview.json").read_text())
    picture = embedded(out / "preview.png", "KL to the dense model against parameters")
    markdown = f"## {found['model']}\n\n{as_markdown(found)}\n\n{picture}"
    create_markdown_artifact(key="price-list", markdown=markdown, description=found["model"])
    get_run_logger().info("The files are in %s.", out.relative_to(home))
    return found
