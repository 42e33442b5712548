"""What a sampled cache promises: ids in as many bits as they need, and no bias in what is linear in the teacher."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekd.config import RunConfig, Teacher
from sparsekd.distillation.cache_size import hidden_token_bytes, id_bits, packed_bytes, sampled_token_bytes
from sparsekd.distillation.losses import distillation_terms, kl_divergence, sampled_terms
from sparsekd.distillation.teacher.sampled import SampledFormat, pack_ids, read_sample, sample, unpack_ids
from sparsekd.errors import ConfigError
from sparsekd.settings import parse_config


@settings(deadline=None, max_examples=40)
@given(vocabulary=st.integers(2, 300_000), entries=st.integers(1, 40), seed=st.integers(0, 1000))
def test_ids_come_back_from_as_many_bits_as_the_vocabulary_needs(vocabulary: int, entries: int, seed: int) -> None:
    ids = torch.randint(0, vocabulary, (3, entries), generator=torch.Generator().manual_seed(seed))
    ids[0, 0] = vocabulary - 1
    packed = pack_ids(ids, id_bits(vocabulary))
    assert packed.shape == (3, packed_bytes(entries, id_bits(vocabulary)))
    assert torch.equal(unpack_ids(packed, entries, id_bits(vocabulary)), ids)


def test_the_default_sizes_keep_to_their_share_of_dense_logits() -> None:
    """SmolLM2 and Qwen3-0.6B: at most 1.2 % of 2·V bytes exact, 0.3 % sampled; 16 and 18 bits an id."""
    for vocabulary, hidden_size, bits in ((49_152, 576, 16), (151_936, 1024, 18)):
        assert id_bits(vocabulary) == bits
        assert hidden_token_bytes(hidden_size) <= 0.012 * 2 * vocabulary
        assert sampled_token_bytes(Teacher(), vocabulary) <= 0.003 * 2 * vocabulary


REPEATS, VOCABULARY = 20_000, 24


def deviations(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many standard errors the mean over repeats is from what it should be; float32 rounding is let pass."""
    error = (found.mean(0) - expected).abs() - 2e-6
    return error / (found.std(0) / len(found) ** 0.5).clamp_min(1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_sample_is_unbiased_for_the_distribution_the_kl_and_its_gradient(temperature: float) -> None:
    """At most 5 standard errors off in each of 24 entries over 20,000 samples; top-k alone fails the same bound."""
    draw = torch.Generator().manual_seed(7)
    teacher, student = (2 * torch.randn(1, VOCABULARY, generator=draw) for _ in range(2))
    form = SampledFormat(top_k=4, draws=3, temperature=temperature, seed=0, vocabulary=VOCABULARY)
    target = read_sample(sample(teacher.expand(REPEATS, -1), form, draw), form)
    p = (teacher[0].double() / temperature).softmax(-1)
    estimates = torch.zeros(REPEATS, VOCABULARY, dtype=torch.float64)
    estimates.scatter_add_(1, target.ids, target.weights.double())
    assert deviations(estimates, p).max() < 5

    targets = torch.zeros(REPEATS, dtype=torch.int64)
    students = student.double().expand(REPEATS, -1)
    entries = (target.ids, target.weights.double(), target.entropy.double())
    gradients = sampled_terms(students, *entries, targets, 0.7, temperature).gradient
    exact = distillation_terms(student.double(), teacher.double(), targets[:1], 0.7, temperature)
    assert deviations(gradients, exact.gradient[0]).max() < 5
    log_q = (student[0].double() / temperature).log_softmax(-1)
    values = -target.entropy.double() - (target.weights.double() * log_q[target.ids]).sum(-1)
    assert deviations(values[:, None], exact.kl[None]).max() < 5

    top_k = (target.ids[:, :4], entries[1][:, :4], entries[2])
    truncated = sampled_terms(students, *top_k, targets, 0.7, temperature)
    assert deviations(truncated.gradient, exact.gradient[0]).max() > 50


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000), temperature=st.sampled_from([0.5, 1.0, 3.0]), alpha=st.sampled_from([0.0, 0.4, 1.0])
)
def test_the_sampled_gradient_is_autograds(seed: int, temperature: float, alpha: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    teacher = 3 * torch.randn(5, 11, generator=draw)
    student = (3 * torch.randn(5, 11, generator=draw)).double().requires_grad_()
    form = SampledFormat(top_k=2, draws=4, temperature=temperature, seed=seed, vocabulary=11)
    target = read_sample(sample(teacher, form, draw), form)
    labels = torch.randint(0, 11, (5,), generator=draw)
    log_q = (student / temperature).log_softmax(-1)
    kl = -target.entropy.sum() - (target.weights * log_q.gather(1, target.ids)).sum()
    ce = torch.nn.functional.cross_entropy(student, labels, reduction="sum")
    ((1 - alpha) * ce + alpha * temperature**2 * kl).backward()
    terms = sampled_terms(
        student.detach(), target.ids, target.weights.double(), target.entropy.double(), labels, alpha, temperature
    )
    assert student.grad is not None
    torch.testing.assert_close(terms.gradient, student.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close((terms.kl, terms.ce), (kl.detach(), ce.detach()), rtol=1e-6, atol=1e-9)


def test_a_teacher_that_is_certain_leaves_an_empty_tail() -> None:
    teacher = torch.zeros(2, 9)
    teacher[:, 3] = 200.0
    form = SampledFormat(top_k=2, draws=3, temperature=1.0, seed=0, vocabulary=9)
    target = read_sample(sample(teacher, form, torch.Generator().manual_seed(0)), form)
    assert target.weights.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    assert target.entropy.tolist() == [0.0, 0.0]
    assert kl_divergence(teacher, teacher).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("distill", "reason"),
    [
        ({"divergence": "reverse_kl"}, "distill.divergence is reverse_kl .* unbiased only for losses linear"),
        ({"divergence": "jsd"}, "distill.divergence is jsd .* so set teacher.cache to hidden or online"),
        ({"temperature": 2.0}, "distill.temperature is 2 and teacher.temperature is 1; .* make them equal"),
    ],
)
def test_a_loss_that_a_sample_cannot_serve_is_refused(distill: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config({"teacher": {"cache": "sampled"}, "distill": distill})
    for kind in ("hidden", "online"):
        assert isinstance(parse_config({"teacher": {"cache": kind}, "distill": distill}), RunConfig)
    parse_config({"teacher": {"cache": "sampled", "temperature": 2.0}, "distill": {"temperature": 2.0}})
