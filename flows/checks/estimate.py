"""What a run will take: minutes, memory, disk, and what the compressed model will be. No torch in this process.

Times are work (operations, from the shapes) over this machine's measured matrix speed, corrected by how long the
stages of earlier runs in this checkout took. They are estimates, good to a factor of two before a first run.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.checks import machine
from sparsekd.calibration.sampling_batches import sampling_batches
from sparsekd.config import DType, RunConfig
from sparsekd.distillation.cache_size import SHARD_BYTES, cache_bytes
from sparsekd.export.formats import TIMED_DECODE, TIMED_PREFILL, gguf_types
from sparsekd.families import check_fields, family_of, head_widths, parameters_from_config
from sparsekd.pruning.budget import resolve_budget, walk_bytes
from sparsekd.runtime import thread_count
from tasks.state import FOLDER, read_json, read_state, write_json

Counts = dict[str, int]
_START_SECONDS = 8.0  # interpreter, torch and transformers of one stage
_ROW_TOKENS = 110.0  # tokens of all the answers of one benchmark row
_SAMPLED_SECONDS = 5e-9  # softmax, top k and draws, for each entry of the vocabulary
_ASSUMED_FLOPS = 3.5e11  # before anything was measured
_LIBRARIES = 0.9e9  # bytes that torch and transformers take with no model
_PROBE = """
import gc
gc.disable()
import json, time, torch
torch.set_num_threads({threads})
from sparsekd.runtime import compute_dtype
cuda = torch.cuda.is_available() and {cuda}
device = torch.device("cuda" if cuda else "cpu")
a, b = (torch.randn(*shape, device=device).to(compute_dtype(device)) for shape in ((2048, 1024), (1024, 2048)))
def once():
    start = time.perf_counter()
    a @ b
    if cuda: torch.cuda.synchronize()
    return time.perf_counter() - start
