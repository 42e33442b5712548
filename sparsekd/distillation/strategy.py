"""How a process takes part in a distillation: alone, with a copy of the model (DDP), or with a share of it (FSDP2).

The trainer's loop is the same for all; these are the places where processes must act together. The loss is the sum
over all scored tokens of a step over their number, so that processes with unequal numbers of tokens add up to what one
process would compute, but for the order of the sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from sparsekd.distillation.processes import Processes
from sparsekd.feed_forward import feed_forwards
from sparsekd.models import final_hidden

_KEPT_STEPS = 8  # steps of checkpoints that processes tell each other of; there are two at most


class Alone:
    """The only process."""

    rank = 0
    processes = 1
    leads = True
    """Whether this is the first process of its machine: it alone makes and removes directories there."""
    writes = True
    """Whether this process writes a file of its own into a checkpoint."""
    shard = ""
    """What is in the names of those files and in no other process's."""

    def conditions(self) -> dict[str, Any]:
        """What the bits depend on beside the configuration."""
        return {}

    def loads_on(self, device: torch.device) -> torch.device:
        """Where the model is when it is wrapped."""
        return device

    def wrap(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        """Prepare the model; returns the parameters that the optimiser sees, under the same names."""
        return parameters

    def own(self, rows: Sequence[int]) -> Sequence[int]:
        """The part of `rows` that is this process's; none where there are fewer rows than processes."""
        return rows

    def hidden(self, model: PreTrainedModel, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length hidden"]:
        """Final normed hidden states; every process must call it as often as the others."""
        return final_hidden(model, ids)

    def share(self, kl: float, ce: float, tokens: int) -> tuple[float, float, float]:
        """Means over the tokens of all processes, and the factor for this one's gradient of its own mean."""
        return kl, ce, 1.0

    def totals(self, *values: float) -> tuple[float, ...]:
        """The sum of each value over all processes, the same bits in each."""
        return values

    def clip(self, parameters: Mapping[str, nn.Parameter], limit: float) -> float:
        """The norm of the whole gradient, which is then scaled down to `limit`."""
        norm = nn.utils.clip_grad_norm_(parameters.values(), limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def wait(self) -> None:
        """Wait until all processes are here."""

    def newest(self, steps: Sequence[int]) -> int | None:
        """The highest of `steps` that all processes have."""
        return max(steps, default=None)


class _Together(Alone):
    """One process of several in torch's default process group, whose backend for CPU tensors is gloo."""

    def __init__(self, processes: Processes, rank: int, device: torch.device) -> None:
        self.rank, self.processes, self.device = rank, processes.total, device
        self.leads = rank == processes.first
        self._machines = processes.machines

    def conditions(self) -> dict[str, Any]:
        return {"strategy": type(self).__name__, "processes": self.processes}

    def own(self, rows: Sequence[int]) -> Sequence[int]:
        each = -(-len(rows) // self.processes)
        return rows[self.rank * each : (self.rank + 1) * each]

    def share(self, kl: float, ce: float, tokens: int) -> tuple[float, float, float]:
        kl, ce, count = self.totals(kl * tokens, ce * tokens, tokens)
        # torch takes the mean of the processes' gradients, we want their sum
        return kl / count, ce / count, self.processes * tokens / count

    def totals(self, *values: float) -> tuple[float, ...]:
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def wait(self) -> None:
        self.totals(0.0)

    def newest(self, steps: Sequence[int]) -> int | None:
        mine = torch.full((_KEPT_STEPS,), -1)
        kept = torch.tensor(sorted(steps)[-_KEPT_STEPS:], dtype=mine.dtype)
        mine[: len(kept)] = kept
        all_of_them = [torch.empty_like(mine) for _ in range(self.processes)]
        dist.all_gather(all_of_them, mine)
        common = set.intersection(*(set(theirs.tolist()) for theirs in all_of_them)) - {-1}
        return max(common, default=None)


class DDP(_Together):
    """Each process holds the whole model; gradients are summed while the backward pass goes on."""

    def __init__(self, processes: Processes, rank: int, device: torch.device) -> None:
        super().__init__(processes, rank, device)
        self.writes = self.leads
        self.shard = f"-machine-{self._machines.index}" if self._machines.count > 1 else ""

    def wrap(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        # Every process has read the same file: nothing needs to be sent
        self._replica = DistributedDataParallel(
            model.base_model, init_sync=False, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
        return parameters

    def hidden(self, model: PreTrainedModel, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length hidden"]:
        return cast(Tensor, self._replica(input_ids=ids, use_cache=False).last_hidden_state)


class FSDP(_Together):
    """Each process holds a share of every parameter, gradient and moment; layers are gathered in turn."""

    def __init__(self, processes: Processes, rank: int, device: torch.device) -> None:
        super().__init__(processes, rank, device)
        self.shard = f"-{rank}-of-{processes.total}"

    def loads_on(self, device: torch.device) -> torch.device:
        return torch.device("cpu")  # no device need hold the whole model; the shares are moved

    def wrap(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Parameter]:
        mesh = init_device_mesh(self.device.type, (self.processes,))
        for block in feed_forwards(model):
            fully_shard(block.layer, mesh=mesh)
        fully_shard(model.base_model, mesh=mesh)  # what final_hidden calls: the LM head is computed from a copy
        sharded = dict(model.named_parameters())
        return {name: sharded[name] for name in parameters}


STRATEGIES = {"ddp": DDP, "fsdp": FSDP}


def local(tensor: Tensor) -> Tensor:
    """This process's share of a parameter or moment; the tensor itself where it is not shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a parameter; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, share: Tensor) -> Tensor:
    """A moment of `parameter` from this process's share of it."""
    if not isinstance(parameter, DTensor):
        return share
    return DTensor.from_local(
        share,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
