"""The pieces of work that the roofline times, each for a process of its own; and what each is held against."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.ceiling import ceiling, products
from benchmarks.kept import task_names
from sparsekd.calibration.packing import CalibrationSet, Packed
from sparsekd.config import Distill, Evaluate, Prune, Teacher
from sparsekd.distillation import run, student, targets
from sparsekd.distillation.head import HeadLoss
from sparsekd.distillation.teacher import TeacherCache, write_teacher_cache
from sparsekd.distillation.trainer import Lesson
from sparsekd.evaluation import lm_eval_adapter, shared_context
from sparsekd.models import final_hidden, lm_head, load_model, load_tokenizer
from sparsekd.pruning import walk
from sparsekd.pruning.budget import resolve_budget
from sparsekd.pruning.checkpoint import prune_checkpoint
from sparsekd.runtime import compute_dtype, mixed_precision

Figures = dict[str, Any]
_CPU = torch.device("cpu")
_BATCH = 4  # sequences of a bare forward pass, as in stages teacher and prune


class Clock:
    """Wall and CPU seconds of what runs inside it, added up."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Clock:
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._started[0]
        self.cpu += time.process_time() - self._started[1]

    def figures(self, tokens: int) -> Figures:
        return {
            "tokens": tokens,
            "seconds": self.wall,
            "cpu_seconds": self.cpu,
            "tokens_per_second": tokens / self.wall,
        }


@torch.inference_mode()
def _forward(model: PreTrainedModel, input_ids: torch.Tensor, batch: int, autocast: bool = True) -> None:
    """A bare forward pass, final hidden states thrown away."""
    with mixed_precision(_CPU) if autocast else nullcontext():
        for ids in torch.split(input_ids, batch):
            final_hidden(model, ids)


def teacher(data: Path, tokens: int, rounds: int) -> Figures:
    """The teacher stage's pass with its cache written to disk, against a bare forward pass over the same tokens."""
    model = load_model(data / "raw/model")
    part = CalibrationSet.load(data / "calibration").calibration.head(tokens)
    alone = CalibrationSet(part, {}, {})
    ours, bare = Clock(), Clock()
    _forward(model, part.input_ids[:_BATCH], _BATCH)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, ours:
            write_teacher_cache(model, alone, Path(folder), Teacher(batch_size=_BATCH), say=lambda _: None)
        with bare:
            _forward(model, part.input_ids, _BATCH)
    count = part.tokens * rounds
    model.set_attn_implementation("eager")
    found = products(lambda: _forward(model, part.input_ids[:_BATCH], _BATCH))
    return _against(ours.figures(count), bare.figures(count), found, part.input_ids[:_BATCH].numel())


def prune(data: Path, tokens: int) -> Figures:
    """Stage prune, disk to disk, against a bare forward pass over its tokens; what factorisation and solves take."""
    dense = load_model(data / "raw/model")
    part = CalibrationSet.load(data / "calibration").calibration.head(tokens)
    solves = Clock()
    plain = walk.prune_layer

    def timed(*arguments: Any) -> Any:
        with solves:
            return plain(*arguments)

    with Clock() as bare:
        _forward(dense, part.input_ids, Prune().batch_size)
    config = Prune(width=0.75, statistics_tokens=tokens)
    walk.prune_layer = timed
    try:
        with tempfile.TemporaryDirectory() as folder, Clock() as ours:
            out = Path(folder) / "out"
            out.mkdir()
            prune_checkpoint(data / "raw/model", out, part, config, _CPU, Path(folder) / "layers")
    finally:
        walk.prune_layer = plain
    dense.set_attn_implementation("eager")
    one = part.input_ids[: config.batch_size]
    width = resolve_budget(config, dense.config.to_dict())
    found = products(lambda: walk.prune_model(dense, one, width, config))
    figures = _against(ours.figures(part.tokens), bare.figures(part.tokens), found, one.numel())
    return figures | {"solves_seconds": solves.wall, "times_bare_forward": ours.wall / bare.wall}


def step(data: Path, variant: str, steps: int, warmup: int, batch: int = 1) -> Figures:
    """Training steps: `ours`, or a plain Transformers cross-entropy step (`plain`), same student and parameters.

    Ours is compiled where stage distill would do so; that is over before the clock starts.
    """
    model = load_model(data / "pruned")
    parameters = student.freeze_all_but_ffn_and_norms(model)
    packed = CalibrationSet.load(data / "calibration").calibration
    ours = variant == "ours"
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-6, fused=ours)
    backward = _ours(model, packed, data / "teacher") if ours else _plain(model, packed)
    compiled = ours and student.should_compile(Distill(), model.device)[0]

    def one(number: int) -> None:
        first = number * batch % (len(packed.input_ids) - batch)
        backward(list(range(first, first + batch)))
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    found = products(lambda: one(0))
    model.set_attn_implementation(attention)
    if compiled:
        backward = _ours(model, packed, data / "teacher", compiled)
    for number in range(warmup):
        one(number)
    with Clock() as clock:
        for number in range(warmup, warmup + steps):
            one(number)
    length = packed.input_ids.shape[1]
    figures = clock.figures(steps * batch * length)
    return figures | _share(figures, found, batch * length) | {"compiled": compiled}


