"""One training at a time in a run's folder: two would remove each other's checkpoints. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthseg.errors import OutputError, TrainingError
from synthseg.locks import release, take

LOCK = ".training.lock"


@contextmanager
def alone_in(folder: Path, *, leads: bool) -> Iterator[None]:
    """Hold a run's folder, by the process that leads. A lock that a dead process left is taken over, also one of
    another machine (or, on Windows, of any process), of whose processes nothing can be known here.

    Raises: TrainingError while another process of this machine trains there; OutputError if the lock cannot be made.
    """
    if not leads:
        yield
        return
    lock = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holder = take(lock)
    except OSError as error:
        fix = "check the folder's permissions and free space, or give another folder"
        raise OutputError(folder, found=f"no way to write into it ({error.strerror or error})", fix=fix) from error
    if holder is not None:
        found = f"another training at work in this folder (process {holder.split()[1]})"
        fix = f"let it finish, or give another folder; if no training runs, remove {lock}"
        raise TrainingError(folder, found=found, fix=fix)
    try:
        yield
    finally:
        release(lock)
