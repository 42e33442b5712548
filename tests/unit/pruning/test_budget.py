"""A width in the configuration becomes one integer."""

import pytest

from sparsekd.errors import ConfigError
from sparsekd.pruning.budget import resolve_width


@pytest.mark.parametrize(
    ("width", "multiple_of", "expected"),
    [(0.75, 128, 1152), (0.58, 128, 896), (1.0, 128, 1536), (900, 128, 900), (0.5001, 1, 768), (0.99, 128, 1536)],
)
def test_width(width: float, multiple_of: int, expected: int) -> None:
    assert resolve_width(width, 1536, multiple_of) == expected


@pytest.mark.parametrize(("width", "found"), [(2000, "prune.width is 2000"), (0.01, "prune.width is 0.01")])
def test_a_width_that_does_not_fit_is_refused(width: float, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        resolve_width(width, 1536, 128)
