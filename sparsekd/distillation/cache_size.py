"""How many bytes a teacher cache takes: known from shapes, before anything is written. No torch in here."""

from __future__ import annotations

from sparsekd.config import Teacher

SHARD_BYTES = 128 * 2**20
"""Most bytes of tensors in one file of a cache; twice as much is in memory while it is written."""


def id_bits(vocabulary: int) -> int:
    """Bits that a token id needs: 16 for 49,152 ids, 18 for 151,936."""
    return max(1, (vocabulary - 1).bit_length())


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` numbers of `bits` bits each, without gaps."""
    return -(-count * bits // 8)


def hidden_token_bytes(hidden_size: int) -> int:
    """Bytes of one token's final hidden state in bfloat16."""
    return 2 * hidden_size


def sampled_token_bytes(config: Teacher, vocabulary: int) -> int:
    """Bytes of one token's sample: packed ids, a 16-bit code for each of the top k, and two float32 numbers."""
    return packed_bytes(config.top_k + config.draws, id_bits(vocabulary)) + 2 * config.top_k + 8


def calibration_token_bytes(config: Teacher, hidden_size: int, vocabulary: int) -> int:
    """Bytes of one calibration token in a cache of this kind; 0 where the dense model runs beside the student."""
    if config.cache == "online":
        return 0
    return sampled_token_bytes(config, vocabulary) if config.cache == "sampled" else hidden_token_bytes(hidden_size)


def cache_bytes(config: Teacher, hidden_size: int, vocabulary: int, calibration: int, held_out: int) -> int:
    """Bytes of a whole cache, its LM head with it, for so many calibration and held-out tokens."""
    head = 2 * vocabulary * hidden_size
    exact = hidden_token_bytes(hidden_size) * held_out
    return calibration_token_bytes(config, hidden_size, vocabulary) * calibration + exact + head
