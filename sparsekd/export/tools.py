"""Where llama.cpp and its converter are installed: beside the environment's packages, not among them.

The converter brings a `gguf` of its own, and requirements.lock is an input of every stage.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from sparsekd.errors import NotExportableError

FOLDER = Path("share", "sparsekd", "export")
ONNX_FOLDER = Path("share", "sparsekd", "onnx")


def tools() -> Path:
    """The folder to import the converter from. Raises NotExportableError where it was not installed."""
    folder = Path(sys.prefix) / FOLDER
    if not (folder / "convert_hf_to_gguf.py").is_file():
        raise NotExportableError(
            f"llama.cpp's converter is not in {folder}; `make setup` puts it there (sparsekd/export/requirements.lock)."
        )
    return folder


def llama_library() -> Path:
    """llama.cpp as a shared library. Raises NotExportableError where it was not installed."""
    found = sorted((tools() / "xllamacpp").glob("xllamacpp*.so"))
    if not found:
        raise NotExportableError(f"llama.cpp is not in {tools()}: there is no wheel of xllamacpp for this platform.")
    return found[0]


def onnx_tools() -> Path:
    """The folder of ONNX Runtime and what torch writes ONNX files with. Raises NotExportableError without it."""
    folder = Path(sys.prefix) / ONNX_FOLDER
    if not (folder / "onnxruntime").is_dir():
        raise NotExportableError(
            f"ONNX Runtime is not in {folder}; `make onnx` puts it there (sparsekd/export/onnx.lock)."
        )
    return folder


@contextlib.contextmanager
def onnx_importable() -> Iterator[None]:
    """onnx, onnxscript and onnxruntime can be imported in the block."""
    folder = str(onnx_tools())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def versions(folder: Path) -> dict[str, str]:
    """Package to version, of what is installed in such a folder."""
    names = (found.name.removesuffix(".dist-info").rsplit("-", 1) for found in folder.glob("*.dist-info"))
    return {name.replace("_", "-"): version for name, version in sorted(names)}
