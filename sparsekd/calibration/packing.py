"""Packed sequences: many documents in windows of equal length, each token knowing its document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsekd.errors import ArtifactError

NOT_SCORED = -1


@dataclass(frozen=True)
class Packed:
    """Token ids in windows of equal length, right-padded where they are not full.

    `document` is the index of the document a token belongs to, or -1 where it is never scored (padding, a prompt).
    """

    input_ids: Int[Tensor, "sequences length"]
    document: Int[Tensor, "sequences length"]

    @property
    def scored(self) -> Bool[Tensor, "sequences length-1"]:
        """Which of the positions 1… are targets, predicted from the position before."""
        return self.document[:, 1:] != NOT_SCORED

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()

    def head(self, tokens: int) -> Packed:
        """The first sequences that hold at least `tokens` tokens; all of them for 0."""
        count = -(-tokens // self.input_ids.shape[1]) if tokens else len(self.input_ids)
        return Packed(self.input_ids[:count], self.document[:count])

    def save(self, path: Path) -> None:
        save_file({"input_ids": self.input_ids.int(), "document": self.document.int()}, path)

    @classmethod
    def load(cls, path: Path) -> Packed:
        """Read what `save` wrote; ids as int64, as embeddings take them."""
        tensors = load_file(path)
        return cls(tensors["input_ids"].long(), tensors["document"].long())


@dataclass(frozen=True)
class CalibrationSet:
    """All packed sequences of a run. Only `evaluate` and the benchmarks read `test`."""

    calibration: Packed
    validation: dict[str, Packed]
    test: dict[str, Packed]

    def save(self, directory: Path) -> None:
        self.calibration.save(directory / "calibration.safetensors")
        for part in ("validation", "test"):
            for corpus, packed in getattr(self, part).items():
                packed.save(directory / f"{part}-{corpus}.safetensors")

    @classmethod
    def load(cls, directory: Path) -> CalibrationSet:
        """Read what `save` wrote. Raises ArtifactError when there is no calibration part."""
        file = directory / "calibration.safetensors"
        if not file.is_file():
            raise ArtifactError(f"{file} is not there; run stage calibrate: `sparsekd compress`.")
        return cls(Packed.load(file), _load_parts(directory, "validation"), _load_parts(directory, "test"))

    def parts(self) -> dict[str, Packed]:
        """Every part by the name that the teacher cache uses: calibration, validation-wiki, test-chat …"""
        named = {"calibration": self.calibration}
        named |= {f"validation-{corpus}": packed for corpus, packed in self.validation.items()}
        return named | {f"test-{corpus}": packed for corpus, packed in self.test.items()}


def _load_parts(directory: Path, part: str) -> dict[str, Packed]:
    files = sorted(directory.glob(f"{part}-*.safetensors"))
    return {file.stem.removeprefix(f"{part}-"): Packed.load(file) for file in files}


def pack(documents: Sequence[Sequence[int]], length: int, tokens: int) -> Packed:
    """Concatenate tokenised documents and cut them into full windows of `length`, at most `tokens` tokens in all.

    A document that does not end with its window goes on in the next one. The last, unfilled window is dropped.
    """
    ids: list[int] = []
    owners: list[int] = []
    wanted = tokens // length * length
    for index, document in enumerate(documents):
        if len(ids) >= wanted:
            break
        ids.extend(document)
        owners.extend([index] * len(document))
    count = min(len(ids), wanted) // length * length
    return Packed(
        torch.tensor(ids[:count], dtype=torch.int64).view(-1, length),
        torch.tensor(owners[:count], dtype=torch.int64).view(-1, length),
    )


def interleave(parts: Sequence[Packed]) -> Packed:
    """Sequences of several corpora in turn (a, b, a, b …), so that any beginning holds them in the shares of the whole.

    Documents are renumbered to stay distinct.
    """
    offset = 0
    renumbered = []
    for part in parts:
        renumbered.append(torch.where(part.document >= 0, part.document + offset, part.document))
        offset += int(part.document.max()) + 1
    order = sorted(
        ((2 * row + 1) / len(part.input_ids), which, row)
        for which, part in enumerate(parts)
        for row in range(len(part.input_ids))
    )
    return Packed(
        torch.stack([parts[which].input_ids[row] for _, which, row in order]),
        torch.stack([renumbered[which][row] for _, which, row in order]),
    )


def pad(sequences: Sequence[tuple[Sequence[int], int]], padding: int) -> Packed:
    """Sequences of unequal length, each with the count of its first tokens that are not scored (a prompt)."""
    length = max(len(ids) for ids, _ in sequences)
    input_ids = torch.full((len(sequences), length), padding, dtype=torch.int64)
    document = torch.full((len(sequences), length), NOT_SCORED, dtype=torch.int64)
    for row, (ids, prompt) in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        document[row, prompt : len(ids)] = row
    return Packed(input_ids, document)
