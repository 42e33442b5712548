"""Numbers as people read them: one place, so that page, card and terminal say the same."""

from __future__ import annotations

from sparsekd.report.summary import Interval

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
NOTHING = "\N{EN DASH}"


def count(value: int) -> str:
    """134515008 → 134.5 M."""
    for limit, unit in ((1_000_000_000, "B"), (1_000_000, "M")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:,}"


def size(value: int) -> str:
    """Bytes in decimal units, as file managers of the hub show them: 269030016 → 269.0 MB."""
    for limit, unit in ((1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")):
        if value >= limit:
            return f"{value / limit:.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{value} bytes"


def percent(share: float, digits: int = 1) -> str:
    """0.25 → 25.0 %, with a real minus sign."""
    return f"{signed(100 * share, digits, plus=False)} %"


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of two shares in percentage points, always with its sign: 0.012 → +1.2."""
    return NOTHING if difference is None else signed(100 * difference, digits)


def signed(value: float, digits: int, plus: bool = True) -> str:
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return (MINUS if value < 0 else "+" if plus else "") + text


def decimals(value: float) -> str:
    """Three or four significant digits without an exponent for ordinary magnitudes."""
    magnitude = abs(value)
    if magnitude >= 100_000:
        return f"{value:.2e}"
    digits = 0 if magnitude >= 1_000 else 1 if magnitude >= 100 else 2 if magnitude >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", MINUS)


def ratio(value: float) -> str:
    """A factor with its sign of multiplication."""
    return f"{value:.2f}{TIMES}" if value < 100 else f"{value:,.0f}{TIMES}"


def speed(value: float) -> str:
    """Tokens a second, without digits that no clock can hold."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def span(interval: Interval, show: str = "decimals") -> str:
    """The ends of an interval in the style named by `show`; empty when it has none or no width (one document)."""
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return ""
    if show == "points":
        return f"{points(interval.low)} to {points(interval.high)}"
    if show == "percent":
        return f"{100 * interval.low:.1f}{NOTHING}{100 * interval.high:.1f} %"
    if show == "ratio":
        return f"{interval.low:.2f}{NOTHING}{interval.high:.2f}"
    if show == "kl":
        return f"{interval.low:.3f}{NOTHING}{interval.high:.3f}"
    low, high = decimals(interval.low), decimals(interval.high)
    return f"{low} to {high}" if MINUS in low + high else f"{low}{NOTHING}{high}"


def number_of(count: int, thing: str) -> str:
    """`1 round`, `5 rounds`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def listing(items: list[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def sentence(text: str) -> str:
    """With a capital first letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def code_name(name: str) -> str:
    """lm_head → LM head and the like, for names that files use and people do not."""
    return {"ffn": "FFN matmuls", "lm_head": "LM head", "attention": "attention", "rest": "everything else"}.get(
        name, name.replace("_", " ")
    )
