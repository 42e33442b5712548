"""The losses hold their definitions, and the analytic gradient is autograd's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsekd.config import Divergence
from sparsekd.distillation.head import CHUNK, HeadLoss
from sparsekd.distillation.losses import cross_entropy, distillation_terms, kl_divergence
from sparsekd.distillation.targets import Target
from sparsekd.distillation.teacher.sampled import SampledFormat, read_sample, sample
from sparsekd.models import LMHead

TEMPERATURES = st.sampled_from([0.5, 1.0, 2.0, 4.0])
ALPHAS = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])


def logits(seed: int, tokens: int = 5, vocab: int = 11) -> torch.Tensor:
    return 3 * torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed))


def reference_kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z / temperature - (z / temperature).max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(teacher.astype(np.float64)), softmax(student.astype(np.float64))
    return (p * np.log(p / q)).sum(-1)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), temperature=TEMPERATURES)
def test_kl_is_its_definition_never_negative_and_zero_at_equality(seed: int, temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    kl = kl_divergence(student, teacher, temperature)
    np.testing.assert_allclose(kl.numpy(), reference_kl(student.numpy(), teacher.numpy(), temperature), atol=1e-5)
    assert (kl >= 0).all()
    assert kl_divergence(teacher, teacher, temperature).abs().max() < 1e-6


def test_kl_of_a_hand_derived_case_is_the_true_kl_and_no_cross_entropy() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): KL = ½ ln 2 − ¼ ln 2 = 0.1733; the soft cross-entropy is 1.2130."""
    teacher = torch.tensor([[0.5, 0.25, 0.25]]).log()
    student = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert float(kl_divergence(student, teacher)) == pytest.approx(0.25 * math.log(2), abs=1e-6)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        kl_divergence(logits(0), logits(1), 0.0)


def autograd_loss(student, teacher, targets, alpha, temperature):  # type: ignore[no-untyped-def]
    kl = kl_divergence(student, teacher, temperature).sum()
    return (1 - alpha) * cross_entropy(student, targets).sum() + alpha * temperature**2 * kl


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), alpha=ALPHAS, temperature=TEMPERATURES)
def test_the_analytic_gradient_is_autograds(seed: int, alpha: float, temperature: float) -> None:
    student, teacher = logits(seed).requires_grad_(), logits(seed + 1)
    targets = torch.randint(0, 11, (5,), generator=torch.Generator().manual_seed(seed))
    loss = autograd_loss(student, teacher, targets, alpha, temperature)
    loss.backward()
    terms = distillation_terms(student.detach(), teacher, targets, alpha, temperature)
    assert student.grad is not None
    torch.testing.assert_close(terms.gradient, student.grad, rtol=1e-4, atol=1e-5)
    weighed = (1 - alpha) * terms.ce + alpha * temperature**2 * terms.kl
    torch.testing.assert_close(weighed, loss.detach(), rtol=1e-4, atol=1e-4)


