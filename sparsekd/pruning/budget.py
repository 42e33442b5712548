"""From a budget in the configuration to one integer intermediate_size; and the memory of a walk.

Needs no torch where a formula counts the model's parameters (sparsekd/families.py): preflight uses it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sparsekd.config import Prune
from sparsekd.errors import ConfigError
from sparsekd.families import check_fields, parameters_from_config

_COUNTED = {
    "ffn_reduction": ("ffn", "feed-forward parameters"),
    "non_embedding_reduction": ("non_embedding", "parameters but the embeddings'"),
    "total_reduction": ("total", "parameters"),
}


def resolve_budget(config: Prune, model: Mapping[str, Any]) -> int:
    """The intermediate_size that the budget of `config` means for the model with these values of config.json.

    A reduction gives the width whose reduction is nearest, `parameters` the largest width that has no more, both in
    multiples of `config.multiple_of`. Raises ConfigError with what is possible where no width can do it.
    """
    old = int(check_fields(model)["intermediate_size"])
    if config.width is not None:
        return resolve_width(config.width, old, config.multiple_of)
    dense = parameters_from_config(model)
    neuron = parameters_from_config(model, old + 1)["total"] - dense["total"]
    if config.parameters is not None:
        return _at_most(config.parameters, config.multiple_of, old, neuron, dense["total"])
    key, share = config.budget
    counted, named = _COUNTED[key]
    removed = share * dense[counted] / neuron
    rounded = old if share == 0 else min(round((old - removed) / config.multiple_of) * config.multiple_of, old)
    if rounded < 1:
        least = min(config.multiple_of, old)
        most = math.floor(1000 * (old - least) * neuron / dense[counted]) / 1000
        raise ConfigError(
            f"prune.{key} is {share:g}; neurons of the feed-forward layers are {old * neuron / dense[counted]:.1%} of "
            f"the model's {named}, and prune.multiple_of leaves at least {least} of {old}, so {most:g} is the most. "
            "Give that or less, or a smaller prune.multiple_of."
        )
    return rounded


def _at_most(parameters: int, multiple_of: int, old: int, neuron: int, dense: int) -> int:
    """The largest multiple of `multiple_of`, or `old` itself, with no more than `parameters` parameters in all."""
    if parameters > dense:
        raise ConfigError(
            f"prune.parameters is {parameters:,}; the model's {dense:,} parameters are the most it can be. Give fewer."
        )
    if parameters == dense:
        return old
    rounded = (old - -(-(dense - parameters) // neuron)) // multiple_of * multiple_of
    if rounded < 1:
        least = min(multiple_of, old)
        raise ConfigError(
            f"prune.parameters is {parameters:,}; prune.multiple_of leaves at least {least} of {old} neurons a layer, "
            f"and then the model has {dense - (old - least) * neuron:,}. Give that or more, or a smaller "
            "prune.multiple_of."
        )
    return rounded


def resolve_width(width: float, intermediate_size: int, multiple_of: int) -> int:
    """The integer that `width` means: itself above 1, else that fraction of `intermediate_size`.

    A fraction is rounded to the nearest multiple of `multiple_of` (tensor-parallel and kernel friendly); 1.0 keeps the
    width as it is. Raises ConfigError when nothing would be left or the integer exceeds the model's own width.
    """
    if width > 1:
        if width > intermediate_size:
            raise ConfigError(
                f"prune.width is {int(width)}; the model's {intermediate_size} neurons a layer are the most it can be. "
                "Edit params.yaml, or give a fraction in (0, 1]."
            )
        return int(width)
    if width == 1:
        return intermediate_size
    rounded = round(width * intermediate_size / multiple_of) * multiple_of
    if rounded < 1:
        least = multiple_of / intermediate_size
        raise ConfigError(
            f"prune.width is {width}; of {intermediate_size} neurons that rounds to none at multiples of "
            f"{multiple_of}. Give {least:.3f} or more, an integer, or a smaller prune.multiple_of."
        )
    return min(rounded, intermediate_size)


def describe_reduction(reduction: Mapping[str, float]) -> str:
    """The four shares that a width removes, which are never shown one without the others."""
    shares = {name: f"{100 * share:.1f} %" for name, share in reduction.items()}
    return (
        f"{shares['width']} of the width, {shares['ffn']} of the FFN, {shares['non_embedding']} of the non-embedding "
        f"and {shares['total']} of all parameters"
    )


def walk_bytes(tokens: int, hidden: int, width: int, layers: int, parameters: Mapping[str, int]) -> float:
    """Memory of pruning a checkpoint (sparsekd/pruning/streamed.py) at its peak: its embeddings, then one layer.

    `parameters` of the dense model are {total, non_embedding}; libraries come on top.
    """
    streams = 2 * 4 * tokens * hidden
    start = 4 * (parameters["total"] - parameters["non_embedding"]) + 1.5 * streams
    weights = 6 * parameters["non_embedding"] / layers  # float32, and bfloat16 under autocast
    sums = 4 * width * (width + hidden)
    solving = 8 * (2.25 * width**2 + 5 * hidden * width)  # float64: the covariance, a factor of it, targets
    return max(start, streams + 2 * tokens * width + weights + sums + solving)
