"""One model in a process of its own, which times it on request. Started by sparsekd.evaluation.speed.

One JSON object a line: first the settings come in and what the model costs goes out; then each command ("time",
"profile") is answered. It ends at the end of its input, and is killed with the process that started it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekd.config import Benchmark, Runtime
from sparsekd.errors import SparseKDError
from sparsekd.runtime import compute_dtype, importing, prepare_process, resolve_device, thread_count, use_threads

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PR_SET_PDEATHSIG = 1
_WARM_UP_STEPS = 3
_PROFILED_STEPS = 8


class Timed:
    """A loaded and warmed-up model, and the request that is timed: a prompt of random tokens, then greedy decoding."""

    def __init__(self, path: Path, settings: Benchmark, runtime: Runtime) -> None:
        with importing():
            import torch

            from sparsekd.models import load_model

        use_threads(runtime)
        self.settings, device = settings, resolve_device(runtime)
        self.model: PreTrainedModel = load_model(path, compute_dtype(device, settings.dtype), device)
        generator = torch.Generator().manual_seed(0)
        shape = (settings.batch_size, settings.prefill_tokens)
        vocabulary = self.model.config.get_text_config().vocab_size
        self.ids = torch.randint(vocabulary, shape, generator=generator).to(self.model.device)
        self._run(_WARM_UP_STEPS)
        _reset_peak(self.model)

    def describe(self, runtime: Runtime) -> dict[str, Any]:
        """What a request costs, and where it runs."""
        return {
            "cost": request_cost(self.model, self.settings),
            "device": self._device(),
            "threads": thread_count(runtime),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def time(self) -> dict[str, float]:
        """Tokens a second of one request's prefill and decoding, and the peak memory in bytes so far."""
        prefill, decode = self._run(self.settings.decode_tokens)
        batch = self.settings.batch_size
        return {
            "prefill_tokens_per_second": batch * self.settings.prefill_tokens / prefill,
            "decode_tokens_per_second": batch * self.settings.decode_tokens / decode,
            "peak_memory_bytes": _peak_memory(self.model),
        }

    def profile(self) -> dict[str, dict[str, float]]:
        """Milliseconds by operator class of one request's prefill and of its decoding.

        Only the first steps of decoding are profiled (each makes thousands of events), and scaled to all of them.
        """
        import torch

        from sparsekd.evaluation.profile import operator_milliseconds

        with torch.inference_mode():
            wanted = self.settings.decode_tokens
            count = min(wanted, _PROFILED_STEPS)
            steps = self._steps(count)
            prefill = operator_milliseconds(self.model, lambda: next(steps))
            decode = operator_milliseconds(self.model, lambda: list(steps))
            return {"prefill": prefill, "decode": {name: value * wanted / count for name, value in decode.items()}}

    def _steps(self, decode_tokens: int) -> Iterator[torch.Tensor]:
        from sparsekd.decoding import decode

        return decode(self.model, self.ids, None, 1 + decode_tokens)

    def _run(self, decode_tokens: int) -> tuple[float, float]:
        """Seconds of prefill (up to the first new token) and of the decoding after it."""
        import torch

        with torch.inference_mode():
            steps = self._steps(decode_tokens)
            start = self._clock()
            next(steps)
            middle = self._clock()
            for _ in steps:
                pass
            return middle - start, self._clock() - middle

    def _clock(self) -> float:
        import torch

        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _device(self) -> str:
        import torch

        return torch.cuda.get_device_name() if self.model.device.type == "cuda" else "cpu"


def request_cost(model: PreTrainedModel, settings: Benchmark) -> dict[str, float]:
    """What bounds a request: FLOPs of its prefill (compute), bytes read by a step of its decoding (memory).

    FLOPs: 2 a body parameter and token, causal attention, and the LM head at the last position. Bytes: the body and
    the LM head once, and the key-value cache at half of its growth.
    """
    from sparsekd.models import attention_widths, count_parameters, lm_head

    body, head = count_parameters(model)["non_embedding"], lm_head(model).weight.numel()
    batch, tokens = settings.batch_size, settings.prefill_tokens
    queries, keys = attention_widths(model.config.get_text_config())
    attention = 2 * tokens**2 * queries
    cached = 2 * keys * (tokens + settings.decode_tokens / 2)
    size = model.dtype.itemsize
    return {
        "prefill_flops": batch * (2 * body * tokens + attention + 2 * head),
        "decode_bytes": size * (body + head + batch * cached),
    }


def _reset_peak(model: PreTrainedModel) -> None:
    """From here on the peak is that of inference, not of loading: what loading freed goes back to the system first."""
    import torch

    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with contextlib.suppress(OSError):  # not every container allows it; the peak then includes loading
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(model: PreTrainedModel) -> int:
    import torch

    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Answer on the original stdout; what libraries print there goes to stderr."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # even while it is stopped
    atexit.register(gc.freeze)  # a model and its libraries are not taken apart piece by piece at the end
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    runtime, settings = Runtime(**order["runtime"]), Benchmark(**order["settings"])
    prepare_process(runtime)
    try:
        timed = Timed(Path(order["path"]), settings, runtime)
        answers.write(json.dumps(timed.describe(runtime)) + "\n")
        for line in sys.stdin:
            answers.write(json.dumps(getattr(timed, {"time": "time", "profile": "profile"}[line.strip()])()) + "\n")
    except SparseKDError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")


if __name__ == "__main__":
    main()