def reference_divergence(name: str, student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """From the definitions, in float64: KL(p ‖ q), KL(q ‖ p), or half the KL of each to their mean."""
    if name == "forward_kl":
        return float(reference_kl(student, teacher, temperature).sum())
    if name == "reverse_kl":
        return float(reference_kl(teacher, student, temperature).sum())
    p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum(-1, keepdims=True) for z in (teacher, student))
    m = (p + q) / 2
    return float((0.5 * p * np.log(p / m) + 0.5 * q * np.log(q / m)).sum())


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), alpha=ALPHAS, temperature=TEMPERATURES)
def test_each_divergence_is_its_definition_and_has_autograds_gradient(
    divergence: Divergence, seed: int, alpha: float, temperature: float
) -> None:
    """In float64, at the student's logits; never negative, and zero with no gradient where the two agree."""
    student, teacher = logits(seed).double().requires_grad_(), logits(seed + 1).double()
    targets = torch.randint(0, 11, (5,), generator=torch.Generator().manual_seed(seed))
    log_p, log_q = ((z / temperature).log_softmax(-1) for z in (teacher, student))
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()
    value = {
        "forward_kl": (log_p.exp() * (log_p - log_q)).sum(),
        "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(),
        "jsd": (0.5 * log_p.exp() * (log_p - log_m) + 0.5 * log_q.exp() * (log_q - log_m)).sum(),
    }[divergence]
    ((1 - alpha) * cross_entropy(student, targets).sum() + alpha * temperature**2 * value).backward()
    terms = distillation_terms(student.detach(), teacher, targets, alpha, temperature, divergence)
    assert student.grad is not None
    torch.testing.assert_close(terms.gradient, student.grad, rtol=1e-5, atol=1e-6)
    reference = reference_divergence(divergence, student.detach().numpy(), teacher.numpy(), temperature)
    assert float(terms.kl) == pytest.approx(reference, rel=1e-9)
    assert float(terms.kl) >= 0
    same = distillation_terms(teacher, teacher, targets, 1.0, temperature, divergence)
    assert abs(float(same.kl)) < 1e-12
    assert same.gradient.abs().max() < 1e-12


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [3, 256, 300])
def test_the_chunked_head_gives_the_gradient_of_the_mean_loss(tokens: int, alpha: float) -> None:
    draw = torch.Generator().manual_seed(tokens)
    weight, old = torch.randn(11, 6, generator=draw), torch.randn(11, 6, generator=draw)
    student = torch.randn(tokens, 6, generator=draw, requires_grad=True)
    teacher = torch.randn(tokens, 6, generator=draw)
    targets = torch.randint(0, 11, (tokens,), generator=draw)
    loss = autograd_loss(student @ weight.T, teacher @ old.T, targets, alpha, 2.0) / tokens
    loss.backward()
    head = HeadLoss(LMHead(weight), LMHead(old), alpha, 2.0)
    with torch.no_grad():
        kl, ce, gradient = head(student, teacher, targets)
        kl_sum, ce_sum = head.values(student, teacher, targets)
    assert student.grad is not None
    torch.testing.assert_close(gradient, student.grad, rtol=1e-4, atol=1e-6)
    assert (1 - alpha) * ce + alpha * 4.0 * kl == pytest.approx(loss.item(), rel=1e-4)
    assert (kl_sum / tokens, ce_sum / tokens) == pytest.approx((kl, ce), rel=1e-5)


@pytest.mark.parametrize("sampled", [False, True])
def test_no_tensor_of_tokens_by_vocabulary_is_made(sampled: bool) -> None:
    """Of so many tokens none that holds more than a chunk's logits."""
    tokens, hidden, vocabulary = 4 * CHUNK, 8, 64

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            made = [tensor.numel() for tensor in tree_leaves(found) if isinstance(tensor, Tensor)]
            self.numbers = max([self.numbers, *made])
            return found

    weight, student = torch.randn(vocabulary, hidden), torch.randn(tokens, hidden)
    targets = torch.randint(0, vocabulary, (tokens,))
    teacher: Target = student
    if sampled:
        form = SampledFormat(top_k=4, draws=8, temperature=1.0, seed=0, vocabulary=vocabulary)
        teacher = read_sample(sample(torch.randn(tokens, vocabulary), form, torch.Generator().manual_seed(0)), form)
    with torch.no_grad(), Largest() as largest:
        HeadLoss(LMHead(weight), LMHead(weight), 0.5, 1.0)(student, teacher, targets)
    assert CHUNK * vocabulary <= largest.numbers <= 2 * CHUNK * vocabulary


def test_kl_only_gives_no_gradient_where_student_and_teacher_agree() -> None:
    same = logits(3)
    terms = distillation_terms(same, same, torch.zeros(5, dtype=torch.int64), alpha=1.0, temperature=1.0)
    assert terms.gradient.abs().max() < 1e-6
