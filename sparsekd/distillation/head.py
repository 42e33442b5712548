"""The distillation loss at the frozen LM head: values and the gradient of the student's hidden states, in chunks.

No (tokens × vocab) tensor stands for longer than a chunk, and autograd never sees the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsekd.distillation.losses import LossTerms, distillation_terms, sampled_terms
from sparsekd.distillation.targets import Target
from sparsekd.distillation.teacher.sampled import SampledTarget
from sparsekd.models import LMHead

CHUNK = 256
"""Tokens a chunk: smaller ones were slower (docs/experiments.md)."""

Terms = Callable[[Tensor, Tensor, Tensor, float, float], LossTerms]
SampledTerms = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, float], LossTerms]


@dataclass(frozen=True)
class HeadLoss:
    """The loss of student hidden states against the teacher, each through its own frozen LM head.

    The teacher comes as hidden states or as a sample of its distribution.
    """

    head: LMHead
    teacher_head: LMHead
    alpha: float
    temperature: float
    terms: Terms = distillation_terms
    sampled: SampledTerms = sampled_terms

    def __call__(
        self,
        student: Float[Tensor, "tokens hidden"],
        teacher: Target,
        targets: Int[Tensor, " tokens"],
    ) -> tuple[float, float, Float[Tensor, "tokens hidden"]]:
        """Mean KL and mean cross-entropy in nats a token, and the gradient of the mean loss, float32."""
        kl = ce = torch.zeros((), device=student.device)
        gradients = []
        for logits, terms in self._chunks(student, teacher, targets):
            kl, ce = kl + terms.kl, ce + terms.ce
            gradients.append(self.head.backward(terms.gradient, logits))
        count = len(targets)
        return float(kl) / count, float(ce) / count, torch.cat(gradients) / count

    def values(self, student: Tensor, teacher: Target, targets: Tensor) -> tuple[float, float]:
        """Summed KL and cross-entropy, without the gradient."""
        kl = ce = 0.0
        for _, terms in self._chunks(student, teacher, targets):
            kl, ce = kl + float(terms.kl), ce + float(terms.ce)
        return kl, ce

    def _chunks(self, student: Tensor, teacher: Target, targets: Tensor) -> Iterator[tuple[Tensor, LossTerms]]:
        """The student's logits and the terms of the loss, chunk by chunk."""
        for start in range(0, len(targets), CHUNK):
            rows = slice(start, start + CHUNK)
            logits = self.head.logits(student[rows])
            yield logits, self._terms(logits, teacher[rows], targets[rows])

    def _terms(self, logits: Tensor, teacher: Target, targets: Tensor) -> LossTerms:
        if isinstance(teacher, SampledTarget):
            entries = (teacher.ids, teacher.weights, teacher.entropy)
            return self.sampled(logits, *entries, targets, self.alpha, self.temperature)
        return self.terms(logits, self.teacher_head.logits(teacher), targets, self.alpha, self.temperature)
