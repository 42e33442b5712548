"""The compact cache: the k likeliest tokens and n draws from the rest, an unbiased estimate of the distribution.

With p the teacher's distribution at temperature T and τ the mass outside of the top k, p̂ gives each of the top k its
probability and each draw τ/n, so that E[p̂] = p. What is linear in p is then unbiased: the gradient of the forward KL
and, with the stored entropy H, its value −H − Σ p̂ log q. Truncation alone is biased (arXiv 2503.16870).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from sparsekd.distillation.cache_size import id_bits

STEP = 2.0**-11
"""Nats between two codes of a log-probability: 16 bits reach from 0 to −32 in steps of 0.05 %."""
_CODES = 2**16


class SampledFormat(BaseModel):
    """What a sampled cache was made with; `vocabulary` fixes the bits of an id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: int
    draws: int
    temperature: float
    seed: int
    vocabulary: int


@dataclass(frozen=True)
class SampledTarget:
    """p̂ of some tokens as (id, weight) pairs, and the teacher's entropy in nats. An id may be drawn twice."""

    ids: Int[Tensor, "tokens entries"]
    weights: Float[Tensor, "tokens entries"]
    entropy: Float[Tensor, " tokens"]

    def __getitem__(self, rows: slice) -> SampledTarget:
        return SampledTarget(self.ids[rows], self.weights[rows], self.entropy[rows])


def sample(logits: Float[Tensor, "tokens vocab"], form: SampledFormat, generator: torch.Generator) -> dict[str, Tensor]:
    """The record of each token: packed `ids` (uint8), `codes` of the top k (uint16), `tail` mass τ, `entropy`.

    A code is rounded up or down at random so that its probability is right in the mean.
    """
    log_p = torch.log_softmax(logits.float() / form.temperature, dim=-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    top, ids = log_p.topk(form.top_k, dim=-1)
    cumulative = p.scatter_(1, ids, 0.0).cumsum(-1)
    tail = cumulative[:, -1].clone()
    uniform = torch.rand(len(logits), form.draws, device=logits.device, generator=generator) * tail[:, None]
    drawn = torch.searchsorted(cumulative, uniform, right=True).clamp_max(form.vocabulary - 1)
    return {
        "ids": pack_ids(torch.cat([ids, drawn], dim=1), id_bits(form.vocabulary)),
        "codes": _encode(top, generator),
        "tail": tail,
        "entropy": entropy,
    }


def read_sample(records: Mapping[str, Tensor], form: SampledFormat) -> SampledTarget:
    """The target that `sample` wrote for some tokens; Σ p̂ is 1 up to the rounding of the codes."""
    ids = unpack_ids(records["ids"], form.top_k + form.draws, id_bits(form.vocabulary))
    top = (records["codes"].to(torch.float32) * -STEP).exp()
    drawn = (records["tail"] / form.draws)[:, None].expand(-1, form.draws)
    return SampledTarget(ids, torch.cat([top, drawn], dim=1), records["entropy"])


def pack_ids(ids: Int[Tensor, "tokens entries"], bits: int) -> UInt8[Tensor, "tokens bytes"]:
    """Each id in `bits` bits, lowest first, a token's ids without gaps between them."""
    places = torch.arange(bits, device=ids.device)
    stream = (ids[..., None] >> places & 1).to(torch.uint8).flatten(1)
    octets = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 8)).reshape(len(ids), -1, 8)
    return torch.sum(octets << torch.arange(8, device=ids.device, dtype=torch.uint8), dim=-1, dtype=torch.uint8)


def unpack_ids(packed: UInt8[Tensor, "tokens bytes"], entries: int, bits: int) -> Int[Tensor, "tokens entries"]:
    """What `pack_ids` packed, as int64."""
    stream = (packed[..., None] >> torch.arange(8, device=packed.device, dtype=torch.uint8) & 1).flatten(1)
    numbers = stream[:, : entries * bits].reshape(len(packed), entries, bits).long()
    return torch.sum(numbers << torch.arange(bits, device=packed.device), dim=-1)


def _encode(log_p: Float[Tensor, "tokens top"], generator: torch.Generator) -> Tensor:
    """−log p in steps, rounded at random: with the two neighbours' weights that give p itself in the mean."""
    steps = log_p.double() / -STEP
    below = steps.floor()
    share = (torch.expm1((below - steps) * STEP) - math.expm1(-STEP)) / -math.expm1(-STEP)
    chance = torch.rand(log_p.shape, dtype=torch.float64, device=log_p.device, generator=generator)
    return (below + (chance >= share)).clamp(0, _CODES - 1).to(torch.int32).to(torch.uint16)
