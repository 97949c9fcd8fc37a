"""File locks that enforce a pool's limit, in addition to Dagster's slots.

On SQLite Dagster claims a slot with a read and then a write: of ten runs that asked at the same moment, two got the
only slot. A file lock cannot be held twice, and the kernel frees it when its holder dies.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dagster as dg

from srt_assets.core.locks import lock_file, try_lock

LOOK_EVERY_S = 0.2


@contextmanager
def place(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Hold a place in the step's pool within the block. A step without a pool does not wait."""
    pool = context.op_def.pool
    if pool is None:
        yield
        return
    with hold(context.instance, pool, lambda: context.log.info(f"waiting for a place in the pool {pool}")):
        yield


@contextmanager
def hold(instance: dg.DagsterInstance, pool: str, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold one of a pool's places, across all processes that use this instance's folder."""
    limits = {found.name: found.limit for found in instance.event_log_storage.get_pool_limits()}
    limit = limits.get(pool, instance.global_op_concurrency_default_limit)
    if limit is None:
        yield
        return
    folder = Path(instance.root_directory) / "places"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        waited = False
        while not any(_take(folder / f"{pool}.{number}.lock", held) for number in range(limit)):
            if not waited:
                on_wait()
            waited = True
            time.sleep(LOOK_EVERY_S)
        yield


def _take(path: Path, held: ExitStack) -> bool:
    file = lock_file(path)
    if not try_lock(file):
        file.close()
        return False
    held.enter_context(file)
    return True
