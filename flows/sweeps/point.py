"""One point of a sweep, in a process of its own: `python -m flows.sweeps.point FILE`; FILE holds name and values."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flows.commands.launch import launch
from flows.workspaces import workspace
from flows.workspaces.workspace import Revision
from sparsekd.errors import SparseKDError
from tasks import environment


def main() -> int:
    """Run it in a workspace of its own. The exit code is the error's; its sentence is the last line."""
    request = json.loads(Path(sys.argv[1]).read_text())
    home = environment.checkout_root()
    try:
        revision = Revision(request["commit"], request["overlay"])
        space = workspace.create(home, request["run"], revision, again=True)
        try:
            launch(home, space=space, given=request["values"])
        finally:
            workspace.remove(space)
    except SparseKDError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
