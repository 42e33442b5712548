"""Divergences between teacher and student, and the distillation loss with its analytic gradient.

All in nats a token and float32. The analytic form exists because the LM head is frozen: its backward pass is then one
matmul with (q − α p − (1−α) onehot), about half the cost of autograd through log_softmax (docs/experiments.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
    """Sums over the tokens of a chunk, and the gradient of the weighted sum with respect to the student's logits."""

    kl: Float[Tensor, ""]
    ce: Float[Tensor, ""]
    gradient: Float[Tensor, "tokens vocab"]


def distillation_terms(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher_logits: Float[Tensor, "tokens vocab"],
    targets: Int[Tensor, " tokens"],
    alpha: float,
    temperature: float,
) -> LossTerms:
    """Σ KL(p_T ‖ q_T), Σ CE and d/dz of Σ [(1−α)·CE + α·T²·KL], all at once from one softmax each.

    The gradient is (1−α)(q − onehot) + α·T·(q_T − p_T). Callers divide by the number of tokens.
    """
    student, teacher = student_logits.float(), teacher_logits.float()
    log_q = torch.log_softmax(student, dim=-1)
    ce = -log_q.gather(1, targets[:, None]).sum()
    q = log_q.exp()
    if temperature == 1.0:
        log_q_soft, q_soft = log_q, q
    else:
        log_q_soft = torch.log_softmax(student / temperature, dim=-1)
        q_soft = log_q_soft.exp()
    log_p = torch.log_softmax(teacher / temperature, dim=-1)
    p = log_p.exp()
    kl = (p * (log_p - log_q_soft)).sum()
    gradient = (1 - alpha) * q + (alpha * temperature) * (q_soft - p)
    gradient = gradient.scatter_add(1, targets[:, None], torch.full_like(ce, alpha - 1).expand(len(targets), 1))
    return LossTerms(kl, ce, gradient)
