"""Documents are split three ways by the hash of their text, so that a split never depends on order or corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from sparsekd.errors import SourceError

PARTS = ("calibration", "validation", "test")
Role = Literal["calibration", "held_out"]


@dataclass(frozen=True)
class Split:
    """The documents of one corpus in each part."""

    calibration: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)


def document_key(text: str) -> str:
    """A hash that two documents share when they differ in white space or case only."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def split_documents(texts: Iterable[str], role: Role, held_out_share: float, seed: int) -> Split:
    """Split by document hash; copies of a document are dropped. The order within a part is a seeded shuffle by hash.

    A `calibration` corpus gives `held_out_share` of its documents to validation and as many to test; a `held_out`
    corpus is halved between the two and never trained on.
    """
    share = held_out_share if role == "calibration" else 0.5
    keyed: dict[str, str] = {}
    for text in texts:
        keyed.setdefault(document_key(text), text)
    split = Split()
    for key in sorted(keyed, key=lambda key: _uniform(f"order {seed} {key}")):
        position = _uniform(f"split {seed} {key}")
        part = "test" if position < share else "validation" if position < 2 * share else "calibration"
        getattr(split, part).append(keyed[key])
    return split


def refuse_overlap(splits: dict[str, Split]) -> None:
    """Raise SourceError when a document stands in two parts, whichever corpora they come from."""
    seen: dict[str, tuple[str, str]] = {}
    for corpus, split in splits.items():
        for part in PARTS:
            for text in getattr(split, part):
                earlier = seen.setdefault(document_key(text), (corpus, part))
                if earlier[1] != part:
                    raise SourceError(
                        f"A document stands both in {earlier[1]} ({earlier[0]}) and in {part} ({corpus}): "
                        f"“{' '.join(text.split())[:60]}…”. Remove it from one of the two corpora."
                    )


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