def _plain(model: PreTrainedModel, packed: Packed) -> Callable[[list[int]], None]:
    def backward(rows: list[int]) -> None:
        ids = packed.input_ids[rows]
        with mixed_precision(_CPU):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    return backward


def _ours(model: PreTrainedModel, packed: Packed, cache: Path, compiled: bool = False) -> Callable[[list[int]], None]:
    opened = TeacherCache.open(cache)
    dtype = compute_dtype(_CPU)
    head = lm_head(model).to(_CPU, dtype)
    student.prepare(model, Distill(), compiled, _CPU)
    loss = HeadLoss(head, opened.head.to(_CPU, dtype), 0.5, 1.0, *run.head_terms(compiled))
    lesson = Lesson(packed, targets.cached(opened, "calibration"))

    def backward(rows: list[int]) -> None:
        ids, scored, labels, dense = lesson.batch(rows, model.device)
        with mixed_precision(_CPU):
            hidden = final_hidden(model, ids)
        hidden = hidden[:, :-1][scored]
        with torch.no_grad():
            _, _, gradient = loss(hidden, dense, labels)
        hidden.backward(gradient.to(hidden.dtype))  # type: ignore[no-untyped-call]

    return backward


def evaluate(data: Path, rows: int) -> Figures:
    """lm-eval rows of the run's tasks against a bare forward pass over as many tokens in full sequences.

    Only tokens that must be computed count as ours: each context once, no padding.
    """
    model = load_model(data / "raw/model", compute_dtype(_CPU))
    tokenizer = load_tokenizer(data / "raw/model")
    packed = CalibrationSet.load(data / "calibration").calibration
    benchmarks = data / "raw/benchmarks"
    config = Evaluate(rows=rows, tasks=task_names(data))
    ours, needed = Clock(), 0
    plain = shared_context.SharedContextLM._loglikelihood_tokens

    def timed(self: Any, requests: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal needed
        groups, _ = self._groups(requests)
        needed += sum(group.length for group in groups)
        with ours:
            return plain(self, requests, *arguments, **named)

    shared_context.SharedContextLM._loglikelihood_tokens = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, Clock() as whole:
            lm_eval_adapter.run_tasks(model, tokenizer, config, Path(folder) / "out", benchmarks)
    finally:
        shared_context.SharedContextLM._loglikelihood_tokens = plain  # type: ignore[method-assign]
    sequences = packed.input_ids[: max(config.batch_size, needed // packed.input_ids.shape[1])]
    _forward(model, sequences[: config.batch_size], config.batch_size, autocast=False)
    with Clock() as bare:
        _forward(model, sequences, config.batch_size, autocast=False)
    model.set_attn_implementation("eager")
    batch = sequences[: config.batch_size]
    found = products(lambda: _forward(model, batch, config.batch_size, autocast=False))
    figures = _against(ours.figures(needed), bare.figures(sequences.numel()), found, batch.numel())
    return figures | {"rows": rows * len(config.tasks), "with_loading_seconds": whole.wall}


def _against(ours: Figures, bare: Figures, found: Any, tokens: int) -> Figures:
    """Ours with the bare forward pass beside it; `found` are the products of a piece of `tokens` tokens."""
    ratio = ours["tokens_per_second"] / bare["tokens_per_second"]
    return ours | _share(ours, found, tokens) | {"bare": bare, "share_of_bare_forward": ratio}


def _share(figures: Figures, found: Any, tokens: int) -> Figures:
    """FLOP/s of the matrix products, and the share of what the same products reach alone."""
    seconds, flop = ceiling(found)
    speed = figures["tokens_per_second"]
    return {
        "flop_per_token": flop / tokens,
        "flop_per_second": flop / tokens * speed,
        "gemm_flop_per_second": flop / seconds,
        "share_of_gemm": speed * seconds / tokens,
    }


def growth(tokens: int, layers: int, width: int, sequence: int) -> Figures:
    """How the cost of pruning and of a training step's passes grows with one dimension at a time.

    On a random model with SmolLM2-135M's shapes but `layers` layers and `width` neurons, around those three values.
    """
    points = [(tokens * k, layers, width) for k in (1, 2, 4)]
    points += [(tokens, layers * k, width) for k in (2, 4)] + [(tokens, layers, width * k) for k in (2, 4)]
    rows = []
    for count, depth, neurons in points:
        model = _random_llama(depth, neurons)
        ids = torch.randint(0, model.config.vocab_size, (count // sequence, sequence))
        _forward(model, ids[:1], _BATCH)  # warm
        with Clock() as forward:
            _forward(model, ids, _BATCH)
        with Clock() as training:
            _train(model, ids)
        with Clock() as pruning:
            walk.prune_model(model, ids, neurons * 3 // 4, Prune())
        seconds = {"forward": forward.wall, "training": training.wall, "prune": pruning.wall}
        rows.append({"tokens": count, "layers": depth, "width": neurons} | seconds)
    return {"rows": rows}


def _train(model: PreTrainedModel, input_ids: torch.Tensor) -> None:
    """Forward and backward passes of the decoder, feed-forward blocks and norms trained, without the LM head."""
    student.freeze_all_but_ffn_and_norms(model)
    for ids in torch.split(input_ids, 1):
        with mixed_precision(_CPU):
            hidden = final_hidden(model, ids)
        hidden.backward(torch.ones_like(hidden))  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)


def _random_llama(layers: int, width: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=2048, hidden_size=576, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()
