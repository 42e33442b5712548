"""Divergences between teacher and student, and the distillation loss with its analytic gradient.

All in nats a token and float32 (float64 where it is given). The analytic form exists because the LM head is frozen: its
backward pass is then one matmul with (q − α p − (1−α) onehot), about half the cost of autograd through log_softmax
(docs/experiments.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsekd.config import Divergence


def kl_divergence(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher_logits: Float[Tensor, "tokens vocab"],
    temperature: float = 1.0,
) -> Float[Tensor, " tokens"]:
    """KL(teacher ‖ student) per token, in nats, both softened by `temperature`.

    Zero when the two agree, never negative. Not multiplied by T²: the caller weighs terms. Computed in float32.
    Raises ValueError for temperature <= 0. Source: Hinton et al. 2015, eq. 1-2.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    log_p = torch.log_softmax(teacher_logits.float() / temperature, dim=-1)
    log_q = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def cross_entropy(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """−log q(target) per token, in nats, float32."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


class LossTerms(NamedTuple):
    """Sums over the tokens of a chunk, and the gradient of the weighted sum with respect to the student's logits.

    `kl` is the divergence that was asked for, the forward KL by default.
    """

    kl: Float[Tensor, ""]
    ce: Float[Tensor, ""]
    gradient: Float[Tensor, "tokens vocab"]


def distillation_terms(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher_logits: Float[Tensor, "tokens vocab"],
    targets: Int[Tensor, " tokens"],
    alpha: float,
    temperature: float,
    divergence: Divergence = "forward_kl",
) -> LossTerms:
    """Σ D(p_T, q_T), Σ CE and d/dz of Σ [(1−α)·CE + α·T²·D], all at once from one softmax each.

    The gradient is (1−α)(q − onehot) + α·T·(T ∂D/∂z), where T ∂D/∂z is q_T − p_T for the forward KL. Callers divide by
    the number of tokens.
    """
    student, teacher = _wide(student_logits), _wide(teacher_logits)
    ce, q, log_q_soft, q_soft = _student(student, targets, temperature)
    log_p = torch.log_softmax(teacher / temperature, dim=-1)
    value, slope = _DIVERGENCES[divergence](log_p, log_q_soft, q_soft)
    gradient = (1 - alpha) * q + (alpha * temperature) * slope
    return LossTerms(value, ce, _subtract_targets(gradient, targets, ce, alpha))


def sampled_terms(
    student_logits: Float[Tensor, "tokens vocab"],
    ids: Int[Tensor, "tokens entries"],
    weights: Float[Tensor, "tokens entries"],
    entropy: Float[Tensor, " tokens"],
    targets: Int[Tensor, " tokens"],
    alpha: float,
    temperature: float,
) -> LossTerms:
    """`distillation_terms` with the forward KL where the teacher is p̂ = Σ weights · onehot(ids) with E[p̂] = p_T.

    The KL is −H − Σ p̂ log q_T. Both it and its gradient are linear in p̂, so both are right in the mean.
    """
    student = _wide(student_logits)
    ce, q, log_q_soft, q_soft = _student(student, targets, temperature)
    kl = -entropy.sum() - (weights * log_q_soft.gather(1, ids)).sum()
    soft = weights.sum(-1, keepdim=True) * q_soft
    gradient = (1 - alpha) * q + (alpha * temperature) * soft
    gradient = gradient.scatter_add(1, ids, weights * (-alpha * temperature))
    return LossTerms(kl, ce, _subtract_targets(gradient, targets, ce, alpha))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _student(student: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ CE, q, log q_T and q_T."""
    log_q = torch.log_softmax(student, dim=-1)
    ce = -log_q.gather(1, targets[:, None]).sum()
    q = log_q.exp()
    if temperature == 1.0:
        return ce, q, log_q, q
    log_q_soft = torch.log_softmax(student / temperature, dim=-1)
    return ce, q, log_q_soft, log_q_soft.exp()


def _subtract_targets(gradient: Tensor, targets: Tensor, ce: Tensor, alpha: float) -> Tensor:
    """The gradient less (1−α) at each target."""
    return gradient.scatter_add(1, targets[:, None], torch.full_like(ce, alpha - 1).expand(len(targets), 1))


def _forward_kl(log_p: Tensor, log_q: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) = Σ p (log p − log q); q − p."""
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(), q - p


def _reverse_kl(log_p: Tensor, log_q: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p) = Σ q (log q − log p); q (log q − log p − KL)."""
    ratio = log_q - log_p
    kl = (q * ratio).sum(-1, keepdim=True)
    return kl.sum(), q * (ratio - kl)


def _jensen_shannon(log_p: Tensor, log_q: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = ½ (p + q); ½ q (log q − log m − KL(q ‖ m))."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    ratio = log_q - log_m
    of_student = (q * ratio).sum(-1, keepdim=True)
    of_teacher = (log_p.exp() * (log_p - log_m)).sum()
    return 0.5 * (of_teacher + of_student.sum()), 0.5 * q * (ratio - of_student)


_DIVERGENCES = {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "jsd": _jensen_shannon}
"""Of log p, log q and q: the sum over tokens, and the gradient of the student's logits before their temperature."""
