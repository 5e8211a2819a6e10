"""One writer at a time, among all processes that see the same folder. Standard library only."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from synthseg.errors import OutputError
from synthseg.owners import is_alive, signature

STALE_S = 20.0  # held for one small file's reading and writing: milliseconds, seconds on a slow network disk
ALIVE_STALE_S = 600.0  # by a process that lives on this machine: large files take minutes on such a disk
_PAUSE_S = 0.02

Identity = tuple[int, int]  # what tells one holder's lock from the next one's: inode and time


@contextmanager
def lock_beside(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``: the hidden file ``.NAME.lock`` beside it, which only one can create.

    Made this way, and not with the system's file locks, because not every network disk of a cluster has those. The lock
    of a process that died on this machine is taken over at once; one that we know less of when it stayed the same for
    ``STALE_S`` of our own waiting. No clock but our own is asked, and that is one which cannot be set.

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
        with contextlib.suppress(OSError):
            if _identity(lock) == ours:  # else we were so slow that another took it over
                lock.unlink()


def sweep_locks(paths: Iterable[Path]) -> None:
    """Remove the locks of these files that processes of this machine left when they were killed."""
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(f".{path.name}.lock")
    for folder, wanted in names.items():
        with contextlib.suppress(OSError):  # no folder, no locks
            for name in wanted.intersection(path.name for path in folder.iterdir()):
                holder = _identity(folder / name)
                if holder is not None and _patience(folder / name) < 0:
                    _take_away(folder / name, holder)


def _acquire(lock: Path) -> Identity:
    waited_for, since = None, 0.0
    while True:
        with contextlib.suppress(FileExistsError):
            return _create(lock)
        holder = _identity(lock)
        if holder != waited_for:
            waited_for, since = holder, time.monotonic()
        if holder is not None and time.monotonic() - since > _patience(lock):
            _take_away(lock, holder)
            continue
        time.sleep(_PAUSE_S)


def _create(lock: Path) -> Identity:
    """Make the lock, signed. Raises: FileExistsError where somebody holds it; OSError, and then there is none."""
    handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        try:
            os.write(handle, signature().encode())
        finally:
            os.close(handle)
        made = lock.stat()  # only now: network disks set the time of a change when the file is closed
        return made.st_ino, made.st_mtime_ns
    except OSError:
        with contextlib.suppress(OSError):
            lock.unlink()
        raise


def _patience(lock: Path) -> float:
    """How long a lock must stay the same before it is taken away, by what its holder's signature says."""
    try:
        alive = is_alive(lock.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return STALE_S
    return {None: STALE_S, True: ALIVE_STALE_S, False: -1.0}[alive]


def _take_away(lock: Path, holder: Identity) -> None:
    """Of several that wait for a dead one, the renaming lets one through; what it caught by mistake is put back."""
    grave = lock.with_name(f"{lock.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        lock.rename(grave)
        if _identity(grave) != holder:  # somebody was faster, and this is theirs
            with contextlib.suppress(FileExistsError):
                os.link(grave, lock)
        grave.unlink()


def _identity(lock: Path) -> Identity | None:
    """None when nobody holds it."""
    try:
        found = lock.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
