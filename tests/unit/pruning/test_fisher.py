"""The Fisher metric of a block's output is the curvature of the model's own divergence."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.fisher import in_metric, output_metrics
from sparsekd.feed_forward import feed_forwards
from sparsekd.pruning.selection import svd
from tests.tiny_models import tiny_model
from tests.unit.pruning.test_peer_selections import layer


def test_half_of_its_form_is_the_divergence_of_a_small_error() -> None:
    """In the last layer, where an error moves its own token's logits alone."""
    model = tiny_model("llama")
    ids = torch.randint(384, (1, 6), generator=torch.Generator().manual_seed(0))
    metric = output_metrics(model, ids.repeat(600, 1))[-1]
    errors = 0.02 * torch.randn(40, metric.shape[0], generator=torch.Generator().manual_seed(1))
    down = feed_forwards(model)[-1].down
    measured, expected = [], []
    with torch.no_grad():
        plain = model(ids).logits.double().log_softmax(-1)
        for error in errors:
            hook = down.register_forward_hook(lambda module, inputs, output, error=error: output + error)
            moved = model(ids).logits.double().log_softmax(-1)
            hook.remove()
            measured.append(float((plain.exp() * (plain - moved)).sum(-1).mean()))
            expected.append(float(error.double() @ metric @ error.double()) / 2)
    torch.testing.assert_close(torch.tensor(expected), torch.tensor(measured), rtol=0.15, atol=1e-6)


def test_a_metric_weighs_what_neurons_give_and_the_plain_one_changes_nothing() -> None:
    statistics = layer(12, 0)
    plain = torch.eye(4, dtype=torch.float64)
    assert in_metric(svd, [plain])(statistics, 5).order.tolist() == svd(statistics, 5).order.tolist()
    first = torch.zeros(4, 4, dtype=torch.float64)
    first[0, 0] = 1
    alone = replace(statistics, down=statistics.down[:1])
    assert in_metric(svd, [first])(statistics, 5).order.tolist() == svd(alone, 5).order.tolist()
