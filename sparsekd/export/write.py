"""A stock checkpoint as a GGUF file, written by llama.cpp's own converter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sparsekd.errors import NotExportableError
from sparsekd.export.tools import tools

_CONVERT = Path(__file__).with_name("convert.py")


def write_gguf(checkpoint: Path, files: Mapping[str, Path]) -> None:
    """Write `checkpoint` as GGUF files: of each type in `files` to the path that it gives.

    One process writes all: most of its time it loads libraries. Raises NotExportableError with the converter's own
    words where it does not take the layout or the tokenizer; none of the files is left then.
    """
    environment = dict(os.environ) | {"PYTHONPATH": str(tools()), "HF_HUB_OFFLINE": "1"}
    wanted = [word for name, file in files.items() for word in (name, str(file))]
    command = [sys.executable, "-P", str(_CONVERT), str(checkpoint), *wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0 or not all(file.is_file() for file in files.values()):
        for file in files.values():
            file.unlink(missing_ok=True)
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NotExportableError(f"llama.cpp's converter does not take {checkpoint}: {said[:300]}")
