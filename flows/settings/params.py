"""params.yaml: read it, change it, keep its comments; presets and what differs from them.

params.yaml always says what the outputs in data/ were made from. A preset sets how thorough a run is; what is
compressed (model, texts) and where (runtime) stay as they are when a preset is chosen.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.settings.params_text import edit_text, plain
from flows.workspaces.commands import git
from flows.workspaces.workspace import find_revision
from sparsekd.config import BUDGETS, RunConfig
from sparsekd.errors import ConfigError
from sparsekd.settings import field_annotation, flat, parse_config, valid_keys
from sparsekd.sources import catalogue
from tasks.corpora import recorded
from tasks.environment import checkout_root
from tasks.process import read_params

PresetName = Literal["smoke", "small", "default", "quality", "gpu", "gpus"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)
KEPT_SECTIONS = ("runtime", "model", "texts")
"""Sections that no preset sets."""
RESOLVED = {"model.revision", "texts.revisions", "evaluate.include_revision"}
"""Settings that a run writes itself: hashes and commits of the sources."""
_ABSENT: Any = object()
_NONE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Change:
    """One setting that differs between two configurations."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {show(self.before)} → {show(self.after)}"


def show(value: Any) -> str:
    """A value as a person would type it after `-S key=`."""
    if value is None:
        return "null"
    if value is _ABSENT:
        return "absent"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(show, value)) + "]"
    return str(plain(value))


def find_root() -> Path:
    """The project's root: $SPARSEKD_HOME, or the nearest directory upwards with dvc.yaml. ConfigError without one."""
    root = checkout_root()
    if not (root / "dvc.yaml").is_file():
        raise ConfigError(
            f"{root} is not inside the project: no dvc.yaml here or above. Run `sparsekd compress` in a clone of it; "
            "prune, distill, evaluate and generate run anywhere."
        )
    return root


def load(root: Path) -> RunConfig:
    """The configuration in params.yaml. Raises ConfigError when it is absent, no YAML, or invalid."""
    config = parse_config(read_params(root / "params.yaml"))
    if config.preset not in PRESETS:
        raise ConfigError(f"preset is {config.preset!r}; it must be one of {', '.join(PRESETS)}. Edit params.yaml.")
    return config


def load_at(home: Path, at: str | None) -> RunConfig:
    """The configuration of the commit, tag or experiment `at`; of the checkout at `home` as it stands when None."""
    if at is None:
        return load(home)
    return load_tree(home, find_revision(home, at).tree, at)


def load_tree(home: Path, tree: str, name: str) -> RunConfig:
    """The configuration in the commit `tree`, which people call `name`."""
    text = git(home, "show", f"{tree}:params.yaml")
    return parse_config(YAML(typ="safe", pure=True).load(text) or {}, f"params.yaml of {name}")


def seen_from(root: Path, config: RunConfig, home: Path) -> RunConfig:
    """`config` with paths relative to `home` made absolute where the workspace at `root` does not have them."""
    return _in_full(config, home, {*catalogue().models, *catalogue().texts, *recorded(root)}, root)


def in_full(config: RunConfig, home: Path) -> RunConfig:
    """`config` with every path relative to `home` made absolute."""
    return _in_full(config, home, {*catalogue().models, *catalogue().texts, *recorded(home)})


def _in_full(config: RunConfig, home: Path, named: Collection[str], root: Path | None = None) -> RunConfig:
    """With paths below `home` made absolute, but for names and for what `root` has too."""

    def full(source: str) -> str:
        if source.partition("@")[0] in named:
            return source
        path = Path(source.removeprefix("file:"))
        here = root is not None and (root / path).exists()
        if path.is_absolute() or here or not (home / path).exists():
            return source
        return f"{'file:' if source.startswith('file:') else ''}{home / path}"

    values = config.model_dump()
    values["model"]["source"] = full(config.model.source)
    values["texts"]["sources"] = [full(source) for source in config.texts.sources]
    if config.evaluate.include_path is not None:
        values["evaluate"]["include_path"] = full(config.evaluate.include_path)
    return parse_config(values)


def from_root(source: str, asked_in: Path, root: Path) -> str:
    """A relative path as it must be written to be right from the project's root; anything else as it is."""
    explicit = "file:" if source.startswith("file:") else ""
    path = Path(source.removeprefix("file:"))
    checkout = next((folder for folder in (asked_in, *asked_in.parents) if (folder / "dvc.yaml").is_file()), root)
    named = {*catalogue().models, *catalogue().texts, *recorded(root), *recorded(checkout)}
    known = source.partition("@")[0] in named
    if asked_in == root or known or path.is_absolute() or source.startswith("~") or not (asked_in / path).exists():
        return source
    full = (asked_in / path).resolve()
    return explicit + str(full.relative_to(root) if full.is_relative_to(root) else full)


