"""The process and the device that numbers are computed in: allocator, OpenMP, threads, dtype.

`prepare_process` must run before torch is imported, so this module imports torch only inside functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sparsekd.config import Runtime
from sparsekd.errors import ResourceError

if TYPE_CHECKING:
    import torch

# mallopt parameters of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


def prepare_process(runtime: Runtime) -> None:
    """Set OpenMP's wait policy and keep freed memory in the process. Call before torch is imported.

    glibc returns large blocks to the kernel and faults them in again at each step; keeping them is worth 1.3 × or more
    in distillation (docs/experiments.md). A no-op for the allocator where the C library has no mallopt.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(thread_count(runtime)))
    os.environ["OMP_WAIT_POLICY"] = runtime.openmp_wait.upper()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _mallopt((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 * 2**20))


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """No search for cycles of garbage while torch and what needs it are imported in this block: a fifth of the time.

    What they leave is never searched.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def release_memory() -> None:
    """Give freed memory back to the kernel, now, and from now on blocks of 32 MB and more as soon as they are free.

    Takes back what `prepare_process` says, for work whose blocks are few, large and of many sizes: what is free between
    them adds up, to gigabytes after some layers of a large model. A no-op where the C library has no such functions.
    """
    _mallopt((_M_MMAP_MAX, 65_536), (_M_MMAP_THRESHOLD, 32 * 2**20))
    trim = _of_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _mallopt(*settings: tuple[int, int]) -> None:
    function = _of_c_library("mallopt")
    if function is not None:
        for parameter, value in settings:
            function(parameter, value)


def _of_c_library(name: str) -> Callable[..., int] | None:
    """glibc's function of that name; None where there is none."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def thread_count(runtime: Runtime) -> int:
    """CPU threads to use: the setting, or every core this process may run on."""
    return runtime.threads or len(os.sched_getaffinity(0))


def resolve_device(runtime: Runtime) -> torch.device:
    """The device to compute on. Raises ResourceError where cuda is asked for and there is none."""
    import torch

    available = torch.cuda.is_available()
    if runtime.device == "cuda" and not available:
        raise ResourceError(
            "runtime.device is cuda; no CUDA device was found. Set runtime.device to cpu or auto, "
            "or install a CUDA build (`rm -rf .venv && make setup TORCH_INDEX=URL`)."
        )
    return torch.device("cuda" if available and runtime.device != "cpu" else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for matrix products in bfloat16, and torch kernels that use them.

    Without them such products take seven times as long as in float32 on a CPU with AVX2 (docs/experiments.md).
    """
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN alone takes any AVX-512, but where that has no instructions for bfloat16 it works in float32, with casts
    units = torch.cpu.get_capabilities()
    found = any(units.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last one is ARM's
    return found and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compute_dtype(device: torch.device, chosen: str = "auto") -> torch.dtype:
    """The dtype of matrix products: `chosen`, or for auto bfloat16 where the device has units for it, else float32."""
    import torch

    if chosen == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    names = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp32": torch.float32, "float32": torch.float32}
    return names[chosen]


def mixed_precision(device: torch.device, chosen: str = "auto") -> torch.autocast:
    """Matrix products of float32 weights in `compute_dtype`: autocast to bfloat16, or nothing."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=compute_dtype(device, chosen) is torch.bfloat16)


def conditions(device: torch.device) -> dict[str, Any]:
    """What of this process and its machine the bits of a result depend on."""
    import torch

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "compute_dtype": str(compute_dtype(device)).removeprefix("torch."),
    }


def use_threads(runtime: Runtime) -> None:
    """Make torch use the configured number of threads."""
    import torch

    torch.set_num_threads(thread_count(runtime))
