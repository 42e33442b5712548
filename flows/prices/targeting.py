"""`--target`: from what is wanted of a result to a width, and whether the result has it.

A share of parameters is a budget of its own (`prune.total_reduction`). A KL is turned into a width by the price list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flows.prices import price_lists
from flows.prices.expected import VALIDATION, expected, validation_kl
from flows.settings.params_text import plain
from sparsekd.config import BUDGETS, RunConfig
from sparsekd.errors import ConfigError, SparseKDError
from sparsekd.evaluation.expectation import suggested_width
from sparsekd.evaluation.offers import WIDTHS

_SIGNS = {"kl": "<=", **dict.fromkeys(BUDGETS, "=")}


class TargetMissedError(SparseKDError):
    """The run ended well, but not with what was asked of it."""

    exit_code = 1


@dataclass(frozen=True)
class Target:
    """`kl<=0.1` or a budget such as `total_reduction=0.3`."""

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}{_SIGNS[self.name]}{plain(self.value)}"

    @property
    def needs_prices(self) -> bool:
        return self.name == "kl"


@dataclass(frozen=True)
class Choice:
    """The width for a target, with the KL to be expected of it and what that stands on."""

    width: int
    kl: float
    ground: str


def parse(text: str) -> Target:
    """Read `--target`. Raises ConfigError with what is allowed."""
    found = re.fullmatch(r"\s*(\w+)\s*(<=|=)\s*([0-9.eE+-]+)\s*", text)
    try:
        name, _, value = found.groups() if found else ("", "", "")
        target = Target(name, float(value))
    except ValueError:
        target = Target("", 0)
    if not found or _SIGNS.get(target.name) != found[2] or not target.value > 0:
        raise ConfigError(
            f"--target is {text!r}; write kl<=X (nats a token on validation text) or one of "
            f"{', '.join(f'{name}=X' for name in BUDGETS)}, with X above 0."
        )
    return target


def check_alone(settings: Iterable[str]) -> None:
    """Raise ConfigError for a budget among `settings`: the target is what says how much is kept."""
    given = {setting.partition("=")[0].strip() for setting in settings}
    if clash := given & {f"prune.{key}" for key in BUDGETS}:
        raise ConfigError(f"{' and '.join(sorted(clash))} is given beside --target, which chooses it; leave it out.")


def settings(home: Path, config: RunConfig, target: Target) -> tuple[list[str], Choice | None]:
    """What to set for `target` over the settled `config`, and for a KL what that was chosen by.

    Makes the price list in a process of its own where the checkout has none yet. Raises ConfigError where no width
    that is priced keeps to it.
    """
    if not target.needs_prices:
        return [f"prune.{target.name}={plain(target.value)}"], None
    found = choose(home, config, target.value)
    return [f"prune.width={found.width}"], found


def choose(home: Path, config: RunConfig, limit: float) -> Choice:
    """The smallest width whose KL is expected to keep to `limit`."""
    found = price_lists.computed_apart(home, config, WIDTHS)
    curve = expected(home, config, found)
    width = suggested_width(found, curve, limit, config.prune.multiple_of)
    if width is None:
        widest = max(found.offers, key=lambda offer: offer.width)
        kl = curve.kl(widest.mean_kl) if curve else widest.mean_kl
        raise ConfigError(
            f"The target is kl<={limit}; the widest that is priced, {widest.width} of {found.dense.width} neurons, "
            f"is expected to have {kl:.3f}. Give more, or set prune.width yourself; `sparsekd preview` shows all."
        )
    ground = (
        f"an estimate from {curve.runs} runs, one left out is missed by {curve.error:.0%} at the most"
        if curve
        else "of pruning in one shot; what distillation takes off it is known after two runs: `sparsekd sweep --target`"
    )
    return Choice(*width, ground)


def verify(root: Path, target: Target) -> str:
    """The sentence that the result under `root` keeps to a KL. Raises TargetMissedError where it does not."""
    kl = validation_kl(root / "data" / "evaluation" / "distilled" / VALIDATION)
    if kl <= target.value:
        return f"target {target} met: {kl:.4f} nats a token on validation text, mean of the corpora."
    raise TargetMissedError(
        f"The result has a KL of {kl:.4f} nats a token on validation text and the target was {target}; it is kept as "
        "it is. A larger prune.width or more distill.tokens lowers it; `sparsekd sweep --target` searches."
    )