once()
print(json.dumps({{"flops": 2 * 2048 * 1024 * 2048 / min(once() for _ in range(8)), "cuda": cuda}}))
"""


@dataclass(frozen=True)
class Compressed:
    """The dense model and what is left of it. Counts are {total, non_embedding, ffn}, sizes bytes of the weights."""

    dense: Counts
    pruned: Counts
    dense_bytes: int
    pruned_bytes: int
    old_width: int
    new_width: int

    @property
    def reduction(self) -> dict[str, float]:
        """The four numbers: of the width, of FFN, of non-embedding and of all parameters."""
        shares = {key: 1 - self.pruned[key] / self.dense[key] for key in ("ffn", "non_embedding", "total")}
        return {"width": 1 - self.new_width / self.old_width, **shares}


@dataclass(frozen=True)
class Estimate:
    """Seconds a stage, bytes of memory at the peak, bytes of disk that the outputs take."""

    seconds: dict[str, float]
    memory: int
    disk: int


def compressed(config: RunConfig, model: dict[str, Any]) -> Compressed:
    """Parameters and bytes before and after, from config.json. Raises ConfigError for an impossible budget."""
    old, new = widths(config, model)
    dense, pruned = parameters_from_config(model), parameters_from_config(model, new)
    each = _element_bytes(model)
    return Compressed(dense, pruned, each * dense["total"], each * pruned["total"], old, new)


def widths(config: RunConfig, model: dict[str, Any]) -> tuple[int, int]:
    """intermediate_size before and after. Raises ModelError without one, ConfigError where the budget cannot be met."""
    family_of(model)
    old = int(check_fields(model)["intermediate_size"])
    return old, resolve_budget(config.prune, model)


def estimate(root: Path, config: RunConfig, model: dict[str, Any], stages: list[str], measure: bool = True) -> Estimate:
    """What `stages` will take, by earlier runs in this checkout, or by the machine's speed on a matrix product.

    With `measure`, that product is timed where neither is known yet (4 s, kept in .sparsekd/).
    """
    made = compressed(config, model)
    known = _Timings.read(root)
    flops = known.flops or _known_flops(root, config) or (matrix_flops(root, config) if measure else _ASSUMED_FLOPS)
    raw = predicted_seconds(config, model, made, flops)
    seconds = {name: raw.get(_base(name), _START_SECONDS) * known.factors.get(name, 1.0) for name in stages}
    return Estimate(seconds, memory_bytes(config, model, made, stages), disk_bytes(config, model, made, stages))


@dataclass(frozen=True)
class _Timings:
    """How much longer than predicted at `flops` each stage took in earlier runs here."""

    flops: float | None
    factors: dict[str, float]

    @classmethod
    def read(cls, root: Path) -> _Timings:
        values = read_json(root / FOLDER / "timings.json")
        return cls(values["flops"], values["factors"]) if isinstance(values, dict) else cls(None, {})


def predicted_seconds(config: RunConfig, model: dict[str, Any], made: Compressed, flops: float) -> dict[str, float]:
    """Seconds of each stage at `flops` operations a second of a large matrix product."""
    corpora = len(config.texts.sources) + 3  # two more that are only held out, and chat
    held_out = corpora * config.calibrate.held_out_tokens
    tokens = config.calibrate.tokens
    hidden, layers, width = model["hidden_size"], model["num_hidden_layers"], made.old_width
    vocabulary = model["vocab_size"]
    forward = _forward(made.dense, model) / (0.7 * flops)
    student = _forward(made.pruned, model) / (0.7 * flops)
    decode = _weight_bytes(config) * made.dense["total"] / 8e9 + 0.02  # a token at a time reads all weights
    statistics = min(config.prune.statistics_tokens, tokens)
    online = config.teacher.cache == "online"
    sampled = tokens * vocabulary * _SAMPLED_SECONDS if config.teacher.cache == "sampled" else 0
    streams = forward + (student if config.prune.compensation == "sequential" else 0)
    trained = (config.distill.tokens or tokens) * config.distill.epochs
    steps = trained / (config.calibrate.sequence_length * config.distill.batch_size)
    validated = (
        (1 + steps // config.distill.validate_every) * len(config.texts.sources) * config.distill.validation_tokens
    )
    rows = ((config.evaluate.rows or 2000) + config.evaluate.validation_rows) * len(config.evaluate.tasks)
    prompts = len(config.report.prompts) * config.report.prompt_tokens
    types = set(config.export.compare)
    compared = len(types) + len(types | set(gguf_types(config.export.formats))) if types else 0  # dense, distilled
    timed = config.benchmark.prefill_tokens + config.benchmark.decode_tokens * (decode / forward)
    exported = (
        _START_SECONDS
        + 1200 * student
        + (2 * _START_SECONDS + made.pruned_bytes / 5e7) * len(config.export.formats)
        + compared * (_START_SECONDS + made.dense_bytes / 5e7 + corpora * config.export.compare_tokens * forward)
        + compared * config.export.compare_rows * len(config.evaluate.tasks) * _ROW_TOKENS * forward
        + compared * (config.export.compare_rounds + 1) * (TIMED_PREFILL * forward + TIMED_DECODE * decode)
    )
    return {
        "fetch-model": 10 + made.dense_bytes / 1e7,
        "fetch-texts": 5.0,
        "fetch-benchmarks": 10.0,
        "calibrate": _START_SECONDS
        + 5
        + config.calibrate.chat_prompts / 8 * config.calibrate.chat_tokens * decode
        + _sampling_seconds(config, model, forward, decode),
        "teacher": _START_SECONDS + forward * (2 * held_out) + (0 if online else forward * tokens) + sampled,
        "prune": _START_SECONDS
        + statistics * (streams + layers * width * (1.25 * width + 2 * hidden) / (0.4 * flops))
        + layers * 8 * width**3 / (0.1 * flops),
        "distill": _START_SECONDS
        + 25
        + 3.1 * student * trained
        + student * validated
        + (forward * trained if online else 0),
        "evaluate": _START_SECONDS + 8 + forward * (2 * held_out + rows * _ROW_TOKENS) + prompts * decode,
        "benchmark": 6 * _START_SECONDS
        + 3 * (config.benchmark.rounds + 1) * config.benchmark.batch_size * forward * timed,
        "export": exported if config.export.formats else 2.0,
        "report": 10.0,
    }


def _sampling_seconds(config: RunConfig, model: dict[str, Any], forward: float, decode: float) -> float:
    """Of the self-generated sequences: each step of a batch reads all weights, its products, its keys and values."""
    length, token_bytes = config.calibrate.sequence_length, _token_bytes(config, model)
    batches = sampling_batches(config.calibrate.self_generated_sequences, length, token_bytes)
    each = forward + token_bytes * length / 8e9  # half of them on average, read and repeated for every head
    return length * (len(batches) * decode + sum(batches) * each)


def _token_bytes(config: RunConfig, model: dict[str, Any]) -> int:
    """Bytes of one token's keys and values in all layers; more than that where some keep none."""
    return 2 * _weight_bytes(config) * int(model["num_hidden_layers"]) * head_widths(model)[1]


