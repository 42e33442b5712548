"""`python push.py STAGE…` sends the latest results of stages to DVC's default remote; without STAGE it looks for it.

`dvc push --run-cache STAGE` keeps the workspace locked for as long as the upload takes, sends every entry of the
run-cache each time, and sends them before the outputs that they name. Here the lock is held for a moment, only the
stage's own entry is sent, and it is sent last: who finds it finds the outputs. A process of its own: DVC's Python
interface is not safe beside other threads.
"""

import sys

from dvc.fs import generic
from dvc.repo import Repo
from dvc.stage.cache import _get_cache_hash, _get_stage_hash
from dvc.stage.serialize import to_single_stage_lockfile


def main(names: list[str]) -> None:
    """Send outputs and run-cache entries of these stages. Raises whatever DVC and the remote's client raise."""
    repo = Repo(_wait_for_lock=True)
    with repo.lock:
        stages = [repo.stage.load_one(name=name) for name in names]
        objects = {found for stage in stages for each in stage.get_used_objs().values() for found in each}
        keys = [(_get_stage_hash(stage), _get_cache_hash(to_single_stage_lockfile(stage))) for stage in stages]
    sent = repo.cloud.push(objects)
    if sent.failed:
        raise OSError(f"{len(sent.failed)} of {len(objects)} objects were not sent")
    remote = repo.cloud.get_remote_odb(command="push --run-cache", hash_name="md5-dos2unix")
    local = repo.cache.legacy
    for key, value in keys:
        entry = local.fs.join(local.path, "runs", key[:2], key, value)
        if local.fs.exists(entry):
            target = remote.fs.join(remote.path, "runs", key[:2], key, value)
            remote.fs.makedirs(remote.fs.parent(target))
            generic.copy(local.fs, entry, remote.fs, target)


def check() -> None:
    """List the remote. Raises whatever its client raises."""
    remote = Repo().cloud.get_remote_odb(command="push")
    if remote.fs.exists(remote.path):
        remote.fs.ls(remote.path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:]) if len(sys.argv) > 1 else check()
    except Exception as error:
        sys.exit(f"error: {' '.join(str(error).split()) or type(error).__name__}")
