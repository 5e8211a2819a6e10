"""One training at a time in a run's folder: two would remove each other's checkpoints. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthseg.errors import OutputError, TrainingError
from synthseg.owners import is_alive, signature

LOCK = ".training.lock"


@contextmanager
def alone_in(folder: Path, *, leads: bool) -> Iterator[None]:
    """Hold a run's folder, by the process that leads. One that a dead process left is taken over, also one of another
    machine, of whose processes nothing can be known here.

    Raises: TrainingError while another process of this machine trains there; OutputError if the lock cannot be made.
    """
    if not leads:
        yield
        return
    lock = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take(lock)
    except OSError as error:
        fix = "check the folder's permissions and free space, or give another folder"
        raise OutputError(folder, found=f"no way to write into it ({error.strerror or error})", fix=fix) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if lock.read_text(errors="replace") == signature():
                lock.unlink()


def _take(lock: Path) -> None:
    while True:
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                holder = lock.read_text(errors="replace")
                if is_alive(holder):
                    found = f"another training at work in this folder (process {holder.partition(' ')[2]})"
                    raise TrainingError(lock.parent, found=found, fix="let it finish, or give another folder") from None
                lock.unlink()
            continue
        try:
            with os.fdopen(handle, "w") as file:
                file.write(signature())
        except OSError:
            lock.unlink(missing_ok=True)
            raise
        return
