"""Stock checkpoint directories: which files belong to one, whether it is whole, and copies of it."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsekd.errors import SourceError
from sparsekd.sources.storage import clone_or_copy

WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
CARD = "README.md"
"""Read for the licence; never copied, for the checkpoint that we write gets a card of its own."""

HUB_PATTERNS = (*WEIGHTS, *COMPANIONS, CARD)
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def stock_files(directory: Path, what: str) -> dict[str, Path]:
    """The files of a checkpoint by name; anything else in the directory (pickles, code, logs) is left alone.

    Here and below, `what` starts an error's sentence: "model.source is 'DIR'".
    """
    weights = weight_files(directory, what)
    index = directory / "model.safetensors.index.json"
    found = [path for pattern in COMPANIONS for path in directory.glob(pattern)] + weights
    if index.is_file() and weights[0].name != "model.safetensors":
        found.append(index)
    return {path.relative_to(directory).as_posix(): path for path in sorted(found) if path.is_file()}


def check_checkpoint(directory: Path, what: str) -> None:
    """Raise SourceError unless `directory` is a whole stock checkpoint: config, safetensors, every shard, tokenizer."""
    if not directory.exists():
        raise SourceError(f"{what}; there is no such directory. Correct the path.")
    if not directory.is_dir():
        raise SourceError(f"{what}, a file; it must be a directory with config.json, safetensors and a tokenizer.")
    read_config(directory, what)
    weights = weight_files(directory, what)
    missing = [path.name for path in weights if not path.is_file()]
    if missing:
        raise SourceError(
            f"{directory} lacks {', '.join(missing[:3])}, which its index lists; copy the checkpoint again."
        )
    for path in weights:
        tensor_sizes(path)
    if not any((directory / name).is_file() for name in _TOKENIZERS) and not list(directory.glob("*.model")):
        raise SourceError(
            f"{directory} has no tokenizer ({', '.join(_TOKENIZERS)} or *.model); save it there: "
            "`tokenizer.save_pretrained(DIR)`."
        )


def read_config(directory: Path, what: str) -> dict[str, Any]:
    """config.json. Raises SourceError when it is missing, unreadable, or no JSON object."""
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{what}, which has no config.json; name a Transformers checkpoint.") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); mend its permissions.") from None
    except ValueError:
        raise SourceError(f"{path} is no JSON; copy the checkpoint again.") from None
    if not isinstance(values, dict):
        raise SourceError(f"{path} holds no JSON object; copy the checkpoint again.")
    return values


def weight_files(directory: Path, what: str) -> list[Path]:
    """The safetensors files that Transformers would load: model.safetensors, or the shards that the index lists.

    Raises SourceError when there are none, and says so when there are only pickled ones.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if any(Path(name).name != name for name in names):  # a path would reach files outside the checkpoint
                raise ValueError
        except (ValueError, KeyError, AttributeError, TypeError, OSError):
            raise SourceError(f"{index} is no index of shards; copy the checkpoint again.") from None
        return [directory / name for name in names]
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise SourceError(
            f"{what}, whose weights are pickled ({pickles[0]}); no pickle is read. Convert it where you trust it: load "
            "it with Transformers and call `save_pretrained(DIR, safe_serialization=True)`."
        )
    raise SourceError(
        f"{what}, which has no model.safetensors and no index of shards; pickled weights are not read. Name another."
    )


def tensor_sizes(path: Path) -> dict[str, int]:
    """Elements of each tensor of a safetensors file, from its header alone. Raises SourceError when it is damaged."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError("tensors do not fill the file")
        return {name: _product(entry["shape"]) for name, entry in header.items()}
    except PermissionError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); mend its permissions.") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise SourceError(f"{path} is damaged or cut short ({size} bytes); download or copy it again.") from None


def _product(shape: list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def count_parameters(directory: Path, what: str) -> int:
    """Parameters as stored: tied weights are stored once."""
    return sum(sum(tensor_sizes(path).values()) for path in weight_files(directory, what))


def copy_files(files: Mapping[str, Path], out: Path) -> dict[str, Path]:
    """Copy files to their names below `out`, sharing blocks where the file system can; return the copies."""
    copies = {name: out / name for name in files}
    for name, path in files.items():
        copies[name].parent.mkdir(parents=True, exist_ok=True)
        clone_or_copy(path, copies[name])
    return copies


def licence_of(directory: Path) -> str | None:
    """The licence that the model card's front matter names, as the hub does."""
    try:
        card = (directory / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^licen[sc]e:\s*['\"]?([^'\"\n]+?)['\"]?\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
