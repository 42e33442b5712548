"""The types of GGUF files: what their blocks need, and how far from the checkpoint each may be. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsekd.errors import ExportError
from sparsekd.families import check_fields, family_of


@dataclass(frozen=True)
class Bounds:
    """The most by which llama.cpp may differ from Transformers in float32 on the passages of sparsekd.export.passages.

    `difference` is of log-probabilities, nats, over the checkpoint's ten likeliest next tokens at every position;
    `kl` the mean KL(checkpoint || export), nats a token; `perplexity` a ratio less one.
    """

    difference: float | None
    kl: float
    perplexity: float


@dataclass(frozen=True)
class GgufType:
    """A type of file: `block` weights of a row share a scale, and a weight takes `bytes` with its share of that."""

    block: int
    bytes: float
    bounds: Bounds


GGUF_TYPES: Mapping[str, GgufType] = {
    "f32": GgufType(1, 4, Bounds(1e-3, 1e-6, 1e-4)),
    "f16": GgufType(1, 2, Bounds(0.1, 1e-4, 2e-3)),
    "bf16": GgufType(1, 2, Bounds(0.5, 1e-3, 1e-2)),
    "q8_0": GgufType(32, 34 / 32, Bounds(None, 0.03, 0.05)),
    "q4_0": GgufType(32, 34 / 32, Bounds(None, 0.8, 0.6)),
}


TIMED_PREFILL, TIMED_DECODE = 256, 32
"""Tokens of the prompt that files are timed with, and of the answer to it."""

ONNX_BOUNDS = Bounds(1e-3, 1e-6, 1e-4)
"""Of an ONNX file, which holds float32."""


def gguf_types(formats: Sequence[str]) -> list[str]:
    """The types of the GGUF files among the values of `export.formats`."""
    return [name.removeprefix("gguf-") for name in formats if name.startswith("gguf-")]


def check_types(types: Sequence[str], config: Mapping[str, Any]) -> None:
    """Raise ExportError where a type is unknown or its blocks do not fit the rows of the model with this config.json.

    Raises ModelError for a layout that is not supported.
    """
    family = family_of(config)
    values = check_fields(config)
    sizes = {"hidden_size": values["hidden_size"], family.width: values["intermediate_size"]}
    for name in types:
        if name not in GGUF_TYPES:
            raise ExportError(f"There is no type {name!r} of GGUF files here; choose from {', '.join(GGUF_TYPES)}.")
        block = GGUF_TYPES[name].block
        for field, size in sizes.items():
            if size % block:
                advice = "Set prune.multiple_of to 32, or" if field == family.width else "So"
                raise ExportError(
                    f"{field} is {size}, and {name} needs rows divisible by {block}. {advice} leave {name} out: f16 "
                    "always fits."
                )
