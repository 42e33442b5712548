"""The house itself: layers, files where dvc.yaml says, code as a dependency, params.yaml equal to the configuration."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsekd.config import RunConfig
from sparsekd.settings import all_keys, flat, parse_config
from tasks.graph import read_graph

ROOT = Path(__file__).parents[2]
GRAPH = read_graph(ROOT)
NO_NUMBERS = {"__init__", "artifacts", "config", "errors", "progress", "settings"}
"""Modules of sparsekd/ that carry settings, messages and files but no number: no stage depends on them."""


def imported_modules(file: Path) -> set[str]:
    """Dotted names of the modules of sparsekd that a file imports, anywhere in it but not for type checkers alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sparsekd"):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("sparsekd")}
    return names


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def closure(start: Path) -> set[Path]:
    """Every file of sparsekd that a stage's file reaches by imports."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        file = todo.pop()
        for module in imported_modules(file):
            found = file_of(module)
            if found and found not in seen:
                seen.add(found)
                todo.append(found)
    return {file for file in seen if file.parent.name != "sparsekd" or file.stem not in NO_NUMBERS}


@pytest.mark.parametrize("name", GRAPH)
def test_a_stage_depends_on_all_the_code_that_it_uses(name: str) -> None:
    stage = GRAPH[name]
    file = ROOT / (stage.command.split()[2].replace(".", "/") + ".py")
    assert file.is_file(), "each stage of dvc.yaml has its file in tasks/"
    assert file.relative_to(ROOT).as_posix() in stage.deps
    assert "requirements.lock" in stage.deps
    covered = [ROOT / dep for dep in stage.deps]
    missing = {
        used.relative_to(ROOT).as_posix()
        for used in closure(file)
        if not any(used == dep or dep in used.parents for dep in covered)
    }
    assert not missing


@pytest.mark.parametrize("name", GRAPH)
def test_a_stage_has_one_output_and_a_description(name: str) -> None:
    assert len(GRAPH[name].outs) == 1
    assert GRAPH[name].description
    for dep in GRAPH[name].deps:
        assert dep.startswith("data/") or (ROOT / dep).exists()


def test_params_yaml_has_every_setting_and_no_other() -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    parse_config(values)
    assert flat(values).keys() == set(all_keys())


def test_the_flow_takes_every_section_of_the_settings() -> None:
    tree = ast.parse((ROOT / "flows/compress.py").read_text())
    flow = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "compress")
    sections = [name for name in RunConfig.model_fields if name != "preset"]
    assert [argument.arg for argument in flow.args.args][: len(sections)] == sections


def test_dvc_tracks_only_settings_that_exist() -> None:
    known = set(all_keys()) | set(RunConfig.model_fields)
    for stage in GRAPH.values():
        assert set(stage.params) <= known


@pytest.mark.parametrize("module", ["sparsekd", "sparsekd.config", "tasks.graph", "tasks.process", "flows.cli.app"])
def test_what_the_command_line_needs_at_once_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "datasets", "prefect", "mlflow", "dvc", "lm_eval"} & set(loaded.split())


def test_the_folder_mlflow_shadows_nothing() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))


def test_no_pickle_is_read_and_no_remote_code_trusted() -> None:
    for folder in ("sparsekd", "tasks", "flows"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            assert "import pickle" not in text
            assert "torch.load(" not in text
            assert "trust_remote_code=True" not in text
