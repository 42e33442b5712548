"""Prune a model that does not fit the memory: a random Llama of 3.2 B parameters in bfloat16, layer by layer.

    python -m benchmarks.big_model --folder /tmp/big
    python -m benchmarks.big_model --folder /tmp/big --layers 4 --kill-after 2

Writes the model (6.4 GB at the default sizes, as much again for what comes of it and once more while it works), prunes
it in a process of its own as the stage does, samples that process' anonymous memory, and prints a table and JSON. With
--kill-after the process is ended with SIGKILL after so many layers and started again, and the bytes are compared with
those of an undisturbed run. --folder is removed at the end unless --keep is given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sparsekd.artifacts import hash_file
from sparsekd.config import Prune, Runtime
from sparsekd.runtime import prepare_process, resolve_device, use_threads

_SAMPLE_SECONDS = 0.05


def write_model(arguments: argparse.Namespace, path: Path) -> None:
    """A random stock checkpoint with a file for each layer: never more of it than one file in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from sparsekd.models import empty_model

    config = LlamaConfig(
        hidden_size=arguments.hidden, intermediate_size=arguments.ffn, num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads, num_key_value_heads=arguments.key_heads, vocab_size=arguments.vocabulary,
        tie_word_embeddings=True, dtype="bfloat16", rope_theta=500_000.0,
    )  # fmt: skip
    path.mkdir(parents=True)
    config.save_pretrained(path)
    shapes = {name: tensor.shape for name, tensor in empty_model(config.to_dict()).state_dict().items()}
    del shapes["lm_head.weight"]
    files: dict[str, list[str]] = {}
    for name in shapes:
        number = int(name.split(".")[2]) + 2 if ".layers." in name else 1
        files.setdefault(f"model-{number:05d}-of-{arguments.layers + 1:05d}.safetensors", []).append(name)
    torch.manual_seed(0)
    for file, names in files.items():
        tensors = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if "norm" in name
            else torch.empty(shapes[name], dtype=torch.bfloat16).normal_(std=0.02)
            for name in names
        }
        save_file(tensors, path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def prune(arguments: argparse.Namespace, out: Path) -> None:
    """The work of the stage, with a line of JSON for each layer."""
    prepare_process(Runtime())
    import torch

    from sparsekd.calibration.packing import Packed
    from sparsekd.pruning.checkpoint import prune_checkpoint

    use_threads(Runtime())
    generator = torch.Generator().manual_seed(1)
    shape = (arguments.tokens // arguments.length, arguments.length)
    ids = torch.randint(arguments.vocabulary, shape, generator=generator, dtype=torch.int32)
    started = time.monotonic()

    def progress(done: float, total: float, unit: str, **values: float) -> None:
        print(json.dumps({"layer": done, "seconds": time.monotonic() - started} | values), flush=True)

    config = Prune(width=arguments.width, statistics_tokens=arguments.tokens)
    folder = arguments.folder
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    device = resolve_device(Runtime())
    prune_checkpoint(folder / "dense", out, Packed(ids, ids), config, device, folder / "work", "", progress)
    print(json.dumps({"seconds": time.monotonic() - started}), flush=True)


class Watched:
    """A process that prunes, and the most memory that it has had."""

    def __init__(self, out: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.big_model", *sys.argv[1:], "--prune", str(out)]
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.anonymous: dict[int, int] = {}
        """Peak by how many layers were done."""
        self.file = 0
        self.done = 0
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def run(self, kill_after: int | None = None) -> dict[str, Any]:
        """Wait for its end, or end it after so many layers."""
        layers, said = [], []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.startswith("{"):
                said.append(line.strip())
                continue
            values = json.loads(line)
            if "layer" in values:
                peak = self.anonymous.get(self.done, 0) / 1e9
                self.done = int(values["layer"])
                layers.append(values["seconds"])
                print(f"layer {self.done}: {values['seconds']:.0f} s, peak {peak:.2f} GB", flush=True)
                if self.done == kill_after:
                    self.process.kill()
        code = self.process.wait()
        self._thread.join()
        if code and kill_after is None:
            sys.exit(f"pruning ended with {code}: {' '.join(said)}")
        spans = [later - earlier for earlier, later in itertools.pairwise(layers)]
        return {
            "seconds": time.monotonic() - self.started,
            "seconds_a_layer": sorted(spans)[len(spans) // 2] if spans else None,
            "peak_anonymous_bytes": max(self.anonymous.values()),
            "peak_anonymous_bytes_by_layers_done": self.anonymous,
            "peak_file_bytes": self.file,
            "said": said,
        }

    def _sample(self) -> None:
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            try:
                lines = status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                name, _, value = line.partition(":")
                if name == "RssAnon":
                    self.anonymous[self.done] = max(self.anonymous.get(self.done, 0), 1024 * int(value.split()[0]))
                elif name == "RssFile":
                    self.file = max(self.file, 1024 * int(value.split()[0]))
            time.sleep(_SAMPLE_SECONDS)


def weights(folder: Path) -> dict[str, str]:
    """Hashes of what was written."""
    return {file.name: hash_file(file) for file in sorted(folder.iterdir())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kill-after", type=int)
    parser.add_argument("--prune", type=Path, help=argparse.SUPPRESS)
    sizes = {
        "hidden": 3072, "ffn": 8192, "layers": 28, "heads": 24, "key_heads": 8, "vocabulary": 128_256,
        "tokens": 8192, "length": 512,
    }  # fmt: skip
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--width", type=float, default=0.75)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.prune:
        prune(arguments, arguments.prune)
        return
    if not (folder / "dense").exists():
        started = time.monotonic()
        write_model(arguments, folder / "dense")
        print(f"wrote {folder / 'dense'} in {time.monotonic() - started:.0f} s", flush=True)
    size = sum(file.stat().st_size for file in (folder / "dense").glob("*.safetensors"))
    runs: dict[str, Any] = {"undisturbed": Watched(folder / "pruned").run()}
    if arguments.kill_after:
        runs["killed"] = Watched(folder / "again").run(arguments.kill_after)
        runs["resumed"] = Watched(folder / "again").run()
        runs["same_bytes"] = weights(folder / "again") == weights(folder / "pruned")
    print(f"\nmodel: {size / 1e9:.2f} GB in bfloat16, {arguments.layers} layers; {arguments.tokens} tokens\n")
    print("| run | seconds | seconds a layer | peak anonymous memory |\n|---|---|---|---|")
    for name, run in runs.items():
        if isinstance(run, dict):
            each = f"{run['seconds_a_layer']:.1f}" if run["seconds_a_layer"] else ""
            print(f"| {name} | {run['seconds']:.0f} | {each} | {run['peak_anonymous_bytes'] / 1e9:.2f} GB |")
    result = {"model_bytes": size, **{name: getattr(arguments, name) for name in sizes}, **runs}
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if not arguments.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
