"""Repositories on the Hugging Face hub, through its own client. It is imported only when a source is on the hub."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from sparsekd.errors import SourceError, SparseKDError
from sparsekd.progress import Progress, silent
from sparsekd.sources.storage import disk_errors, require_space, watch_growth

RepoType = Literal["model", "dataset"]


def resolve_commit(repo: str, revision: str | None, repo_type: RepoType, place: str) -> str:
    """The commit that a branch, a tag or (None) the main branch stands for now. Raises SourceError."""
    with hub_errors(repo, revision, place):
        from huggingface_hub import HfApi

        return str(HfApi().repo_info(repo, revision=revision, repo_type=repo_type).sha)


def config_file(repo: str, commit: str, place: str) -> Path:
    """config.json of a model at a commit, out of the hub's cache or downloaded. Raises SourceError."""
    with hub_errors(repo, commit, place):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo, "config.json", revision=commit))


def snapshot(repo: str, commit: str, patterns: tuple[str, ...], place: str, progress: Progress = silent) -> Path:
    """The files of a model that match `patterns`, in the hub client's own cache; no request when they are all there.

    Raises SourceError when the repository is absent, gated or out of reach, ResourceError when the disk is too small.
    """
    with hub_errors(repo, commit, place):
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import DryRunError
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()
        download = functools.partial(snapshot_download, repo, revision=commit, allow_patterns=list(patterns))
        try:
            files = download(dry_run=True)
            missing = sum(file.file_size or 0 for file in files if file.will_download)  # type: ignore[attr-defined, misc]
        except DryRunError:  # out of reach: all of it may be in the cache; if not, the error's chain says why
            return Path(download(local_files_only=True))
        cache = Path(constants.HF_HUB_CACHE)
        require_space(cache, missing, f"The model {repo}")
        with disk_errors(cache), watch_growth(cache, missing, progress):
            return Path(download())


@contextlib.contextmanager
def hub_errors(repo: str, revision: str | None, place: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence that names the repository and the next step."""
    try:
        yield
    except SparseKDError:
        raise
    except Exception as error:  # the client raises its own types, its HTTP library's, and OSError
        raise SourceError(_explain(error, repo, revision, place)) from None


def _explain(error: BaseException, repo: str, revision: str | None, place: str) -> str:
    from huggingface_hub import errors

    chain = _chain(error)

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if met(errors.GatedRepoError):
        return (
            f"{place} is {repo!r}, a gated repository: accept its terms on its page on the hub, then set HF_TOKEN to a "
            "token of that account (or log in with `hf auth login`)."
        )
    if met(errors.RevisionNotFoundError):
        return f"{place} is {repo!r}, which has no revision {revision!r}; correct it, or remove it for the newest."
    if met(errors.RepositoryNotFoundError):
        return (
            f"{place} is {repo!r}; there is no path of that name here and the hub shows no such repository: correct "
            "the name, or, if it is private or gated, set HF_TOKEN."
        )
    if met(errors.RemoteEntryNotFoundError):
        return f"{place} is {repo!r}, which has no config.json at {revision}; it is no Transformers checkpoint."
    if unreachable(error) or met(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        return (
            f"{place} is {repo!r}, and the hub cannot be reached (offline?) while the download is not complete on this "
            "machine: go online, unset HF_HUB_OFFLINE, or name a directory, a file or a catalogue entry."
        )
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
    if met(errors.HfHubHTTPError):
        return f"{place} is {repo!r}; the hub answered with {reason}. Try again later."
    return f"{place} is {repo!r}, which cannot be read: {reason}. Correct it, or name another source."


def unreachable(error: BaseException) -> bool:
    """Whether the network is to blame, whatever HTTP library the client uses."""
    chain = _chain(error)
    lost = any(isinstance(link, (ConnectionError, TimeoutError)) for link in chain)
    return lost or any(kind.__name__ == "TransportError" for link in chain for kind in type(link).__mro__)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    return chain