def _weight_bytes(config: RunConfig, dtype: DType = "auto") -> int:
    """Bytes of a weight in the dtype that a setting comes to on this machine (sparsekd.runtime.compute_dtype)."""
    if dtype == "auto":
        on_cpu = config.runtime.device == "cpu" or not machine.cuda_devices()
        return 4 if on_cpu and machine.cores_have_bfloat16() is False else 2
    return 4 if dtype == "float32" else 2


def memory_bytes(config: RunConfig, model: dict[str, Any], made: Compressed, stages: list[str]) -> int:
    """Peak memory of `stages`: the two heaviest may run side by side."""
    known = stage_memory(config, model, made)
    needed = [known.get(_base(name), _LIBRARIES) for name in stages]
    together = sum(sorted(n for n, name in zip(needed, stages, strict=True) if name != "benchmark")[-2:])
    return int(max([together, *needed]))


def stage_memory(config: RunConfig, model: dict[str, Any], made: Compressed) -> dict[str, float]:
    """Peak memory of each stage that loads a model, in bytes: libraries, weights, activations, optimiser, logits."""
    hidden, vocabulary, layers = model["hidden_size"], model["vocab_size"], model["num_hidden_layers"]
    length = config.calibrate.sequence_length
    dense, step = 4 * made.dense["total"], config.distill.batch_size * length
    layer = step * (12 * hidden + 4 * made.new_width) * 4
    activations = step * layers * hidden * 4 + layer if config.distill.activation_checkpointing else layers * layer
    shared = config.distill.distributed  # with ddp each process has its own weights, with fsdp a share of them
    processes = max(1, shared.processes)
    statistics = min(config.prune.statistics_tokens, config.calibrate.tokens)
    batch = config.evaluate.batch_size * length
    token_bytes = _token_bytes(config, model)
    written = sampling_batches(config.calibrate.self_generated_sequences, length, token_bytes)
    total = made.dense["total"]
    return {
        "calibrate": _LIBRARIES
        + max(
            dense + config.calibrate.chat_prompts * vocabulary * 8,
            _weight_bytes(config) * total + max(written, default=0) * (length * token_bytes + 12 * vocabulary),
        ),
        "teacher": _LIBRARIES
        + dense
        + config.teacher.batch_size * length * (8 * hidden + 4 * made.old_width) * 4
        + 2 * min(SHARD_BYTES, 2 * hidden * config.calibrate.tokens),
        "prune": _LIBRARIES + walk_bytes(statistics, hidden, made.old_width, layers, made.dense),
        # float32 weights, gradient and two moments of what is trained, four blocks of logits
        "distill": processes * (_LIBRARIES + 4 * min(step, 512) * vocabulary * 4)
        + (processes if shared.strategy == "ddp" else 1) * (4 * made.pruned["total"] + 3 * 4 * made.pruned["ffn"])
        + (processes * dense if config.teacher.cache == "online" else 0)
        + activations,
        # weights in the dtype of the evaluation and in float32, logits of a chunk for both models
        "evaluate": _LIBRARIES
        + _weight_bytes(config, config.evaluate.dtype) * total
        + dense
        + batch * (8 * hidden + 4 * made.old_width) * 4
        + 512 * vocabulary * 12,
        "benchmark": 3 * (_LIBRARIES / 2 + 1.3 * _weight_bytes(config, config.benchmark.dtype) * total),
        # float32 weights, then those of llama.cpp, with logits of the passages for both
        **({"export": _LIBRARIES + 4 * made.pruned["total"] + 1000 * vocabulary * 8} if config.export.formats else {}),
    }


