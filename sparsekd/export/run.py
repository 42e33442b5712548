"""Exports that hold: written, loaded in their runtime, compared with the checkpoint, and only then put in place."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsekd.artifacts import require_disk
from sparsekd.errors import ExportError
from sparsekd.export.check import Reference, compare, reference, verdict
from sparsekd.export.formats import GGUF_TYPES, ONNX_BOUNDS, check_types
from sparsekd.export.tools import llama_library, onnx_importable, onnx_tools, tools, versions
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
    with tempfile.TemporaryDirectory(dir=out, suffix=".partial") as folder:
        unchecked = {name: Path(folder) / f"model-{name}.gguf" for name in types}
        write_gguf(checkpoint, unchecked)
        for done, (name, file) in enumerate(unchecked.items(), start=1):
            progress(done, len(types) + 1, "files")
            files[file.name] = _checked(checkpoint, file, out / file.name, name, expected)
    return _reported(out, "gguf", files, versions(tools()), progress)


def export_onnx(checkpoint: str | Path, out: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Write the checkpoint directory as `model.onnx` in float32, its weights in `model.onnx.data`; export.json beside.

    Tokens in, logits out, any batch and length, without a key-value cache. Returns what export.json holds. Raises
    ExportError where torch cannot write the model, or ONNX Runtime computes something else with it: nothing is left in
    `out` then.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    with onnx_importable():
        from sparsekd.export.onnx_model import compare_onnx, write_onnx

        weights = parameters_from_config(read_config(checkpoint))["total"]
        require_disk(out, 4 * weights, f"{checkpoint} in float32 takes {4 * weights / 1e9:.1f} GB")
        progress(0, 2, "files")
        expected = reference(checkpoint)
        with tempfile.TemporaryDirectory(dir=out, suffix=".partial") as folder:
            write_onnx(checkpoint, Path(folder) / "model.onnx")
            progress(1, 2, "files")
            found = compare_onnx(Path(folder) / "model.onnx", checkpoint, expected)
            _refuse_unlike("model.onnx", checkpoint, verdict(found, ONNX_BOUNDS))
            files = {}
            for file in sorted(Path(folder).iterdir()):
                os.replace(file, out / file.name)
                files[file.name] = {"bytes": (out / file.name).stat().st_size, "sha256": _sha256(out / file.name)}
        files["model.onnx"] |= {"type": "f32", "compared": found.to_json(), "bounds": asdict(ONNX_BOUNDS)}
        return _reported(out, "onnx", files, versions(onnx_tools()), progress)


def _checked(checkpoint: Path, unchecked: Path, file: Path, name: str, expected: Reference) -> dict[str, Any]:
    """`unchecked` in the place of `file` only when it holds; what it is and what was found."""
    bounds = GGUF_TYPES[name].bounds
    found = compare(unchecked, checkpoint, expected)
    _refuse_unlike(file.name, checkpoint, verdict(found, bounds))
    os.replace(unchecked, file)
    size, digest = file.stat().st_size, _sha256(file)
    return {"type": name, "bytes": size, "sha256": digest, "compared": found.to_json(), "bounds": asdict(bounds)}


def _refuse_unlike(name: str, checkpoint: Path, wrong: str | None) -> None:
    if wrong is not None:
        raise ExportError(f"{name} is not what {checkpoint} is: {wrong}. It was not kept.")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _reported(out: Path, form: str, files: dict[str, Any], tools: dict[str, str], progress: Progress) -> dict[str, Any]:
    report = {"format": form, "files": files, "tools": tools}
    (out / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    progress(1, 1, "files")
    return report
