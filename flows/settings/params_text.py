"""params.yaml as text: settings change, comments, order and layout stay."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
_SWITCHES = {"on", "off", "yes", "no", "y", "n"}


def plain(value: Any) -> Any:
    """A width of 1152.0 neurons as 1152; every other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() and value > 1 else value


def edit_text(text: str, values: Mapping[str, Any]) -> str:
    """`text` (YAML) with each `stage.key` of `values` set; comments, order and everything else stay as they are."""
    yaml = _yaml()
    document = yaml.load(text) or CommentedMap()
    for key, value in values.items():
        *sections, name = key.split(".")
        target = document
        for section in sections:
            if target.get(section) is None:
                target[section] = CommentedMap()
            target = target[section]
        _replace(target, name, value)
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def full_text(values: Mapping[str, Any]) -> str:
    """Nested `values` as YAML with every setting written out."""
    stream = io.StringIO()
    _yaml().dump(dict(values), stream)
    return stream.getvalue()


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000  # long prompts stay on their line
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.Representer = _Representer
    return yaml


class _Representer(RoundTripRepresenter):
    """ruamel's, but a null is written out."""


_Representer.add_representer(
    NoneType, lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def _replace(target: CommentedMap, name: str, value: Any) -> None:
    """Set target[name]; a list keeps its layout and the comments that ruamel hangs on its last item."""
    if not isinstance(value, (list, tuple)):
        target[name] = _scalar(value)
        return
    old = target.get(name)
    new = CommentedSeq(_scalar(item) for item in value)
    if not value or (old.fa.flow_style() if isinstance(old, CommentedSeq) else True):
        new.fa.set_flow_style()
    following = _comment_after(old)
    target[name] = new
    if following is not None and value and not new.fa.flow_style():
        new.ca.items[len(new) - 1] = [following, None, None, None]
    elif following is not None:
        target.ca.items[name] = [None, None, following, None]


def _comment_after(sequence: Any) -> CommentToken | None:
    """The comment lines below a block list, which ruamel keeps on its last item together with that item's own."""
    items = sequence.ca.items.get(len(sequence) - 1) if isinstance(sequence, CommentedSeq) else None
    if not items or items[0] is None:
        return None
    token = items[0]
    below = token.value.partition("\n")[2]
    return CommentToken("\n" + below, token.start_mark, None) if below else None


def _scalar(value: Any) -> Any:
    """`value` so that every reader sees the same: DVC's (libyaml) and PyYAML differ from ours on `on` and `hf:a/b`."""
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or value.lower() in _SWITCHES):
        return DoubleQuotedScalarString(value)
    return plain(value)
