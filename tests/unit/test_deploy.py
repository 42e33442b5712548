"""prefect.yaml and the Docker files, checked as far as they can be without a server and without Docker."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from flows.server.deployments import TAG
from sparsekd.export.tools import FOLDER

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def test_every_instruction_is_one_of_docker() -> None:
    known = {"ARG", "FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY", "CMD"}
    assert {word for word, _ in instructions()} <= known


def test_everything_that_is_copied_exists_and_nothing_that_is_private() -> None:
    copied = [shlex.split(rest) for word, rest in instructions() if word == "COPY"]
    assert copied
    for *sources, _ in copied:
        for source in (word for word in sources if not word.startswith("--")):
            assert (ROOT / source).exists(), source
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {".venv", ".sparsekd", ".checkpoints", ".dvc/config.local", "data"} <= set(ignored), "secrets and bulk stay"
    assert ".git" not in ignored, "runs are git worktrees"


def test_the_environment_is_the_locks_and_torch_the_makefiles() -> None:
    commands = [rest for word, rest in instructions() if word == "RUN"]
    [lock] = [command for command in commands if "requirements.lock" in command]
    assert "--no-deps --require-hashes -r requirements.lock" in lock
    installs = [command for command in commands if "pip install" in command]
    assert ["${TORCH}" in command for command in installs] == [True, *[False] * 3], "first torch, which the lock lacks"
    folder = f"/{FOLDER.as_posix()}"
    assert [folder in command for command in installs] == [False, False, True, False], (
        "exports have packages of their own"
    )
    assert folder in (ROOT / "Makefile").read_text()
    arguments = dict(rest.partition("=")[::2] for word, rest in instructions() if word == "ARG")
    [pinned] = re.findall(r"^TORCH := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert arguments["TORCH"] == pinned
    assert arguments["TORCH_INDEX"] == "", "no index of anybody's is in it"


def test_nothing_runs_as_root() -> None:
    order = [word for word, _ in instructions()]
    [user] = [rest for word, rest in instructions() if word == "USER"]
    assert user == "sparsekd"
    assert order.index("USER") < order.index("COPY")
    template = json.loads((DOCKER / "job-template.json").read_text())
    assert template["job_configuration"]["privileged"] is False


def test_the_job_template_has_every_variable_that_it_uses() -> None:
    template = json.loads((DOCKER / "job-template.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    targets = [volume.split(":")[1] for volume in template["variables"]["properties"]["volumes"]["default"]]
    made = " ".join(rest for word, rest in instructions() if word == "RUN" and "mkdir" in rest)
    assert all(target in made for target in targets), "a volume on a folder that is not there belongs to root"
    environment = template["variables"]["properties"]["env"]["default"]
    assert environment["SPARSEKD_CHECKPOINTS"] in targets


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


def test_every_deployment_has_its_flow_and_what_a_team_needs() -> None:
    assert "compress" in {entry["entrypoint"].partition(":")[2] for entry in deployments()}
    for entry in deployments():
        path, _, name = entry["entrypoint"].partition(":")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), entry["entrypoint"]
        assert TAG in entry["tags"], "what the automations go by"
        assert entry["description"]
        assert entry["work_pool"]["name"] == "machines"
        assert entry["work_pool"]["job_variables"]["stream_output"] is False
        for schedule in entry.get("schedules", []):
            assert schedule["active"] is False, "examples"
            assert schedule["timezone"]


def test_a_compression_that_a_worker_starts_is_isolated_and_waits_for_its_turn() -> None:
    [entry] = [entry for entry in deployments() if entry["entrypoint"].endswith(":compress")]
    assert entry["parameters"] == {"isolated": True}
    assert entry["concurrency_limit"]["collision_strategy"] == "ENQUEUE"
    [pull] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["pull"]
    assert pull == {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $SPARSEKD_HOME }}"}}
