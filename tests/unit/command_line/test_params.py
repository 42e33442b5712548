"""params.yaml: comments survive, values are read by their type, presets and what differs from them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from flows.cli import app as cli
from flows.settings import params
from flows.settings.params import Change
from flows.settings.params_text import edit_text
from flows.workspaces import history
from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError
from sparsekd.settings import all_keys, flat, parse_config
from sparsekd.sources import resolve_model, resolve_text

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with the committed params.yaml and presets."""
    shutil.copy(CHECKOUT / "params.yaml", tmp_path)
    shutil.copytree(CHECKOUT / "presets", tmp_path / "presets")
    return tmp_path


def comments(text: str) -> list[str]:
    return [line.partition("#")[2] for line in text.splitlines() if "#" in line]


def test_committed_params_are_the_default_preset_with_every_setting_written_out() -> None:
    values = YAML(typ="safe").load((CHECKOUT / "params.yaml").read_text())
    assert list(flat(values)) == all_keys()
    assert params.changes_from_preset(params.load(CHECKOUT), CHECKOUT) == []


def test_committed_sources_are_resolved_so_that_a_first_run_leaves_git_clean() -> None:
    config = params.load(CHECKOUT)
    assert config.model.revision == resolve_model(config.model.source).revision
    assert config.texts.revisions == tuple(resolve_text(source).revision for source in config.texts.sources)


def test_the_default_preset_equals_the_defaults_in_code() -> None:
    assert params.load_preset("default") == RunConfig()


def test_presets_set_the_same_keys_and_nothing_of_what_or_where() -> None:
    keys = {}
    for name in params.PRESETS:
        values = YAML(typ="safe").load((CHECKOUT / "presets" / f"{name}.yaml").read_text())
        assert not set(values) & {"preset", *params.KEPT_SECTIONS}
        keys[name] = list(flat(values))
    assert all(keys[name] == keys["default"] for name in params.PRESETS)


def test_an_edit_keeps_every_comment_and_all_other_lines() -> None:
    text = (CHECKOUT / "params.yaml").read_text()
    edited = edit_text(text, {"prune.width": 0.5, "evaluate.tasks": ["sciq"]})
    assert comments(edited) == comments(text)
    before, after = text.splitlines(), edited.splitlines()
    assert len(before) == len(after)
    assert [new for old, new in zip(before, after, strict=True) if old != new] == ["  width: 0.5", "  tasks: [sciq]"]


def test_a_block_list_that_is_replaced_keeps_the_comments_below_it() -> None:
    text = (CHECKOUT / "params.yaml").read_text()
    edited = edit_text(text, {"report.prompts": ["One?"]})
    assert comments(edited) == comments(text)
    assert params.parse_config(YAML(typ="safe").load(edited)).report.prompts == ("One?",)
    emptied = edit_text("a:\n  b:\n    - x\n  # about c\n  c: 1\n", {"a.b": []})
    assert YAML(typ="safe").load(emptied) == {"a": {"b": [], "c": 1}}
    assert "# about c" in emptied


def test_a_section_or_key_that_is_absent_is_added() -> None:
    edited = edit_text("# mine\nprune: {width: 0.5}\n", {"prune.beta": 0.25, "distill.alpha": 1.0})
    assert edited.startswith("# mine\n")
    assert YAML(typ="safe").load(edited) == {"prune": {"width": 0.5, "beta": 0.25}, "distill": {"alpha": 1.0}}


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**9), 10**9),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=30),
        st.sampled_from(
            ["on", "off", "yes", "no", "null", "~", "1e-5", "a: b", "# c", "[x]", "- y", "'", '"', "", " "]
        ),
        st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8), max_size=4),
    )
)
def test_what_is_written_is_read_back(value: Any) -> None:
    edited = edit_text("s:\n  # before\n  key: [1, 2]  # beside\n  # after\n  next: 1\n", {"s.key": value})
    assert YAML(typ="safe").load(edited) == {"s": {"key": value, "next": 1}}
    assert "# before" in edited
    assert "# after" in edited


def test_on_and_off_mean_the_same_to_yaml_1_1_and_1_2() -> None:
    edited = edit_text("report:\n  name: null\n", {"report.name": "on"})
    assert yaml.safe_load(edited) == YAML(typ="safe").load(edited) == {"report": {"name": "on"}}


