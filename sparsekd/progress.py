"""How long work says how far it is: one callable, so that the library knows neither terminal nor orchestrator."""

from typing import Protocol


class Progress(Protocol):
    """Called now and then with work done so far."""

    def __call__(self, done: float, total: float, unit: str, **values: float) -> None:
        """Report `done` of `total` in `unit` ("tokens", "layers", "rows", "bytes") and named figures (loss=2.31)."""


def silent(done: float, total: float, unit: str, **values: float) -> None:
    """Report to nobody: the default of every library function."""
