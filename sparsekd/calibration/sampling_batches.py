"""How many self-generated sequences are sampled at once. No torch: the estimate before a run asks too."""

from __future__ import annotations

_MOST = 96  # a step reads all weights, whatever the number of sequences
_CACHE_BYTES = 2**31


def sampling_batches(sequences: int, length: int, token_bytes: int) -> list[int]:
    """Sequences of each batch, as even as can be, so that its keys and values take some 2 GiB at most.

    `token_bytes` are those of one token's keys and values in all layers.
    """
    most = max(1, min(_MOST, _CACHE_BYTES // max(1, token_bytes * length)))
    batches = -(-sequences // most)
    return [sequences // batches + (number < sequences % batches) for number in range(batches)]
