"""One integer intermediate_size of the width in the configuration, and the memory of a walk. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from sparsekd.errors import ConfigError


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
