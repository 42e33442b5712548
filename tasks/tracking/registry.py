"""The compressed model as a registry version that `mlflow.transformers.load_model` and `mlflow models serve` open.

MLflow's own `log_model` loads the model to write it again. What it writes around the weights is known without that: an
MLmodel file with the transformers flavor, requirements, and the tokenizer under `components/`. So the weights here are
the stage's own bytes, torch is not loaded, and nothing is pickled.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.tracking.record import EXPORT_TAG, GATE_TAG, SWEEP_TAG, Record
from tasks.tracking.store import StoreError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "model"
SHA256_TAG = "sparsekd.model_sha256"
CHAMPION = "champion"
"""The alias of the version that passed its gate last: `models:/NAME@champion`."""
LINEAGE = (
    "git.commit",
    "git.dirty",
    "dvc.lock.sha256",
    "prefect.flow_run_id",
    "model.source",
    "model.source.revision",
)
_REQUIREMENTS = ("mlflow", "torch", "transformers", "accelerate")


def find_version(client: MlflowClient, record: Record) -> ModelVersion | None:
    """The version of the registered model that holds the same bytes and can still be opened, or None."""
    versions = client.search_model_versions(
        f"name = '{record.model.name}' and tag.`{SHA256_TAG}` = '{record.model.sha256}'"
    )
    usable = [version for version in versions if _is_there(str(version.source))]
    return max(usable, key=lambda version: int(version.version), default=None)


def register(client: MlflowClient, run: Run, record: Record, folder: Path) -> ModelVersion:
    """Make the files in `folder` a version whose source is `model/` among the artefacts of `run`.

    Identical bytes that are a version already give that version. A local artefact directory takes the files over by a
    rename; any other store gets them uploaded.
    """
    if (version := find_version(client, record)) is not None:
        return version
    source = f"{run.info.artifact_uri}/{FOLDER}"
    local = local_path(source)
    if (folder / FOLDER).is_dir():
        write_model_files(folder, run.info.run_id)
        if local is None:
            client.log_artifacts(run.info.run_id, str(folder), FOLDER)
        else:
            shutil.rmtree(local, ignore_errors=True)
            local.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder, local)
    elif local is None or not (local / "MLmodel").is_file():
        # It was a version when the record was kept, so the bytes were left out; somebody deleted that version since.
        raise StoreError(
            f"{record.model.name} has no version with these bytes any more, and the waiting record holds none. "
            "Check out its commit, `dvc checkout`, and run `python -m tasks.track`."
        )
    _ensure_model(client, record.model.name)
    tags = {key: value for key, value in record.tags.items() if key in LINEAGE or key.startswith(EXPORT_TAG)}
    tags |= {SHA256_TAG: record.model.sha256} | {f"{name}.sha256": h for name, h in _weights(record)}
    return client.create_model_version(
        record.model.name, source, run_id=run.info.run_id, tags=tags, description=record.model.description or None
    )


def judge(client: MlflowClient, version: ModelVersion, record: Record) -> None:
    """Say on the version what the gate said, and make it the champion where it passed; else the old one stays.

    The old one also stays where it is newer: an old run that is repeated, or one that an outage has kept waiting, does
    not take its place; nor does a point of a sweep, which is there to be chosen from.
    """
    state = record.tags.get(GATE_TAG)
    if state is None:
        return
    client.set_model_version_tag(version.name, str(version.version), GATE_TAG, state)
    if state == "passed" and SWEEP_TAG not in record.tags and not _newer_champion(client, version, record):
        client.set_registered_model_alias(version.name, CHAMPION, str(version.version))


def _newer_champion(client: MlflowClient, version: ModelVersion, record: Record) -> bool:
    number = client.get_registered_model(version.name).aliases.get(CHAMPION)
    if number is None:
        return False
    champion = client.get_model_version(version.name, str(number))
    return int(number) > int(version.version) or int(champion.creation_timestamp) > record.ended


def _weights(record: Record) -> list[tuple[str, str]]:
    return [(name, digest) for name, digest in record.model.files.items() if name.endswith(".safetensors")]


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def local_path(uri: str) -> Path | None:
    """The directory that a local artefact URI means, or None for a remote store."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    return Path(local_file_uri_to_path(uri)) if is_local_uri(uri) else None  # type: ignore[no-untyped-call]


def _is_there(source: str) -> bool:
    local = local_path(source)
    return local is None or (local / "MLmodel").is_file()


def write_model_files(folder: Path, run_id: str) -> None:
    """MLmodel and the environment files around a checkpoint in `folder/model` and `folder/components/tokenizer`.

    AutoModelForCausalLM and AutoTokenizer stand where MLflow would write concrete classes: it trusts remote code for a
    class that Transformers does not know, and never for these.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    config = json.loads((folder / FOLDER / "config.json").read_text())
    text = Schema([ColSpec(DataType.string)])
    model = Model(artifact_path=FOLDER, run_id=run_id, signature=ModelSignature(inputs=text, outputs=text))
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    flavor: dict[str, Any] = {
        "transformers_version": importlib.metadata.version("transformers"),
        "code": None,
        "task": "text-generation",
        "instance_type": "TextGenerationPipeline",
        "framework": "pt",
        "pipeline_model_type": "AutoModelForCausalLM",
        "source_model_name": (config.get("architectures") or [config.get("model_type")])[0],
        "model_binary": FOLDER,
        "torch_dtype": f"torch.{config.get('dtype') or config.get('torch_dtype') or 'float32'}",
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
    }
    model.add_flavor("transformers", **flavor)
    # What mlflow.pyfunc.add_to_model writes; importing that module costs a second and warns.
    environment = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
    python = platform.python_version()
    model.add_flavor("python_function", loader_module="mlflow.transformers", python_version=python, env=environment)
    _write_environment(folder)
    model.save(str(folder / "MLmodel"))


def _write_environment(folder: Path) -> None:
    # Without a local part such as +cpu, which no public index has.
    pins = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _REQUIREMENTS]
    python = platform.python_version()
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n")
    dependencies = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(yaml.safe_dump(dependencies, sort_keys=False))
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": pins}],
    }
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False))
