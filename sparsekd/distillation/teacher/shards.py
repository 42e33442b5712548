"""Tensors of many sequences in files of bounded size: written one by one, checked by sha256, read through mmap."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsekd.artifacts import hash_file
from sparsekd.distillation.cache_size import SHARD_BYTES
from sparsekd.errors import ArtifactError


class Stored(BaseModel):
    """Type and shape of one tensor of a shard; its first dimension is the sequence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[int, ...]


class Shard(BaseModel):
    """One file: the sequences from `first` on, with all their tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    first: int
    sequences: int
    sha256: str
    tensors: dict[str, Stored]


class ShardWriter:
    """Writes one part of a cache as sequences come; holds no more than one shard.

    A shard holds as many whole sequences as fit `limit` bytes (one at least), however they come in batches.
    """

    def __init__(self, directory: Path, part: str, limit: int = SHARD_BYTES) -> None:
        self._directory, self._part, self._limit = directory, part, limit
        self._pending: list[dict[str, Tensor]] = []
        self._held = 0
        self._shards: list[Shard] = []

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """The next sequences: tensors of equal first dimension, on any device."""
        batch = {name: tensor.to("cpu") for name, tensor in tensors.items()}
        count = len(next(iter(batch.values())))
        room = max(1, self._limit // (sum(tensor.nbytes for tensor in batch.values()) // count))
        start = 0
        while start < count:
            rows = slice(start, min(count, start + room - self._held))
            self._pending.append({name: tensor[rows] for name, tensor in batch.items()})
            self._held += rows.stop - start
            start = rows.stop
            if self._held == room:
                self._write()

    def close(self) -> tuple[Shard, ...]:
        """Write what is left and return every shard of the part."""
        if self._pending:
            self._write()
        return tuple(self._shards)

    def _write(self) -> None:
        tensors = {name: torch.cat([batch[name] for batch in self._pending]) for name in self._pending[0]}
        file = f"{self._part}-{len(self._shards):05d}.safetensors"
        partial = self._directory / f"{file}.partial"
        save_file(tensors, partial)
        stored = {
            n: Stored(dtype=str(t.dtype).removeprefix("torch."), shape=tuple(t.shape)) for n, t in tensors.items()
        }
        first = self._shards[-1].first + self._shards[-1].sequences if self._shards else 0
        shard = Shard(file=file, first=first, sequences=self._held, sha256=hash_file(partial), tensors=stored)
        os.replace(partial, self._directory / file)
        self._shards.append(shard)
        self._pending, self._held = [], 0


class Part:
    """One part of a cache on disk: only the rows that are asked for are read."""

    def __init__(self, directory: Path, name: str, shards: Sequence[Shard]) -> None:
        """Hash every shard once and map it. Raises ArtifactError that names a shard which is not what was written."""
        self._first = [shard.first for shard in shards]
        self._tensors = [_map(directory, name, shard) for shard in shards]
        self.sequences = sum(shard.sequences for shard in shards)
        self.names = set(shards[0].tensors)

    def rows(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of these sequences, copied out in the order asked for."""
        found = []
        for row in rows:
            shard = bisect_right(self._first, row) - 1
            found.append({name: tensor[row - self._first[shard]] for name, tensor in self._tensors[shard].items()})
        return {name: torch.stack([tensors[name] for tensors in found]) for name in found[0]}


def _map(directory: Path, part: str, shard: Shard) -> dict[str, Tensor]:
    file = directory / shard.file
    again = f"Delete {directory} and run stage teacher again: `sparsekd compress`."
    if not file.is_file():
        raise ArtifactError(f"{file}, a shard of the teacher cache's part {part}, is not there. {again}")
    if (found := hash_file(file)) != shard.sha256:
        raise ArtifactError(
            f"{file}, a shard of the teacher cache's part {part}, has sha256 {found[:12]}…; its index says "
            f"{shard.sha256[:12]}…. {again}"
        )
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in shard.tensors}
