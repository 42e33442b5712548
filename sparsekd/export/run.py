"""Exports that hold: written, loaded in their runtime, compared with the checkpoint, and only then put in place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsekd.artifacts import require_disk
from sparsekd.errors import ExportError
from sparsekd.export.check import Reference, compare, reference, verdict
from sparsekd.export.formats import GGUF_TYPES, check_types
from sparsekd.export.tools import llama_library, versions
from sparsekd.export.write import write_gguf
from sparsekd.families import parameters_from_config
from sparsekd.models import read_config
from sparsekd.progress import Progress, silent

REPORT = "export.json"


def export_gguf(
    checkpoint: str | Path, out: str | Path, types: Sequence[str] = ("f16", "q8_0"), *, progress: Progress = silent
) -> dict[str, Any]:
    """Write a checkpoint directory as `model-TYPE.gguf` for each of `types`, and `export.json` with what was compared.

    Returns what export.json holds. Raises ExportError where a type does not fit the model, the converter does not take
    it, or llama.cpp computes something else with the file: that file is not left in `out` then.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    config = read_config(checkpoint)
    check_types(types, config)
    llama_library()  # before anything heavy
    weights = parameters_from_config(config)["total"]
    needed = int(sum(GGUF_TYPES[name].bytes * weights for name in types))
    require_disk(out, needed, f"{', '.join(types)} of {checkpoint} take {needed / 1e9:.1f} GB")
    progress(0, len(types) + 1, "files")
    expected = reference(checkpoint)
    files = {}
    for done, name in enumerate(types, start=1):
        progress(done, len(types) + 1, name)
        files[f"model-{name}.gguf"] = _export(checkpoint, out / f"model-{name}.gguf", name, expected)
    report = {"format": "gguf", "files": files, "tools": versions()}
    (out / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    progress(len(types) + 1, len(types) + 1, "files")
    return report


def _export(checkpoint: Path, file: Path, name: str, expected: Reference) -> dict[str, Any]:
    """One file, in place only when it holds; what it is and what was found."""
    unchecked = file.with_name(file.name + ".partial")
    try:
        write_gguf(checkpoint, unchecked, name)
        found = compare(unchecked, checkpoint, expected)
        wrong = verdict(found, name)
        if wrong is not None:
            raise ExportError(f"{file.name} is not what {checkpoint} is: {wrong}. It was not kept.")
        os.replace(unchecked, file)
    finally:
        unchecked.unlink(missing_ok=True)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    bounds = asdict(GGUF_TYPES[name].bounds)
    return {"type": name, "bytes": file.stat().st_size, "sha256": digest, "compared": found.to_json(), "bounds": bounds}
