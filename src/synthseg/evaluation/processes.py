"""Work on many items in processes of their own: results in order, no item lost with another, a clean end by Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def work_through(work: Callable[[T], R], items: Sequence[T], jobs: int, *, lost: Callable[[T], R]) -> Iterator[R]:
    """``work(item)`` of each item, in their order, ``jobs`` of them at a time.

    Processes are started afresh (spawned): a script that calls this with ``jobs`` above 1 needs the usual
    ``if __name__ == "__main__":``.

    Args:
        work: a function of a module, or a ``functools.partial`` of one; it and the items are sent to the processes.
        jobs: 1: in this process.
        lost: what to give instead of the result of an item whose process ended without one (killed, out of memory).
    Raises: whatever ``work`` raises.
    """
    if jobs <= 1 or len(items) <= 1:
        yield from map(work, items)
        return
    done = 0
    with _pool(min(jobs, len(items))) as pool:
        with _not_interrupted():
            futures = [pool.submit(work, item) for item in items]
        for future in futures:
            try:
                result = future.result()
            except BrokenProcessPool:
                break
            done += 1
            yield result
    for item in items[done:]:  # a process is gone and took the others with it; whose fault it was shows one by one
        yield _alone(work, item, lost)


def _alone(work: Callable[[T], R], item: T, lost: Callable[[T], R]) -> R:
    with _pool(1) as pool:
        with _not_interrupted():
            future = pool.submit(work, item)
        try:
            return future.result()
        except BrokenProcessPool:
            return lost(item)


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned, not forked: a fork of a process with threads (those of torch or BLAS) may hang.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_die_silently)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _die_silently() -> None:
    """Ctrl-C ends a worker at once and without a traceback: the process that waits for it tells the story."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # in a background job, Ctrl-C is for others
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _not_interrupted() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit this, and would each print a traceback otherwise."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
