"""The layers of a checkpoint on disk, of which one at a time is in memory.

The model has all its modules, but a layer's tensors are empty (on torch's meta device) until it is loaded. A layer that
is done is written to a file of its own and mapped from there: its pages belong to the file, not to the process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from sparsekd.errors import ModelError
from sparsekd.families import family_of
from sparsekd.feed_forward import feed_forwards
from sparsekd.models import check_tensors, declared_dtype, empty_model, read_config, whole_model
from sparsekd.runtime import release_memory

_REST = None
"""The number of what is around the layers: embeddings, final norm, head."""


class StreamedLayers:
    """The decoder layers of the checkpoint at `path` (weights.Layers).

    Weights are float32, on `device`, from `load` to `put_aside`, which writes them to `work` in the dtype that the
    checkpoint declares.
    """

    def __init__(self, path: Path, work: Path, device: torch.device) -> None:
        """Read all but the layers. Raises ModelError as models.load_model does."""
        release_memory()
        values = read_config(path)
        check_tensors(path)
        self._tensors = _by_layer(path, empty_model(values))
        self.model = whole_model(path, lambda: _load_rest(values, self._tensors))
        self.blocks = feed_forwards(self.model)
        self._mapping: Any = get_model_conversion_mapping(self.model)
        self._work, self._device, self._dtype = work, device, declared_dtype(path)
        self._loaded: int | None = None
        with self._without_layers() as rest:
            rest.to(device)

    def load(self, number: int) -> None:
        """Read one layer as the checkpoint has it; the one before it leaves the memory unless it was put aside."""
        if self._loaded == number:
            return
        if self._loaded is not None:
            self.blocks[self._loaded].layer.to("meta")
        used = self.model._weight_conversions
        options = LoadStateDictConfig(dtype=torch.float32, weight_mapping=self._mapping)
        convert_and_load_state_dict_in_model(self.model, self._tensors[number], options)
        self.model._weight_conversions = used  # how all names are turned back when the model is saved
        self.blocks[number].layer.to(self._device)
        self._loaded = number

    def put_aside(self, number: int) -> None:
        """Write the layer to its file and map it from there."""
        layer = self.blocks[number].layer
        _write(layer, self._file(number), self._dtype)
        self._map(layer, number)
        self._loaded = None
        release_memory()

    def put_aside_rest(self) -> None:
        """The same with all but the layers."""
        with self._without_layers() as rest:
            _write(rest, self._file(_REST), self._dtype)
            self._map(rest, _REST)
        self.model.tie_weights()
        release_memory()

    def restore(self, number: int, width: int) -> None:
        """Map a layer that an earlier process has pruned to `width` and put aside."""
        block = self.blocks[number]
        if self._loaded == number:
            block.layer.to("meta")
            self._loaded = None
        block.keep(torch.arange(width))
        try:
            self._map(block.layer, number)
        except (OSError, RuntimeError, SafetensorError):
            raise ModelError(
                f"{self._file(number)}, a layer that is done, cannot be read; delete {self._work} and run again."
            ) from None

    def _map(self, module: nn.Module, number: int | None) -> None:
        module.load_state_dict(load_file(self._file(number)), strict=number is not _REST, assign=True)

    def _file(self, number: int | None) -> Path:
        return self._work / ("rest.safetensors" if number is _REST else f"layer-{number:04d}.safetensors")

    @contextlib.contextmanager
    def _without_layers(self) -> Iterator[nn.Module]:
        """The model while it has no layers."""
        place, _, name = self.blocks[0].family.layers.rpartition(".")
        parent: nn.Module = self.model.get_submodule(place)
        layers = parent.get_submodule(name)
        setattr(parent, name, nn.ModuleList())
        try:
            yield self.model
        finally:
            setattr(parent, name, layers)


class _Unread:
    """Stands for a tensor of the checkpoint while the model is put together: it has a shape, and nothing is read."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape

    def __getitem__(self, _: Any) -> _Unread:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(self.shape, dtype=dtype, device="meta")


def _load_rest(values: dict[str, Any], tensors: dict[int | None, dict[str, Any]]) -> Any:
    """What from_pretrained makes of the checkpoint in float32, and its account of it, with layers on meta."""
    state = {
        name: tensor if number is _REST else _Unread(tensor.get_shape())
        for number, group in tensors.items()
        for name, tensor in group.items()
    }
    empty: Any = empty_model(values)
    options = {"dtype": torch.float32, "output_loading_info": True}
    return type(empty).from_pretrained(None, config=empty.config, state_dict=state, **options)


def _by_layer(path: Path, empty: PreTrainedModel) -> dict[int | None, dict[str, Any]]:
    """The tensors of the checkpoint by layer and by their name in it, unread.

    A checkpoint's names need not be those of the modules, so the model's own rules say which layer one is for.
    """
    layers = family_of(empty.config.to_dict()).layers + "."
    state, rules = empty.state_dict(), get_model_conversion_mapping(empty)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    found: dict[int | None, dict[str, Any]] = defaultdict(dict)
    for file in _weight_files(path):
        tensors: Any = safe_open(file, framework="pt")
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            target, _ = rename_source_key(name, renamings, converters, empty.base_model_prefix, state)
            if target not in state and name in state:
                target = name
            number = target.removeprefix(layers).partition(".")[0] if target.startswith(layers) else ""
            found[int(number) if number.isdecimal() else _REST][name] = tensors.get_slice(name)
    return found


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files that Transformers would load: model.safetensors, or the shards that the index lists."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    try:
        files = [path / Path(name).name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(
            f"{path} has neither model.safetensors nor a readable {index.name}; copy the checkpoint again."
        ) from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(f"{path} lacks {', '.join(missing[:3])}, which {index.name} lists; copy it again.")
    return files


def _write(module: nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Write a module's tensors, tied ones once, so that `file` is whole as soon as it is there."""
    tensors: dict[tuple[int, torch.Size], tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict().items():
        tensors.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor))
    partial = file.with_suffix(".partial")
    save_file({name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.values()}, partial)
    os.replace(partial, file)
