"""A checkpoint to the Hugging Face hub: what would be sent is known and checked first, then one commit sends it.

One commit, because a repository that has new weights and an old configuration for a while is loaded wrongly by whoever
comes then. The hub's client skips files that are there already, so a push that was cut off goes on where it was.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from sparsekd.artifacts import MANIFEST, Artifact
from sparsekd.errors import ArtifactError, ConfigError, SourceError
from sparsekd.sources.catalogue import catalogue
from sparsekd.sources.checkpoint import CARD, check_checkpoint, stock_files
from sparsekd.sources.hub import unreachable

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PAGES = ("index.html", "summary.json")
"""What of the report goes beside its model card."""


@dataclass(frozen=True)
class Shipment:
    """What one commit would add to `repo`: file by its name there. `licence` is None where nobody says."""

    repo: str
    files: dict[str, Path]
    licence: str | None = None
    gate: str | None = None
    """What the report's gate says of the model."""

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


def prepare(
    repo: str, checkpoint: Path, report: Path | None = None, exports: Path | None = None, *, with_report: bool = True
) -> Shipment:
    """The stock files of `checkpoint`; with `report` its model card, page and numbers, with `exports` its GGUF files.

    Without `with_report` the report is only read for the dense model's licence and terms.

    Raises SparseKDError where the name is none, the checkpoint is not whole or not what its manifest says, a report or
    an export is of another checkpoint, or the dense model's terms bind whoever gets it.
    """
    if not _REPO.fullmatch(repo):
        raise ConfigError(f"{repo!r} names no repository; it must be owner/name, of letters, digits, '-', '_' and '.'.")
    check_checkpoint(checkpoint, f"the checkpoint is {str(checkpoint)!r}")
    made = Artifact.read(checkpoint) if (checkpoint / MANIFEST).is_file() else None
    files = stock_files(checkpoint, f"the checkpoint is {str(checkpoint)!r}")
    if (checkpoint / CARD).is_file():
        files[CARD] = checkpoint / CARD
    licence, gate = None, None
    if report is not None:
        summary = json.loads((_of(report, made, checkpoint).path / "summary.json").read_text())
        source, gate = summary["model"]["source"], summary["gate"]["state"]
        licence = source["licence"]
        _check_terms(source)
        if with_report:
            files |= {CARD: report / CARD, **{f"report/{name}": report / name for name in _PAGES}}
    if exports is not None:
        found = _of(exports, made, checkpoint).path.glob("*.gguf")
        files |= {path.name: path for path in sorted(found)}
    return Shipment(repo, files, licence, gate)


def _of(directory: Path, made: Artifact | None, checkpoint: Path) -> Artifact:
    """The artifact in `directory`; ArtifactError unless it was made from the checkpoint."""
    found = Artifact.read(directory)
    if made is None or made.manifest.sha256() not in found.manifest.inputs.values():
        raise ArtifactError(
            f"{directory} is not of the checkpoint in {checkpoint}; run `sparsekd compress`, or leave it out."
        )
    return found


def _check_terms(source: dict[str, str]) -> None:
    entry = catalogue().models.get(source["name"]) if source["kind"] == "catalogue" else None
    if entry is not None and entry.terms is not None:
        raise ConfigError(
            f"The checkpoint was made from {entry.label}, whose terms bind whoever gets it, so it is not sent from "
            f"here. {entry.terms} Compress a model with an open licence, or pass this one on by yourself."
        )


def check_token() -> None:
    """Raise ConfigError where no token is set or the hub is switched off: before anything is hashed or sent."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be sent; unset it and run again.")
    if get_token() is None:
        raise ConfigError(
            "No token of the hub is set: set HF_TOKEN to one that may write (its page on the hub: Settings, Access "
            "Tokens), or log in with `hf auth login`."
        )


def send(shipment: Shipment, message: str, revision: str | None = None, private: bool = True) -> str:
    """Make the repository where there is none, `private` or public, send all files in one commit; the commit's address.

    `revision` is a branch, made where there is none. Raises SourceError with the reason: no file is visible then.
    """
    check_token()
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()
        hub = HfApi()
        hub.create_repo(shipment.repo, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(shipment.repo, branch=revision, exist_ok=True)
        additions = [CommitOperationAdd(name, str(path)) for name, path in shipment.files.items()]
        done = hub.create_commit(shipment.repo, additions, commit_message=message, revision=revision)
    except Exception as error:  # the client raises its own types, its HTTP library's, and OSError
        raise SourceError(_explain(error, shipment.repo)) from None
    return str(done.commit_url)


def _explain(error: Exception, repo: str) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return (
            f"The hub does not let this token write to {repo}; set HF_TOKEN to one that may write there, or name a "
            "repository of yours."
        )
    if status is None and unreachable(error):
        return f"The hub cannot be reached, so {repo} is as it was; the same command goes on from what has arrived."
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return f"Nothing of this was published in {repo}: {type(error).__name__}: {reason}. Run the same command again."
