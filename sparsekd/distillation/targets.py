"""What the teacher says about a batch: read from the cache, or asked of the dense model beside the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from sparsekd.distillation.student import cast_frozen_projections
from sparsekd.distillation.teacher.cache import TeacherCache
from sparsekd.distillation.teacher.sampled import SampledFormat, SampledTarget, read_sample
from sparsekd.distillation.teacher.shards import Part
from sparsekd.models import final_hidden
from sparsekd.runtime import compute_dtype, mixed_precision

Target = Float[Tensor, "tokens hidden"] | SampledTarget
"""The teacher at some tokens: final hidden states in bfloat16, or a sample of its distribution."""


class TargetSource(Protocol):
    """Answers for the scored positions of a batch."""

    def __call__(
        self,
        rows: Sequence[int],
        input_ids: Int[Tensor, "batch length"],
        scored: Bool[Tensor, "batch length-1"],
    ) -> Target:
        """The teacher where `scored` is true, on the device of `input_ids`, the sequences number `rows`."""


def cached(cache: TeacherCache, part: str) -> TargetSource:
    """The teacher of a part of the cache, in the form that the cache keeps it. Raises ArtifactError."""
    form = cache.index.sampled
    if form is None or "hidden" in cache.part(part).names:
        return Hidden(cache.part(part))
    return Sampled(cache.part(part), form)


@dataclass(frozen=True)
class Hidden:
    """Exact: hidden states from the cache."""

    part: Part

    def __call__(self, rows: Sequence[int], input_ids: Tensor, scored: Tensor) -> Target:
        hidden = self.part.rows(rows)["hidden"]
        return hidden[:, :-1].to(input_ids.device)[scored]


@dataclass(frozen=True)
class Sampled:
    """Compact: samples from the cache."""

    part: Part
    form: SampledFormat

    def __call__(self, rows: Sequence[int], input_ids: Tensor, scored: Tensor) -> Target:
        chosen = scored.cpu()
        records = {name: tensor[:, :-1][chosen] for name, tensor in self.part.rows(rows).items()}
        return read_sample({name: tensor.to(input_ids.device) for name, tensor in records.items()}, self.form)


class Online:
    """No cache: the dense model's own forward pass, with the arithmetic that stage teacher caches."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes over `model`: its projections become what autocast would make them."""
        self._model = model.requires_grad_(False)
        cast_frozen_projections(model, compute_dtype(model.device))

    @torch.no_grad()
    def __call__(self, rows: Sequence[int], input_ids: Tensor, scored: Tensor) -> Target:
        with mixed_precision(input_ids.device):
            hidden = final_hidden(self._model, input_ids).to(torch.bfloat16)
        return hidden[:, :-1][scored]
