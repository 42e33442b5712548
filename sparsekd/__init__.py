"""sparsekd: structured SVD pruning and self-referential distillation of stock decoder language models.

    from sparsekd import prune, distill, evaluate
    prune("my-model", "pruned", width=0.75)
    distill("pruned", "my-model", "distilled")
    print(evaluate("distilled", dense="my-model").perplexity)

The names are loaded on first use, so that importing the package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsekd.api import distill, evaluate, generate, preview, prune

__all__ = ["distill", "evaluate", "generate", "preview", "prune"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("sparsekd.api"), name)
