"""Prefect's server, whose forms and API refuse a wrong setting in the sentence that the command line gives.

    python -m flows.server.prefect_server server start …

is `prefect server start …`. By itself Prefect says what JSON schema says (*-1 is less than or equal to the exclusive
minimum of 0*), and nothing of values that do not fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonschema.exceptions import ValidationError as SchemaError
from prefect.utilities.schema_tools import validation
from pydantic import ValidationError

from sparsekd.config import RunConfig, Section
from sparsekd.settings import faults

Errors = Callable[..., Iterator[SchemaError]]
_SECTIONS = {
    name: section.model_fields.keys()
    for name, field in RunConfig.model_fields.items()
    if isinstance(section := field.annotation, type) and issubclass(section, Section)
}


def in_our_words(iter_errors: Errors) -> Errors:
    """`iter_errors` of Prefect's validator, with the sentences of the command line for the form of `compress`."""

    def reworded(self: Any, instance: Any, *arguments: Any, **options: Any) -> Iterator[SchemaError]:
        found = iter_errors(self, instance, *arguments, **options)
        if not _is_our_form(self.schema) or not isinstance(instance, Mapping):
            yield from found
            return
        said = dict(_sentences(instance))
        for error in found:
            path = tuple(map(str, error.absolute_path))
            if (place := next((place for place in said if place[:2] == path[:2]), None)) is not None:
                error.message = said.pop(place)
                error.context = []  # of a value that may be null, Prefect would say what each alternative says of it
            yield error
        if _is_whole(instance):  # else params.yaml has a say in what fits together
            for place, sentence in said.items():
                yield SchemaError(sentence, path=place, validator="sparsekd", instance=instance, schema={})

    return reworded


def _is_our_form(schema: Any) -> bool:
    return isinstance(schema, Mapping) and set(schema.get("properties", ())) >= _SECTIONS.keys()


def _is_whole(instance: Mapping[str, Any]) -> bool:
    """Whether every setting is given, as by the page; a call of the API may give some of them."""
    return all(set(instance.get(name) or ()) >= fields for name, fields in _SECTIONS.items())


def _sentences(instance: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What the command line would say of these values, by the field that it is said of."""
    given = {name: instance[name] for name in _SECTIONS if isinstance(instance.get(name), Mapping)}
    try:
        RunConfig.model_validate(given)
    except ValidationError as error:
        for place, sentence in faults(error):
            named = tuple(sentence.partition(" ")[0].split("."))  # rules across fields begin with the one to change
            yield (named if len(named) > 1 else place), sentence


def main() -> None:
    """Prefect's own command line with these words."""
    validator: Any = validation._VALIDATOR
    validator.iter_errors = in_our_words(validator.iter_errors)
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
