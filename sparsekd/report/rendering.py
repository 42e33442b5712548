"""Templates: an unknown name in one is an error, not a blank."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

_FOLDER = Path(__file__).parent / "templates"


def template(name: str, autoescape: bool) -> Template:
    """The template of that name in templates/; HTML needs `autoescape`."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["keep"] = keep_percents
    return environment.get_template(name)


def script(name: str) -> tuple[str, str]:
    """The script of that name in templates/, and its hash as a content security policy wants it: no other may run."""
    text = (_FOLDER / name).read_text()
    return text, f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def keep_percents(text: str) -> str:
    """No line break between a number and its percent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")
