"""A mark for tests that need llama.cpp and its converter."""

import pytest

from sparsekd.errors import ExportError
from sparsekd.export.tools import llama_library


def _missing() -> str:
    try:
        llama_library()
    except ExportError as error:
        return str(error)
    return ""


_REASON = _missing()
with_llama_cpp = pytest.mark.skipif(bool(_REASON), reason=_REASON)
