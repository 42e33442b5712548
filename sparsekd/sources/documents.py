"""How a text file's documents are told apart: catalogue files by their own marks, a user's .txt by blank lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from sparsekd.sources.catalogue import SplitRule

END_OF_TEXT = "<|endoftext|>"
JOIN_UNTIL = 2_000
"""Characters that the blocks of a .txt file are joined to: paragraphs alone are too short to be documents."""


def split_wiki(text: str) -> Iterator[str]:
    """The articles between `<doc …>` and `</doc>`, title first, without the marks."""
    for match in re.finditer(r"^<doc [^\n]*>\n(.*?)^</doc>$", text, re.MULTILINE | re.DOTALL):
        yield match[1].strip()


def split_lines(text: str) -> Iterator[str]:
    """One document a line."""
    yield from (line.strip() for line in text.split("\n"))


def split_endoftext(text: str) -> Iterator[str]:
    """Documents between `<|endoftext|>` marks."""
    yield from (part.strip() for part in text.split(END_OF_TEXT))


def split_code(text: str) -> Iterator[str]:
    """The source files between `// ===== BEGIN language =====` and `// ===== END =====`, without the marks.

    What stands before the first mark is left out: nothing there tells one file from the next, and pieces of one file
    must not be taken for separate documents.
    """
    marks = r"^// ===== BEGIN [^\n]* =====\n(.*?)(?=^// ===== (?:END =====$|BEGIN )|\Z)"
    for match in re.finditer(marks, text, re.MULTILINE | re.DOTALL):
        yield match[1].strip("\n")


def split_plain(text: str) -> Iterator[str]:
    """The documents of a user's .txt file.

    A file with `<|endoftext|>` marks is split there. Otherwise blocks between blank lines (single lines, where there
    are no blank ones) are joined in order until a document has JOIN_UNTIL characters: a document is needed as the unit
    that goes to calibration, validation or test, and a whole book as one could go to only one of them.
    """
    if END_OF_TEXT in text:
        yield from split_endoftext(text)
        return
    blocks = re.split(r"\n\s*\n", text)
    separator = "\n\n" if len(blocks) > 1 else "\n"
    if len(blocks) == 1:
        blocks = text.split("\n")
    waiting: list[str] = []
    size = 0
    for block in blocks:
        if not block.strip():
            continue
        waiting.append(block.strip("\n"))
        size += len(block)
        if size >= JOIN_UNTIL:
            yield separator.join(waiting)
            waiting, size = [], 0
    if waiting:
        yield separator.join(waiting)


SPLITS: dict[SplitRule, Callable[[str], Iterator[str]]] = {
    "wiki": split_wiki,
    "lines": split_lines,
    "endoftext": split_endoftext,
    "code": split_code,
}
