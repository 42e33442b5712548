"""Names, rows and definitions of lm-eval tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from sparsekd.errors import ConfigError
from sparsekd.evaluation.packaged_tasks import (
    PACKAGED,
    check_tasks,
    choose_rows,
    definitions_root,
    packaged_rows,
    write_definition,
)
from sparsekd.sources.benchmarks import packaged_tasks


def test_every_packaged_benchmark_has_a_definition() -> None:
    assert set(PACKAGED) == set(packaged_tasks())
    for file in PACKAGED.values():
        assert (definitions_root() / file).is_file()


@pytest.mark.parametrize("task", sorted(PACKAGED))
def test_a_definition_is_lm_evals_own_but_for_its_rows(task: str, tmp_path: Path) -> None:
    """Against the other way to override: a file that includes lm-eval's by absolute path."""
    file = write_definition(task, [Path("rows.arrow")], tmp_path)
    including = tmp_path / "including.yaml"
    including.write_text(yaml.safe_dump({"include": str(definitions_root() / PACKAGED[task])}))
    ours, theirs = load_yaml(file), load_yaml(including)
    moved = {
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
        "tag",
    }
    renamed = {"doc_to_target"} if task == "boolq" else set()
    for key in (set(ours) | set(theirs)) - moved - renamed:
        assert _plain(ours[key]) == _plain(theirs[key])
    assert ours["dataset_path"] == "arrow"
    assert ours["dataset_kwargs"] == {"data_files": {"validation": ["rows.arrow"]}}
    assert "/" not in file.read_text().replace("rows.arrow", "")  # nothing of this machine


def _plain(value: Any) -> Any:
    """Functions by their source: two loads of one file give two objects."""
    return (value.__name__, value.__code__.co_code) if callable(value) else value


def test_rows_are_a_file_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "piqa.arrow").touch()
    (tmp_path / "sciq").mkdir()
    (tmp_path / "sciq" / "1.arrow").touch()
    assert packaged_rows(tmp_path, "piqa") == [tmp_path / "piqa.arrow"]
    assert packaged_rows(tmp_path, "sciq") == [tmp_path / "sciq" / "1.arrow"]
    assert packaged_rows(tmp_path, "copa") == []
    assert packaged_rows(None, "piqa") == []


def test_known_names_pass_without_an_index() -> None:
    check_tasks(["arc_easy", "mmlu_anatomy", "lambada_openai", "mmlu"])


def test_a_task_of_ones_own_is_found_in_include_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: my_own_task\n")
    check_tasks(["my_own_task", "piqa"], str(tmp_path))
    with pytest.raises(ConfigError, match=r"evaluate\.include_path is '.*none'; it must be a directory"):
        check_tasks(["piqa"], str(tmp_path / "none"))


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "right"), [("arc_esy", "arc_easy"), ("mmlu_anatomi", "mmlu_anatomy")])
def test_a_wrong_name_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=rf"names '{wrong}', which lm-eval does not have; did you mean {right}\?"):
        check_tasks(["piqa", wrong])


def test_chosen_rows_depend_on_task_total_and_seed_alone() -> None:
    rows = choose_rows("piqa", 1838, 200, seed=1234)
    assert rows == choose_rows("piqa", 1838, 200, seed=1234)
    assert rows[:5] == [22, 41, 44, 45, 46]  # stays the same for ever: results of two versions are compared
    for other in (("sciq", 1838, 1234), ("piqa", 1837, 1234), ("piqa", 1838, 1)):
        assert rows != choose_rows(other[0], other[1], 200, seed=other[2])


def test_rows_are_spread_evenly() -> None:
    rows = choose_rows("hellaswag", 10_000, 1000, seed=0)
    for quarter in range(4):
        assert 200 <= sum(quarter * 2500 <= row < (quarter + 1) * 2500 for row in rows) <= 300


def test_no_limit_and_too_high_a_limit_take_all_rows() -> None:
    assert choose_rows("copa", 100, 0, seed=0) == list(range(100))
    assert choose_rows("copa", 100, 100, seed=0) == list(range(100))
    assert choose_rows("copa", 100, 500, seed=0) == list(range(100))
