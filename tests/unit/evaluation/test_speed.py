"""Rounds, ratios, predicted speed-up and the table by operator class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsekd.config import Benchmark
from sparsekd.evaluation.profile import CLASSES, operator_classes, operator_milliseconds, with_shares
from sparsekd.evaluation.speed import describe_host, predicted_speedup, ratio_of_rounds, rotated
from sparsekd.evaluation.speed_worker import request_cost
from sparsekd.feed_forward import feed_forwards
from sparsekd.models import load_model


def test_each_model_takes_each_place_equally_often() -> None:
    names = ["dense", "pruned", "distilled"]
    orders = [rotated(names, number) for number in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == sorted(names * 2)
    assert orders[1] == ["pruned", "distilled", "dense"]


def test_the_ratio_is_taken_round_by_round() -> None:
    # the machine slows down by half in the second round: rounds still say 1.2, the medians would not
    ratio = ratio_of_rounds([120.0, 60.0, 121.0], [100.0, 50.0, 110.0])
    assert ratio["rounds"] == pytest.approx([1.2, 1.2, 1.1])
    assert (ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((1.2, 1.1, 1.2))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_request_cost_counts_what_the_layers_do(make_model: Callable[..., Path], family: str) -> None:
    """Against FLOPs counted at the linear layers of a real forward pass, and bytes of their weights."""
    settings = Benchmark(prefill_tokens=24, decode_tokens=8, batch_size=3)
    model = load_model(make_model(family))
    linear: list[tuple[int, int]] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda layer, inputs, output: linear.append(
                    (2 * inputs[0].numel() * layer.weight.shape[0], layer.weight.nbytes)
                )
            )
    model(torch.zeros(3, 24, dtype=torch.int64), logits_to_keep=1)
    cost = request_cost(model, settings)
    config = model.config
    width = config.hidden_size // config.num_attention_heads if family != "qwen3" else config.head_dim
    pairs = 24 * 24 / 2  # causal attention: half of all pairs, twice (scores, values), 2 operations each
    attention = 3 * config.num_hidden_layers * config.num_attention_heads * width * pairs * 4
    assert cost["prefill_flops"] == pytest.approx(sum(f for f, _ in linear) + attention, rel=0.02)
    cache = 3 * 2 * config.num_hidden_layers * config.num_key_value_heads * width * (24 + 4) * 4
    assert cost["decode_bytes"] == pytest.approx(sum(b for _, b in linear) + cache, rel=0.02)


def test_a_narrower_model_is_predicted_to_be_faster(make_model: Callable[..., Path]) -> None:
    settings = Benchmark(prefill_tokens=24, decode_tokens=8)
    wide, narrow = (request_cost(load_model(make_model(intermediate_size=size)), settings) for size in (512, 64))
    predicted = predicted_speedup(wide, narrow)
    assert 1 < predicted["decode"] < predicted["prefill"] < 512 / 64
    assert predicted_speedup(wide, wide) == {"prefill": 1.0, "decode": 1.0}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_operator_classes_find_every_matmul_once(make_model: Callable[..., Path], family: str) -> None:
    model = load_model(make_model(family))
    classes = operator_classes(model)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inside = [
        [name for counted, name in classes.items() if any(module is linear for module in counted.modules())]
        for linear in linears
    ]
    assert all(len(found) == 1 for found in inside)
    per_layer = 2 if family == "phi3" else 3
    assert sum(found == ["ffn"] for found in inside) == per_layer * len(feed_forwards(model))
    assert sum(found == ["lm_head"] for found in inside) == 1


def test_a_table_by_operator_class_adds_up(make_model: Callable[..., Path]) -> None:
    wide, narrow = (load_model(make_model(intermediate_size=size)) for size in (32_768, 64))
    ids = torch.arange(64)[None]
    with torch.inference_mode():
        wide(ids), narrow(ids)
        # five turns each: another process takes the core for longer than such a layer's whole work
        found = [[operator_milliseconds(model, lambda m=model: m(ids)) for model in (wide, narrow)] for _ in range(5)]
    for table in (table for turn in found for table in turn):
        assert tuple(table) == CLASSES
        assert all(value > 0 for value in table.values())
        assert sum(row["share"] for row in with_shares(table).values()) == pytest.approx(1)
    shares = torch.tensor([[with_shares(table)["ffn"]["share"] for table in turn] for turn in found])
    of_wide, of_narrow = shares.median(dim=0).values
    assert of_wide > of_narrow


def test_marks_are_gone_after_profiling(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir)
    operator_milliseconds(model, lambda: model(torch.zeros(1, 4, dtype=torch.int64)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_host_is_described() -> None:
    host = describe_host()
    assert host["cpu"]
    assert host["cores"] >= 1
    assert host["memory_bytes"] > 2**28
