"""A stock checkpoint as a GGUF file, written by llama.cpp's own converter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sparsekd.errors import NotExportableError
from sparsekd.export.tools import tools

_CONVERT = Path(__file__).with_name("convert.py")


def write_gguf(checkpoint: Path, file: Path, name: str) -> None:
    """Write `checkpoint` to `file` as GGUF type `name`.

    Raises NotExportableError with the converter's own words where it does not take the layout or the tokenizer;
    nothing is left at `file` then.
    """
    environment = dict(os.environ) | {"PYTHONPATH": str(tools()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", str(_CONVERT), str(checkpoint), str(file), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0 or not file.is_file():
        file.unlink(missing_ok=True)
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NotExportableError(f"llama.cpp's converter does not take {checkpoint}: {said[:300]}")
