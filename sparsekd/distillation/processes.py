"""How many processes distil together, on which machines, and how they talk: decided before anything heavy loads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sparsekd.config import Distill
from sparsekd.errors import ConfigError, ResourceError

_COUNT, _INDEX, _ADDRESS, _PORT = "SPARSEKD_NODES", "SPARSEKD_NODE_RANK", "MASTER_ADDR", "MASTER_PORT"


@dataclass(frozen=True)
class Machines:
    """The machines that distil together, and which of them this one is. No setting: no bit depends on where they are.

    `address` and `port` are where the first of them answers; nobody asks when there is one machine.
    """

    count: int = 1
    index: int = 0
    address: str = ""
    port: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Machines:
        """As SPARSEKD_NODES, SPARSEKD_NODE_RANK and torch's own MASTER_ADDR and MASTER_PORT say. Raises ConfigError."""
        count = _number(environment, _COUNT, 1)
        if count <= 1:
            return cls()
        machines = cls(
            count,
            _number(environment, _INDEX, -1),
            environment.get(_ADDRESS, ""),
            _number(environment, _PORT, 0),
        )
        if not 0 <= machines.index < count:
            raise ConfigError(
                f"{_COUNT} is {count} and {_INDEX} is {environment.get(_INDEX, 'not set')}; number the machines from 0 "
                f"to {count - 1}."
            )
        if not machines.address or not machines.port:
            raise ConfigError(
                f"{_COUNT} is {count}, but {_ADDRESS} or {_PORT} is not set; give every machine the address and a free "
                "port of the first one."
            )
        return machines


@dataclass(frozen=True)
class Processes:
    """The processes of one distillation: `total` over all machines, `here` on this one, from number `first` on."""

    total: int = 1
    here: int = 1
    first: int = 0
    backend: str = "gloo"
    machines: Machines = Machines()


def plan_processes(config: Distill, devices: int, machines: Machines) -> Processes:
    """What `config` asks for on machines with so many CUDA `devices` each, 0 for the CPU.

    Raises ConfigError or ResourceError, with the setting to change, for what cannot be.
    """
    asked = config.distributed
    if asked.strategy == "none":
        if machines.count > 1:
            raise ConfigError(
                f"{_COUNT} is {machines.count}, but distill.distributed.strategy is none; set it to ddp or fsdp, or "
                f"unset {_COUNT}."
            )
        return Processes()
    total = asked.processes or max(1, devices) * machines.count
    if total % machines.count:
        raise ConfigError(
            f"distill.distributed.processes is {total}; it is for all machines and must be a multiple of {_COUNT} = "
            f"{machines.count}."
        )
    if config.batch_size % total:
        raise ConfigError(
            f"distill.batch_size is {config.batch_size}; it is for all processes and must be a multiple of their "
            f"number, {total} here. Set distill.batch_size or distill.distributed.processes."
        )
    here = total // machines.count
    backend = asked.backend if asked.backend != "auto" else "nccl" if devices else "gloo"
    if backend == "nccl" and not devices:
        raise ResourceError("distill.distributed.backend is nccl; no CUDA device is used here. Set it to auto or gloo.")
    if backend == "gloo" and devices and asked.strategy == "fsdp":
        raise ConfigError(
            "distill.distributed.backend is gloo, which does not do what fsdp needs on CUDA devices. Set it to auto."
        )
    if devices and here > devices:
        raise ResourceError(
            f"distill.distributed.processes asks for {here} processes on this machine, which has {devices} CUDA "
            "device(s); each needs its own. Set it to 0, one for each device."
        )
    return Processes(total, here, machines.index * here, backend, machines)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r}; it must be a whole number.")
    return int(text)
