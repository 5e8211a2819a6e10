"""One writer at a time, among all processes that see the same folder. Standard library only."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthseg.errors import OutputError

STALE_S = 20.0  # a lock is held for one small file's reading and writing: milliseconds, seconds on a slow network disk
_PAUSE_S = 0.02


@contextmanager
def lock_beside(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``: the hidden file ``.NAME.lock`` beside it, which only one can create.

    Made this way, and not with the system's file locks, because not every network disk of a cluster has those. A lock
    that stayed the same for ``STALE_S`` of our own waiting was left by a process that died: it is taken over.

    Raises: OutputError if the lock cannot be made.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        ours = _acquire(lock)
    except OSError as error:
        fix = "check the folder's permissions and free space, or write elsewhere"
        raise OutputError(lock, found=f"no way to make this lock ({error.strerror or error})", fix=fix) from error
    try:
        yield
    finally:
        if _identity(lock) == ours:  # else we were so slow that another took it over
            with contextlib.suppress(OSError):
                lock.unlink()


def _acquire(lock: Path) -> tuple[int, int]:
    waited_for, since = None, 0.0
    while True:
        with contextlib.suppress(FileExistsError):
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            try:
                made = os.fstat(handle)
                return made.st_ino, made.st_mtime_ns
            finally:
                os.close(handle)
        holder = _identity(lock)
        if holder != waited_for:
            waited_for, since = holder, time.monotonic()
        elif holder is not None and time.monotonic() - since > STALE_S:
            lock.unlink(missing_ok=True)
            continue
        time.sleep(_PAUSE_S)


def _identity(lock: Path) -> tuple[int, int] | None:
    """What tells one holder's lock from the next one's; None when nobody holds it."""
    try:
        found = lock.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
