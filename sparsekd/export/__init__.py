"""A stock checkpoint in the formats of other runtimes, each compared there with the checkpoint before it counts.

    from sparsekd.export import export_gguf
    export_gguf("data/distilled", "exported", ["f16", "q8_0"])

The names are loaded on first use, so that importing the package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsekd.export.run import export_gguf, export_onnx

__all__ = ["export_gguf", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("sparsekd.export.run"), name)