def disk_bytes(config: RunConfig, model: dict[str, Any], made: Compressed, stages: list[str]) -> int:
    """Bytes that the outputs of `stages` add: in data/, and once more in DVC's cache where files are copied."""
    held_out = 2 * (len(config.texts.sources) + 3) * config.calibrate.held_out_tokens
    tokens = config.calibrate.tokens + held_out
    outputs = {
        "fetch-model": made.dense_bytes,
        "fetch-texts": 10e6,
        "fetch-benchmarks": 20e6,
        "calibrate": 8 * tokens,
        "teacher": cache_bytes(
            config.teacher, model["hidden_size"], model["vocab_size"], config.calibrate.tokens, held_out
        ),
        "prune": made.pruned_bytes,
        "distill": made.pruned_bytes,
        "evaluate": 5e6,
        "benchmark": 1e5,
        "export": made.pruned_bytes * len(config.export.formats),
        "report": 5e6,
    }
    streams = 8 * config.prune.statistics_tokens * model["hidden_size"]
    beside = {
        "prune": made.pruned_bytes + 2 * streams,  # layers that are done, and two positions for a moment
        "distill": made.pruned_bytes + 12 * made.pruned["ffn"],  # the registry's copy and the resumable checkpoint
    }
    most = max((size for name, size in beside.items() if name in stages), default=0)
    return int(2 * sum(outputs.get(_base(name), 0) for name in stages) + most)


def matrix_flops(root: Path, config: RunConfig) -> float:
    """Operations a second of a large matrix product, measured in a process of its own; kept in .sparsekd/."""
    program = _PROBE.format(threads=thread_count(config.runtime), cuda=config.runtime.device != "cpu")
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=root)
        flops = float(json.loads(done.stdout)["flops"])
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        return _ASSUMED_FLOPS
    write_json(root / FOLDER / "machine.json", {"machine": _machine(config), "flops": flops})
    return flops


def remember_timings(root: Path, config: RunConfig, model: dict[str, Any], stages: list[str]) -> None:
    """After a run: keep how much longer or shorter than predicted each computed stage took."""
    known = _Timings.read(root)
    flops = known.flops or _known_flops(root, config) or _ASSUMED_FLOPS
    raw = predicted_seconds(config, model, compressed(config, model), flops)
    factors = dict(known.factors)
    states = {name: state for name in stages if (state := read_state(root, name)) is not None}
    spans = {n: (s.started, s.ended) for n, s in states.items() if s.state == "done" and s.started and s.ended}
    for name, seconds in _own_seconds(spans).items():
        if raw.get(_base(name)):
            factors[name] = round(seconds / raw[_base(name)], 4)
    write_json(root / FOLDER / "timings.json", {"flops": flops, "factors": factors})


def _own_seconds(spans: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Each stage's share of the wall time: of the time in which n stages worked side by side, each has the nth part."""
    times = sorted({time for span in spans.values() for time in span})
    own = dict.fromkeys(spans, 0.0)
    for start, end in itertools.pairwise(times):
        working = [name for name, span in spans.items() if span[0] <= start and end <= span[1]]
        for name in working:
            own[name] += (end - start) / len(working)
    return own


def _known_flops(root: Path, config: RunConfig) -> float | None:
    values = read_json(root / FOLDER / "machine.json")
    if isinstance(values, dict) and values.get("machine") == _machine(config):
        return float(values["flops"])
    return None


def _machine(config: RunConfig) -> list[Any]:
    return [os.uname().nodename, thread_count(config.runtime), config.runtime.device]


def _forward(counts: Counts, model: dict[str, Any]) -> float:
    """Operations of one token through the model, the LM head included."""
    return float(2 * (counts["non_embedding"] + model["vocab_size"] * model["hidden_size"]))


def _element_bytes(model: dict[str, Any]) -> int:
    return 4 if str(model.get("dtype") or model.get("torch_dtype") or "float32") == "float32" else 2


def _base(stage: str) -> str:
    return stage.partition("@")[0]
