"""The roofline counts every matrix product, with and without gradients."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.ceiling import Product, ceiling, products


def test_a_linear_layer_is_one_product_forward_and_two_more_backward() -> None:
    layer = nn.Linear(8, 16, bias=False)
    rows = torch.rand(2, 5, 8, requires_grad=True)
    with torch.inference_mode():
        forward = products(lambda: layer(torch.rand(2, 5, 8)))
    assert forward == {Product(1, 10, 8, 16, torch.float32): 1}
    both = products(lambda: layer(rows).sum().backward())
    assert sum(both.values()) == 3
    assert {product.flop for product in both} == {2 * 10 * 8 * 16}


def test_the_ceiling_adds_up_all_of_them() -> None:
    counts = products(lambda: torch.rand(3, 4, 5) @ torch.rand(3, 5, 6))
    seconds, flop = ceiling(counts)
    assert flop == 2 * 3 * 4 * 5 * 6
    assert seconds > 0
