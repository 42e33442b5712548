"""`python forget.py STAGE`: DVC forgets the latest result of a stage, in dvc.lock and in its run-cache.

A process of its own under DVC's own lock: DVC's Python interface is not safe beside other threads.
"""

import contextlib
import os
import sys

from dvc.repo import Repo
from dvc.stage.cache import _get_cache_hash, _get_stage_hash
from dvc.stage.serialize import to_single_stage_lockfile


def main(name: str) -> None:
    """Remove both records of stage `name`; its output in the workspace goes too, it is not what anything says."""
    repo = Repo(_wait_for_lock=True)
    with repo.lock:
        stage = repo.stage.load_one(name=name)
        entry = repo.stage_cache._get_cache_path(
            _get_stage_hash(stage), _get_cache_hash(to_single_stage_lockfile(stage))
        )
        if os.path.exists(entry):
            os.unlink(entry)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(entry))  # DVC stumbles over an empty one; it stays if it has other entries
        stage.dvcfile._lockfile.remove_stage(stage)
        stage.remove_outs(force=True)


if __name__ == "__main__":
    main(sys.argv[1])
