"""Marks for tests that need llama.cpp with its converter, or ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sparsekd.errors import ExportError
from sparsekd.export.tools import llama_library, onnx_tools


def _needs(find: Callable[[], Path]) -> pytest.MarkDecorator:
    try:
        find()
    except ExportError as error:
        return pytest.mark.skipif(True, reason=str(error))
    return pytest.mark.skipif(False, reason="")


with_llama_cpp, with_onnx = _needs(llama_library), _needs(onnx_tools)