def test_write_is_atomic_and_leaves_no_partial_file(project: Path) -> None:
    params.write(project, [Change("prune.width", 0.75, 0.5)])
    assert params.load(project).prune.width == 0.5
    assert not list(project.glob("*.partial"))


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("prune.width=0.5", "prune.width", 0.5),
        ("prune.width=1152", "prune.width", 1152.0),
        ("prune.compensation=none", "prune.compensation", "none"),
        ("calibrate.tokens=245_760", "calibrate.tokens", 245760),
        ("distill.learning_rate=1e-4", "distill.learning_rate", 1e-4),
        ("distill.compile=always", "distill.compile", "always"),
        ("report.name=on", "report.name", "on"),
        ("evaluate.apply_chat_template=true", "evaluate.apply_chat_template", True),
        ("evaluate.tasks=sciq, piqa", "evaluate.tasks", ["sciq", "piqa"]),
        ("evaluate.tasks=[sciq]", "evaluate.tasks", ["sciq"]),
        ("evaluate.tasks=", "evaluate.tasks", []),
        ('report.prompts=["A, b?", C]', "report.prompts", ["A, b?", "C"]),
        ("evaluate.num_fewshot=null", "evaluate.num_fewshot", None),
        ("evaluate.num_fewshot=3", "evaluate.num_fewshot", 3),
        ("model.source=a=b", "model.source", "a=b"),
        ("report.name=null", "report.name", None),
        ("texts.revisions=null", "texts.revisions", None),
        ("distill.distributed.strategy=fsdp", "distill.distributed.strategy", "fsdp"),
    ],
)
def test_a_setting_is_read_by_its_type(setting: str, key: str, value: Any) -> None:
    assert params.flatten(params.with_settings(RunConfig(), [setting]))[key] == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prune.widht=0.5", "prune.widht is no known setting; did you mean prune.width?"),
        ("width=0.5", "width is no known setting; did you mean prune.width?"),
        ("prune.width", "-S 'prune.width' is no setting; write -S stage.key=value, such as -S prune.width=0.5."),
        ("distill.distributed=ddp", "distill.distributed is a section; set one of distill.distributed.strategy"),
        ("distill.distributed.proceses=2", "distill.distributed.proceses is no known setting; did you mean"),
        ("distill.distributed.processes=2", "distill.distributed.processes is 2; with distill.distributed.strategy"),
        ("prune=1", "prune is a section; set one of prune.width"),
        ("preset=smoke", "preset is not set with -S; write --preset smoke."),
        ("prune.width=0", "prune.width is '0'; it must be greater than 0. Edit your -S options."),
        ("prune.width=1.5", "prune.width is '1.5'; it must be a fraction in (0, 1] or an integer number of neurons."),
        ("prune.width=nan", "prune.width is 'nan'; it must be"),
        ("prune.width=wide", "prune.width is 'wide'; it must be a valid number"),
        ("distill.temperature=0", "distill.temperature is '0'; it must be greater than 0."),
        ("distill.alpha=1.5", "distill.alpha is '1.5'; it must be less than or equal to 1."),
        ("calibrate.tokens=many", "calibrate.tokens is 'many'; it must be a valid integer"),
        ("runtime.device=tpu", "runtime.device is 'tpu'; it must be 'auto', 'cpu' or 'cuda'."),
        ("evaluate.tasks=[sciq", "evaluate.tasks is '[sciq', which is no YAML list"),
        ("distill.tokens=200000", "distill.tokens is 200000; it must not exceed calibrate.tokens = 122880."),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_place_found_and_allowed(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        params.with_settings(RunConfig(), [setting], "your -S options")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_new_source_is_resolved_again_and_others_are_not() -> None:
    config = parse_config({"model": {"revision": "a" * 64}, "texts": {"revisions": ["b" * 64, "c" * 64]}})
    assert params.with_settings(config, ["model.source=owner/name"]).model.revision is None
    assert params.with_settings(config, ["texts.sources=wiki"]).texts.revisions is None
    assert params.with_settings(config, ["prune.width=0.5"]).model.revision == "a" * 64
    assert params.with_texts(config, ["wiki"]).texts == RunConfig().texts.model_copy(update={"sources": ("wiki",)})


def test_the_same_source_stays_pinned() -> None:
    values = params.with_settings(RunConfig(), ["model.source=me/tiny", "model.revision=" + "a" * 40])
    pinned = params.with_settings(params.with_texts(values, ["me/talks"]), ["texts.revisions=[" + "b" * 40 + "]"])
    again = params.with_settings(pinned, ["model.source=me/tiny", "texts.sources=me/talks"])
    assert params.with_texts(again, ["me/talks"]) == pinned
    other = params.with_settings(params.with_texts(pinned, ["me/chats"]), ["model.source=me/other"])
    assert (other.model.revision, other.texts.revisions) == (None, None)


def test_a_budget_takes_the_place_of_the_one_that_held() -> None:
    reduced = params.with_settings(RunConfig(), ["prune.total_reduction=0.3"])
    assert list(map(str, params.differences(RunConfig(), reduced))) == [
        "prune.width: 0.75 → null", "prune.total_reduction: null → 0.3",
    ]  # fmt: skip
    fewer = params.with_settings(reduced, ["prune.width=null", "prune.parameters=100_000_000"])
    assert fewer.prune.budget == ("parameters", 100_000_000)
    assert params.with_settings(fewer, ["prune.width=0.75"]) == RunConfig()
    with pytest.raises(ConfigError, match=r"prune.width is 0.5 and prune.ffn_reduction is 0.2; only one can say"):
        params.with_settings(reduced, ["prune.width=0.5", "prune.ffn_reduction=0.2"])


def test_a_run_is_named_by_its_budget(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for setting, said in (("prune.width=0.5", "-w0.5-"), ("prune.parameters=100000000", "-parameters-100000000-")):
        config = params.with_settings(RunConfig(), [setting])
        assert said in history.new_name(tmp_path, config)
    record = history.record_of("a", config, 1.0)
    assert (record.width, record.budget) == (None, "parameters=100000000")


def test_a_preset_leaves_what_is_compressed_and_where() -> None:
    config = params.with_settings(RunConfig(), ["model.source=owner/name", "runtime.threads=3", "texts.sources=wiki"])
    smoke = params.with_preset(config, "smoke")
    assert (smoke.preset, smoke.evaluate.rows) == ("smoke", 20)
    assert (smoke.model, smoke.runtime, smoke.texts) == (config.model, config.runtime, config.texts)


def test_edits_that_a_preset_would_lose_are_those_it_sets_otherwise() -> None:
    edited = params.with_settings(RunConfig(), ["prune.width=0.5", "model.source=owner/name"])
    lost = params.lost_edits(edited, params.with_preset(edited, "smoke"))
    assert lost == [Change("prune.width", 0.5, 0.75)]
    assert params.lost_edits(RunConfig(), params.with_preset(RunConfig(), "quality")) == []
    already = params.with_settings(RunConfig(), ["evaluate.rows=20"])
    assert params.lost_edits(already, params.with_preset(already, "smoke")) == []


def test_changes_from_the_preset_leave_out_resolved_revisions() -> None:
    config = params.with_settings(RunConfig(), ["model.revision=" + "a" * 40, "prune.width=1152"])
    assert list(map(str, params.changes_from_preset(config))) == ["prune.width: 0.75 → 1152"]


def test_a_file_that_lacks_settings_is_completed(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("# mine\npreset: default\nprune: {width: 0.5}\n")
    config = params.load(tmp_path)
    changes = params.changes_of_file(tmp_path, config)
    assert "prune.beta: absent → 0.25" in map(str, changes)
    assert not [change for change in changes if change.key in {"preset", "prune.width"}]
    params.write(tmp_path, changes)
    assert params.load(tmp_path) == config
    assert params.changes_of_file(tmp_path, config) == []
    assert (tmp_path / "params.yaml").read_text().startswith("# mine\n")
    assert params.changes_of_file(CHECKOUT, params.load(CHECKOUT)) == []


def test_an_unknown_preset_names_the_known_ones(project: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"There is no preset 'fast'; choose one of smoke, small, default, quality, gpu, gpus\."
    ):
        params.load_preset("fast")
    params.write(project, [Change("preset", "default", "mine")])
    with pytest.raises(
        ConfigError,
        match=r"preset is 'mine'; it must be one of smoke, small, default, quality, gpu, gpus\. Edit params",
    ):
        params.load(project)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune: {widht: 1}", "prune.widht is no known setting; did you mean prune.width? Edit"),
        ("prune: {width: .nan}", "prune.width is nan; it must be a finite number. Edit"),
        ("- a", "holds list; it must be a mapping of sections."),
        ("a: [", "is no valid YAML:"),
        ("a: 1\na: 2", "is no valid YAML:"),
        ("a: \x00", "is no valid YAML:"),
    ],
)
def test_a_params_file_edited_wrongly_is_one_sentence(project: Path, text: str, message: str) -> None:
    (project / "params.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        params.load(project)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_outside_the_project_the_root_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSEKD_HOME", raising=False)
    with pytest.raises(ConfigError, match=r"is not inside the project: no dvc\.yaml here or above"):
        params.find_root()


def test_the_help_texts_name_every_preset() -> None:
    assert cli.PRESET_NAMES.split("|") == list(params.PRESETS)
