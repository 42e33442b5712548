"""From nested values, as YAML gives them, to a configuration; its faults in words; and the names of its settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from sparsekd.config import RunConfig
from sparsekd.errors import ConfigError


def parse_config(values: Any, source: str = "params.yaml") -> RunConfig:
    """The configuration that `values` (nested mappings, as YAML gives them) describe.

    Raises ConfigError whose text names each wrong key with what was found, what is allowed and where to edit;
    an unknown key is answered with the nearest valid name.
    """
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds {type(values).__name__}; it must be a mapping of sections. Edit {source}.")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(" ".join(explain(error)) + f" Edit {source}.") from None


def explain(error: ValidationError) -> list[str]:
    """One sentence for each fault that pydantic found: `prune.width is 1.2; it must …`."""
    return [sentence for _, sentence in faults(error)]


def faults(error: ValidationError) -> list[tuple[tuple[str, ...], str]]:
    """The same sentences, each with the keys of the setting that it is about."""
    return [(tuple(map(str, fault["loc"])), _sentence(fault)) for fault in error.errors(include_url=False)]


def _sentence(fault: Any) -> str:
    keys = [str(part) for part in fault["loc"]]
    place = ".".join(keys)
    if fault["type"] == "extra_forbidden":
        valid = valid_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.4)
        prefix = ".".join(keys[:-1])
        meant = f"did you mean {f'{prefix}.' if prefix else ''}{near[0]}?" if near else f"valid are {', '.join(valid)}."
        return f"{place} is no known setting; {meant}"
    reason = fault["msg"].removeprefix("Value error, ")
    if not place or reason.startswith(place.split(".")[0] + "."):
        return f"{reason}."
    reason = reason.removeprefix("Input should be ").removeprefix("must be ")
    return f"{place} is {fault['input']!r}; it must be {reason}."


def valid_keys(path: list[str]) -> list[str]:
    """The names allowed below `path` (section names at the root)."""
    model: type[BaseModel] = RunConfig
    for key in path:
        field = model.model_fields.get(key)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings of settings as `{stage.key: value}`; tuples stay as they are."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return found


def field_annotation(dotted: str) -> Any:
    """The type of `stage.key`, for reading a command line's text; ConfigError when there is no such setting."""
    *sections, key = dotted.split(".")
    if key not in valid_keys(sections):
        near = difflib.get_close_matches(dotted, all_keys(), n=1, cutoff=0.4)
        meant = f"did you mean {near[0]}?" if near else "`sparsekd config` lists them all."
        raise ConfigError(f"{dotted} is no known setting; {meant}")
    model: type[BaseModel] = RunConfig
    for section in sections:
        model = model.model_fields[section].annotation  # type: ignore[assignment]
    return model.model_fields[key].annotation


def all_keys(model: type[BaseModel] = RunConfig, above: str = "") -> list[str]:
    """Every setting below `model` as `stage.key`, in the order of the file."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += all_keys(annotation, f"{above}{name}.")
        else:
            keys.append(above + name)
    return keys
