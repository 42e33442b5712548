"""Where the time of a forward pass goes, by operator class: FFN matmuls, attention, LM head, the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PreTrainedModel

from sparsekd.feed_forward import feed_forwards
from sparsekd.models import lm_head

CLASSES = ("ffn", "attention", "lm_head", "rest")
_MARK = "sparsekd:"


def operator_classes(model: PreTrainedModel) -> dict[nn.Module, str]:
    """The modules whose time is counted, and their class: the matmuls of the feed-forward blocks, whole attention
    blocks (projections included), the LM head. What is in none of them (norms, activations, embedding) is the rest.
    """
    classes: dict[nn.Module, str] = {}
    for feed_forward in feed_forwards(model):
        classes |= dict.fromkeys(feed_forward.projections, "ffn")
        classes |= {
            module: "attention" for name, module in feed_forward.layer.named_children() if name.endswith("attn")
        }
    weight = lm_head(model).weight
    head = next(module for module in model.modules() if isinstance(module, nn.Linear) and module.weight is weight)
    return classes | {head: "lm_head"}


def operator_milliseconds(model: PreTrainedModel, work: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of `work`, which runs `model`, by operator class, measured by torch.profiler.

    Wall time on the CPU, the kernels' own time on CUDA. The profiler itself takes time, mostly from the rest.
    """
    cuda = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with _marked(model), profile(activities=activities, acc_events=True) as profiler:
        with record_function(f"{_MARK}all"):
            work()
        if cuda:
            torch.cuda.synchronize()
    found = dict.fromkeys(("all", *CLASSES), 0.0)
    for event in profiler.key_averages():
        if event.key.startswith(_MARK) and event.device_type.name == "CPU":
            microseconds = event.device_time_total if cuda else event.cpu_time_total
            found[event.key.removeprefix(_MARK)] += microseconds / 1000
    found["rest"] = max(0.0, found.pop("all") - sum(found.values()))
    return found


def with_shares(milliseconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """{"ffn": {"milliseconds": …, "share": …}, …}; shares add up to 1."""
    total = sum(milliseconds.values()) or 1.0
    return {name: {"milliseconds": value, "share": value / total} for name, value in milliseconds.items()}


@contextlib.contextmanager
def _marked(model: PreTrainedModel) -> Iterator[None]:
    """Each counted module's forward as a named range of the profiler."""
    handles = []
    for module, name in operator_classes(model).items():
        mark: AbstractContextManager[Any] = record_function(f"{_MARK}{name}")

        def begin(*_: Any, mark: AbstractContextManager[Any] = mark) -> None:
            mark.__enter__()

        def end(*_: Any, mark: AbstractContextManager[Any] = mark) -> None:
            mark.__exit__(None, None, None)

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
