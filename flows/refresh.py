"""The flow `refresh`: look whether model, texts or settings have changed since, and compress anew only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks import environment

environment.apply(environment.checkout_root(), name_root=False)  # before prefect is imported

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.states import Completed, Failed  # noqa: E402

from flows.checks import preflight  # noqa: E402
from flows.flow_runs.hooks import STAGES_FLOW, begin  # noqa: E402
from flows.settings import params  # noqa: E402
from flows.settings.params import PresetName  # noqa: E402
from flows.workspaces import history  # noqa: E402
from flows.workspaces.history import RunRecord  # noqa: E402
from flows.workspaces.isolated import run_isolated  # noqa: E402
from flows.workspaces.kept import kept_config, kept_runs, kept_summary, same_values  # noqa: E402
from sparsekd.config import RunConfig  # noqa: E402
from sparsekd.errors import SparseKDError  # noqa: E402
from sparsekd.report.changes import changes, markdown  # noqa: E402
from sparsekd.settings import parse_config  # noqa: E402


@flow(name="refresh", **STAGES_FLOW)
def refresh(
    settings: list[str] = [],  # noqa: B006 - Prefect's form shows it, nobody changes it
    preset: PresetName | None = None,
    at: str | None = None,
    max_late: float | None = None,
) -> Any:
    """Compress again if the model, the texts or the settings have changed since the last run that ended well.

    The sources are resolved anew: the newest commit of a hub repository, the files of a path as they are, the newest
    version of a corpus. Where nothing is new this ends in seconds. Else an isolated run compresses, evaluates, passes
    the gate or not, and is registered; what changed against the last accepted run is an artifact of this flow run.

    Args:
        settings: As `stage.key=value`, over params.yaml.
        preset: How thorough to be; by default params.yaml as it stands.
        at: The commit, tag or branch to start from; by default the checkout as it stands.
        max_late: A scheduled run that starts so many minutes after its time is skipped.
    """
    home = environment.checkout_root()
    try:
        if (late := begin(home, max_late)) is not None:
            return late
        return _refresh(home, resolve_anew(home, settings, preset, at), at)
    except SparseKDError as error:
        return Failed(message=str(error), data=error)


def resolve_anew(home: Path, settings: list[str], preset: str | None, at: str | None) -> RunConfig:
    """The configuration that a run would have now: every source looked at again, as if it had no revision yet."""
    config = params.load_at(home, at)
    if preset is not None:
        config = params.with_preset(config, preset, home)
    values = config.model_dump()
    values["model"]["revision"] = values["texts"]["revisions"] = None
    anew = params.with_settings(parse_config(values), settings, "the settings")  # which may name a branch
    return preflight.resolve_sources(anew, home)[0]


def _refresh(home: Path, config: RunConfig, at: str | None) -> Any:
    logger = get_run_logger()
    before = last_accepted(home)
    if (same := _run_of(home, config)) is not None:
        return Completed(
            name="No new data", message=f"Model, texts and settings are those of run {same.name}.", data={}
        )
    for line in _news(home, before, config):
        logger.info(line)
    name = history.new_name(home, config)
    state = run_isolated(home, params.sections(config), at, name)
    _show_changes(home, before, name, config)
    return state


def last_accepted(home: Path) -> RunRecord | None:
    """The newest kept run that passed its gate; where none did, the newest that no gate judged."""
    found = kept_runs(home)
    passed = [record for record in found if record.gate == "passed"]
    return next(iter(passed or [record for record in found if record.gate in (None, "no limits")]), None)


def _run_of(home: Path, config: RunConfig) -> RunRecord | None:
    """The kept run that was made from just this, whatever came of its gate: it would come out the same again."""
    for record in kept_runs(home):
        made_from = kept_config(home, record.name)
        if made_from is not None and same_values(home, made_from, config):
            return record
    return None


def _news(home: Path, before: RunRecord | None, config: RunConfig) -> list[str]:
    """What is otherwise than in the run `before`, a line a setting."""
    made_from = kept_config(home, before.name) if before else None
    if before is None or made_from is None:
        return ["No accepted run to compare with yet."]
    found = [change for change in params.differences(made_from, config) if change.key != "preset"]
    return [f"Against run {before.name}:", *map(str, found)]


def _show_changes(home: Path, before: RunRecord | None, name: str, config: RunConfig) -> None:
    """What changed in inputs and results against the run `before`: an artifact, and changes.md beside the record."""
    old, new = (kept_summary(home, which) if which else None for which in (before.name if before else None, name))
    if before is None or old is None or new is None:
        return
    news = "\n".join(f"- {line}" for line in _news(home, before, config)[1:])
    table = markdown(changes(old, new), before.name, name)
    judged = f"{new.gate.sentence()}" if new.gate.checks else "No gate is set, so the run was not judged."
    parts = [f"## {name} against {before.name}", judged, "Inputs:", news, "Results of the distilled model:", table]
    text = "\n\n".join(parts) + "\n"
    (history.folder(home, name) / "changes.md").write_text(text)
    create_markdown_artifact(key="changes", markdown=text, description=f"{name} against {before.name}")
