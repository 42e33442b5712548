"""The chain as plain values: what `--json` prints, and what the printed page is made from."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from sparsekd.artifacts import Manifest
from tasks.lineage.chain import BENCHMARKS, RAW_MODEL, REQUIREMENTS, TEXTS, Lineage
from tasks.tracking.record import EXPORT


def describe(chain: Lineage) -> dict[str, Any]:
    """Every link in order, from the registry down; None for one that there is not. Times are ISO 8601, local."""
    code = [asdict(dependency) for dependency in chain.lock.code()]
    return {
        "asked": chain.asked,
        "mlflow": chain.uri,
        "registry_version": _version(chain),
        "mlflow_run": _run(chain),
        "experiment": _experiment(chain),
        "dvc_lock": {
            "sha256": chain.lock.sha256,
            "recorded_sha256": chain.lock.recorded,
            "place": chain.lock.place,
            "stages": list(chain.lock.stages),
        },
        "model": _model(chain),
        "exports": _exports(chain),
        "texts": _parts(chain, TEXTS, "corpora"),
        "benchmarks": [*_parts(chain, BENCHMARKS, "benchmarks"), *_unfetched(chain)],
        "code": [entry for entry in code if entry["path"] != REQUIREMENTS],
        "requirements": [entry for entry in code if entry["path"] == REQUIREMENTS],
        "libraries": libraries(chain.manifests),
        "notes": list(chain.notes),
    }


def libraries(manifests: dict[str, Manifest]) -> dict[str, dict[str, list[str]]]:
    """Library → version → the stages that ran with it: one version, unless the environment changed in between."""
    found: dict[str, dict[str, list[str]]] = {}
    for manifest in manifests.values():
        for name, version in sorted(manifest.versions.items()):
            found.setdefault(name, {}).setdefault(version, []).append(manifest.stage)
    return found


def _version(chain: Lineage) -> dict[str, Any] | None:
    version = chain.version
    if version is None:
        return None
    return {
        "name": version.name,
        "version": version.number,
        "aliases": list(version.aliases),
        "sha256": version.sha256,
        "created": _when(version.created),
        "source": version.source,
        "run_id": version.run_id,
    }


def _run(chain: Lineage) -> dict[str, Any] | None:
    run = chain.run
    if run is None:
        return None
    return {
        "id": run.id,
        "name": run.name,
        "status": run.status + (", deleted" if run.deleted else ""),
        "started": _when(run.started),
        "ended": _when(run.ended),
        "flow_run_id": run.tags.get("prefect.flow_run_id"),
        "same_as": run.tags.get("sparsekd.same_as"),
        "experiment_id": run.experiment_id,
        "artifacts": run.artifacts,
    }


def _experiment(chain: Lineage) -> dict[str, Any]:
    origin = chain.origin
    return {
        "name": origin.experiment,
        "in_repository": origin.experiment_commit is not None,
        "experiment_commit": origin.experiment_commit,
        "commit": origin.commit,
        "commit_in_repository": origin.commit_here,
        "dirty": origin.dirty,
    }


def _model(chain: Lineage) -> dict[str, Any] | None:
    manifest = chain.manifests.get(RAW_MODEL)
    if manifest is None:
        return None
    source = manifest.facts.get("source") or manifest.config.get("model") or {}
    # A packaged model's source has a sha256 of its own: that of the file it was converted from
    facts = {("source_sha256" if key == "sha256" else key): value for key, value in source.items()}
    return {
        **facts,
        "sha256": manifest.sha256(),
        "files": {name: entry.sha256 for name, entry in manifest.files.items()},
        "path": RAW_MODEL,
    }


def _exports(chain: Lineage) -> dict[str, str]:
    """Each file that was made of the model for another runtime, with its sha256."""
    manifest = chain.manifests.get(EXPORT)
    return {} if manifest is None else dict(manifest.facts.get("exports") or {})


def _parts(chain: Lineage, out: str, fact: str) -> list[dict[str, Any]]:
    """Corpora or benchmarks: what the manifest says of each, and the sha256 of its file."""
    manifest = chain.manifests.get(out)
    if manifest is None:
        return []
    parts = []
    for name, facts in (manifest.facts.get(fact) or {}).items():
        file = facts.get("file", f"{name}.jsonl")
        entry = manifest.files.get(file)
        sha256 = entry.sha256 if entry else None
        parts.append({"name": name, "source": "catalogue", **facts, "file": f"{out}/{file}", "sha256": sha256})
    return parts


def _unfetched(chain: Lineage) -> list[dict[str, Any]]:
    """Tasks whose rows are no artifact: lm-eval takes them from the hub, or from evaluate.include_path."""
    manifest = chain.manifests.get(BENCHMARKS)
    if manifest is None:
        return []
    wanted = manifest.config.get("evaluate.tasks") or []
    known = manifest.facts.get("benchmarks") or {}
    return [
        {"name": name, "source": "hub or evaluate.include_path", "sha256": None} for name in wanted if name not in known
    ]


def _when(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(milliseconds / 1000))
