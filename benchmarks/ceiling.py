"""What this machine does in plain matrix products of the very shapes that a piece of work uses."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SECONDS = 0.15  # of repetition for each shape


class Product(NamedTuple):
    """`batch` products of (rows x inner) by (inner x columns)."""

    batch: int
    rows: int
    inner: int
    columns: int
    dtype: torch.dtype

    @property
    def flop(self) -> int:
        return 2 * self.batch * self.rows * self.inner * self.columns


class Products(TorchDispatchMode):
    """Counts the matrix products that run inside it, by shape. Attention must be `eager` for its own to be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        left = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::addmm_": 1, "aten::baddbmm": 1}.get(func.name())
        if left is not None:
            a, b = args[left], args[left + 1]
            in_bfloat16 = torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # sparsekd/pruning/statistics.py
            dtype = torch.bfloat16 if in_bfloat16 else a.dtype
            self.seen[Product(math.prod(a.shape[:-2]), *a.shape[-2:], b.shape[-1], dtype)] += 1
            return func(*args, **(kwargs or {}))
        with self:  # without gradients `linear` arrives whole: look at what it is made of
            parts = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if parts is NotImplemented else parts


def products(work: Callable[[], Any]) -> Counter[Product]:
    """How often each product runs in `work`."""
    with Products() as mode:
        work()
    return mode.seen


def ceiling(counts: Mapping[Product, int]) -> tuple[float, float]:
    """Seconds that these products take alone, each timed by repetition on operands of its own; and their FLOP."""
    seconds = sum(count * _seconds(product) for product, count in counts.items())
    return seconds, float(sum(count * product.flop for product, count in counts.items()))


def _seconds(product: Product) -> float:
    """The fastest third of the repetitions: a machine that is disturbed now and then is no slower for it."""
    a = torch.rand(product.batch, product.rows, product.inner).to(product.dtype)
    b = torch.rand(product.batch, product.inner, product.columns).to(product.dtype)
    if product.batch == 1:
        a, b = a[0], b[0]
    out = a @ b
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 3:
        started = time.perf_counter()
        torch.matmul(a, b, out=out)
        times.append(time.perf_counter() - started)
    fastest = sorted(times)[: max(1, len(times) // 3)]
    return sum(fastest) / len(fastest)