def load_preset(name: str, root: Path | None = None) -> RunConfig:
    """Preset `name` over the defaults of sparsekd/config.py. Raises ConfigError for an unknown name.

    Read from `root`/presets when it has one, else from the checkout that this package lies in.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    own = Path(__file__).absolute().parents[2]
    path = next((p for r in (root, own) if r and (p := r / "presets" / f"{name}.yaml").is_file()), None)
    if path is None:
        raise ConfigError(f"presets/{name}.yaml is not there; get it back with `git checkout presets`.")
    values = read_params(path)
    misplaced = sorted({"preset", *KEPT_SECTIONS} & set(values))
    if misplaced:
        raise ConfigError(f"{path} sets {', '.join(misplaced)}; a preset sets only how thorough a run is. Remove it.")
    return parse_config({"preset": name, **values}, str(path))


def flatten(config: RunConfig) -> dict[str, Any]:
    """Every setting as `{stage.key: value}`, tuples as lists."""
    return flat(config.model_dump(mode="json"))


def sections(config: RunConfig) -> dict[str, Any]:
    """What a configuration computes, as a flow takes it: all but the name of the preset that it started from."""
    values = config.model_dump(mode="json")
    values.pop("preset")
    return values


def differences(before: RunConfig, after: RunConfig) -> list[Change]:
    """What differs, in the order of the file."""
    old, new = flatten(before), flatten(after)
    return [Change(key, old[key], new[key]) for key in old if old[key] != new[key]]


def changes_of_file(root: Path, config: RunConfig) -> list[Change]:
    """What params.yaml must change to say `config` in full: DVC refuses a file that lacks a setting it depends on."""
    written = flat(read_params(root / "params.yaml"))
    changes = []
    for key, after in flatten(config).items():
        before = written.get(key, _ABSENT)
        if before is _ABSENT or before != after:
            changes.append(Change(key, before, after))
    return changes


def changes_from_preset(config: RunConfig, root: Path | None = None) -> list[Change]:
    """What `config` has otherwise than its preset, without the resolved revisions."""
    changes = differences(load_preset(config.preset, root), config)
    return [change for change in changes if change.key not in RESOLVED]


def with_preset(config: RunConfig, name: str, root: Path | None = None) -> RunConfig:
    """`config` under another preset: what is compressed and where stays."""
    values = load_preset(name, root).model_dump()
    kept = {section: config.model_dump()[section] for section in KEPT_SECTIONS}
    return parse_config(values | kept)


def lost_edits(config: RunConfig, after: RunConfig, root: Path | None = None) -> list[Change]:
    """Settings of `config` that were changed from its preset and that `after` would overwrite with another value."""
    edited = {change.key for change in changes_from_preset(config, root)}
    return [change for change in differences(config, after) if change.key in edited]


def with_settings(config: RunConfig, settings: list[str], source: str = "params.yaml") -> RunConfig:
    """`config` with each `stage.key=value` applied, later ones winning. Raises ConfigError, naming the -S at fault."""
    values = config.model_dump()
    named = {setting.partition("=")[0].strip() for setting in settings}
    for setting in settings:
        key, value = parse_setting(setting)
        *sections, name = key.split(".")
        target = functools.reduce(operator.getitem, sections, values)
        if sections == ["prune"] and name in BUDGETS and value is not None:  # the one that held so far holds no more
            target |= {other: None for other in BUDGETS if f"prune.{other}" not in named}
        same = target[name] == (tuple(value) if isinstance(value, list) else value)
        target[name] = value
        if key == "model.source" and not same:
            values["model"]["revision"] = None
        if key == "texts.sources" and not same:
            values["texts"]["revisions"] = None
    return parse_config(values, source)


def with_texts(config: RunConfig, sources: list[str], newest: Mapping[str, str] = _NONE) -> RunConfig:
    """`config` with other text sources, not resolved yet; the same ones stay resolved, but for corpora in `newest`.

    `newest` gives the newest revision of each of the user's corpora: whoever names one asks for that.
    """
    values, revisions = config.model_dump(), config.texts.revisions
    if tuple(sources) == config.texts.sources and revisions is not None:
        kept = [newest.get(source, revision) for source, revision in zip(sources, revisions, strict=True)]
        values["texts"] |= {"revisions": kept}
    else:
        values["texts"] |= {"sources": sources, "revisions": None}
    return parse_config(values, "your --texts options")


def parse_setting(text: str) -> tuple[str, Any]:
    """`stage.key=value` read by the setting's type: (key, value). Lists are comma separated, or YAML in brackets."""
    key, equals, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    if not equals or not key:
        raise ConfigError(f"-S {text!r} is no setting; write -S stage.key=value, such as -S prune.width=0.5.")
    annotation = field_annotation(key)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        raise ConfigError(
            f"{key} is a section; set one of {', '.join(f'{key}.{name}' for name in valid_keys(key.split('.')))}."
        )
    if key == "preset":
        raise ConfigError(f"preset is not set with -S; write --preset {raw}.")
    options = get_args(annotation)
    if NoneType in options and raw.lower() in {"", "null", "none", "~"}:
        return key, None
    if _is_tuple(annotation) or any(map(_is_tuple, options)):
        return key, _parse_list(key, raw)
    return key, raw  # pydantic reads numbers and booleans from text, by the field's type


def _is_tuple(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _parse_list(key: str, raw: str) -> list[Any]:
    if not raw.startswith("["):
        return [part.strip() for part in raw.split(",") if part.strip()]
    try:
        return list(YAML(typ="safe", pure=True).load(raw))
    except (YAMLError, TypeError) as error:
        raise ConfigError(
            f"{key} is {raw!r}, which is no YAML list ({' '.join(str(error).split())[:80]}); write {key}=a,b."
        ) from None


def edited_values(root: Path, changes: list[Change]) -> dict[str, Any]:
    """What params.yaml will hold after `changes`, as nested mappings."""
    text = _edited(root, changes)
    values: dict[str, Any] = YAML(typ="safe", pure=True).load(text) or {}
    return values


def write(root: Path, changes: list[Change]) -> None:
    """Make `changes` in params.yaml, atomically. The caller has validated them."""
    if not changes:
        return
    path = root / "params.yaml"
    partial = path.with_name("params.yaml.partial")
    partial.write_text(_edited(root, changes))
    os.replace(partial, path)


def _edited(root: Path, changes: list[Change]) -> str:
    return edit_text((root / "params.yaml").read_text(), {change.key: change.after for change in changes})
