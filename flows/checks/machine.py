"""What this machine has, found out without torch: cores and their units, memory, disk, compiler, CUDA, browser."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from importlib import metadata
from pathlib import Path

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox")
_CGROUP = Path("/sys/fs/cgroup")
_CPU = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of x86, and a feature of ARM


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def cores_have_bfloat16() -> bool | None:
    """Whether the cores multiply matrices in bfloat16 (sparsekd.runtime.has_bfloat16); None where nothing says so."""
    if not _CPU.is_file():
        return None
    with _CPU.open() as lines:  # as far as the first core: all have the same
        found = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    return None if found is None else not _BFLOAT16.isdisjoint(found.split())


def free_memory() -> int:
    """Bytes that a new process may take, by the machine and by the control group that this one runs in."""
    import psutil

    free: int = psutil.virtual_memory().available
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def free_disk(directory: Path) -> int:
    """Bytes free on the disk that holds `directory`, which need not be there yet."""
    existing = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def compiler() -> str | None:
    """The C++ compiler that torch.compile would find."""
    return next(
        (path for name in (os.environ.get("CXX"), "g++", "clang++") if name and (path := shutil.which(name))), None
    )


def browser() -> str | None:
    """A browser for the pages of `sparsekd serve` and for the tests that need one."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def cuda_fault() -> str | None:
    """Why runtime.device = cuda cannot work here, or None: torch's build and the driver's count of devices."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        if metadata.version("torch").endswith("+cpu"):
            return f"torch {metadata.version('torch')} is built without CUDA"
    devices = _devices_of_the_driver()
    if devices is None:
        return "no NVIDIA driver was found"
    return None if devices else "the NVIDIA driver shows no device"


def cuda_devices() -> int:
    """How many CUDA devices torch will find here."""
    return 0 if cuda_fault() else _devices_of_the_driver() or 0


def _devices_of_the_driver() -> int | None:
    """As many as CUDA_VISIBLE_DEVICES leaves; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    failed = driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0
    return 0 if failed else count.value


def git_root(directory: Path) -> Path | None:
    """The git working tree that `directory` lies in."""
    here = directory.absolute()
    return next((d for d in (here, *here.parents) if (d / ".git").exists()), None)


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None
