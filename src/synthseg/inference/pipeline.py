"""Three stages, one after another or overlapping: while one item is computed, the next is read and the last finished.

Files are read and written by the C library, zlib and numpy, which let other threads run meanwhile; so threads are
enough, and nothing has to be copied between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")


def run_stages(
    items: Sequence[Item],
    begin: Callable[[Item], object],
    read: Callable[[Item], Read],
    compute: Callable[[Read], Computed],
    finish: Callable[[Computed], object],
    *,
    overlap: bool,
) -> None:
    """Take every item through ``read``, ``compute`` and ``finish``, each stage in the order of the items.

    ``begin`` and ``compute`` run in the calling thread. With ``overlap``, ``read`` and ``finish`` run in a thread of
    their own each: at most one item is read ahead of the one that is computed, and at most one is being finished behind
    it, so that three are in memory at the most.

    An exception of any stage ends the work, an interrupt (KeyboardInterrupt, which reaches the calling thread) too:
    what was computed before is finished first, what was only read is dropped, and the exception is raised when both
    threads have come to rest.
    """
    if overlap:
        _overlapping(items, begin, read, compute, finish)
        return
    for item in items:
        begin(item)
        finish(compute(read(item)))


def _overlapping(
    items: Sequence[Item],
    begin: Callable[[Item], object],
    read: Callable[[Item], Read],
    compute: Callable[[Read], Computed],
    finish: Callable[[Computed], object],
) -> None:
    reader = ThreadPoolExecutor(1, thread_name_prefix="synthseg-read")
    writer = ThreadPoolExecutor(1, thread_name_prefix="synthseg-write")
    try:
        ahead: Future[Read] | None = None
        behind: Future[object] | None = None
        for index, item in enumerate(items):
            current = ahead or reader.submit(read, item)
            begin(item)
            given = current.result()
            del current
            ahead = reader.submit(read, items[index + 1]) if index + 1 < len(items) else None
            computed = compute(given)
            del given
            # Handed over before we wait: an interrupt or a failure of the one before must not lose what was computed.
            before, behind = behind, writer.submit(finish, computed)
            del computed
            if before is not None:
                before.result()
        if behind is not None:
            behind.result()
    finally:
        try:
            reader.shutdown(wait=True, cancel_futures=True)
        finally:  # also when a second interrupt arrives while we wait
            writer.shutdown(wait=True)
