"""What is in a corpus: how long its documents are, and in which languages."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsekd.corpus.language import language
from sparsekd.corpus.write import read_documents
from sparsekd.progress import Progress, silent


@dataclass(frozen=True)
class Description:
    """Characters of the median document, how many documents are shorter than asked for, and shares of languages.

    A share, in (0, 1], is of the characters; the largest comes first.
    """

    median: int
    short: int
    languages: dict[str, float]


def describe(
    file: Path,
    documents: int,
    minimum_characters: int,
    progress: Progress = silent,
    also: Callable[[str], None] = lambda text: None,
) -> Description:
    """Read the `documents` documents of a file that `write_documents` wrote; each goes to `also` as well."""
    lengths: list[int] = []
    characters: Counter[str] = Counter()
    for text in read_documents(file):
        lengths.append(len(text))
        characters[language(text)] += len(text)
        also(text)
        progress(len(lengths), documents, "documents")
    total = sum(lengths)
    ranked = sorted(characters.items(), key=lambda item: (-item[1], item[0]))
    return Description(
        round(statistics.median(lengths)),
        sum(length < minimum_characters for length in lengths),
        {name: share for name, count in ranked if (share := round(count / total, 4))},
    )
