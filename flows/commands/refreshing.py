"""`sparsekd refresh`: the flow of that name, with its log in the console."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from flows.checks import preflight
from flows.commands.display import make_console
from flows.settings import params
from tasks import environment

if TYPE_CHECKING:
    from prefect import State


def refresh(settings: Sequence[str], preset: str | None, at: str | None) -> None:
    """Look for something new and run where there is. Raises SparseKDError for what the user can mend."""
    home = params.find_root()
    preflight.check_repository(home)
    os.chdir(home)  # relative paths in params.yaml start here
    environment.apply(home)
    from flows.commands.launch import connected, outcome_of  # Prefect comes with them

    with connected(home):
        from flows.refresh import refresh as flow

        state = cast("State[Any]", flow(list(settings), preset, at, return_state=True))
    outcome_of(state)
    make_console().print(f"{state.name}. {state.message or ''}", markup=False, soft_wrap=True)
