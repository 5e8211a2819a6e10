"""One writer at a time, among all processes that see the same folder. Standard library only."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from synthseg.errors import OutputError
from synthseg.files import part_beside, sweep_parts
from synthseg.owners import is_alive, signature

STALE_S = 20.0  # held for one small file's reading and writing: milliseconds, seconds on a slow network disk
ALIVE_STALE_S = 600.0  # by a process that lives on this machine: large files take minutes on such a disk
BEAT_S = 4.0  # what is held for long is touched so often, for those who cannot know whether its holder lives
_PAUSE_S = 0.02
_NO_LINKS = 5.0  # seconds that an empty lock has to be signed in, on disks where it cannot appear with its content

Identity = tuple[int, int]  # what tells one holder's lock from the next one's: inode and time


@contextmanager
def lock_beside(path: Path, *, long: bool = False) -> Iterator[None]:
    """Hold the lock of ``path``: the hidden file ``.NAME.lock`` beside it, which only one can create.

    Args:
        long: it is held for more than a moment, and touched meanwhile.

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
    held = _Held(lock, ours)
    try:
        with held.touched() if long else contextlib.nullcontext():
            yield
    finally:
        held.release()


def take(lock: Path) -> str | None:
    """Make a lock, also in the place of a dead process's or another machine's, without waiting for the living.

    Returns: None if it is ours now; else the signature of the process of this machine that holds it. ``release`` gives
        it back.
    Raises: OSError if it cannot be made.
    """
    since, contested = time.monotonic(), False
    while True:
        with contextlib.suppress(FileExistsError):
            ours = _create(lock)
            if contested:  # of several that take a dead one's away, the last may have caught ours for a moment
                time.sleep(5 * _PAUSE_S)
            if _identity(lock) == ours:
                sweep_parts([lock.with_name(lock.name.removeprefix("."))])
                return None
            continue
        try:
            holder, signed = _identity(lock), lock.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            continue
        if is_alive(signed):
            return signed
        if not signed and time.monotonic() - since < _NO_LINKS:
            time.sleep(_PAUSE_S)
            continue
        contested = True
        if holder is not None:
            _take_away(lock, holder)


def release(lock: Path) -> None:
    """Give back what ``take`` took; another's is left alone."""
    with contextlib.suppress(OSError):
        if lock.read_text(encoding="ascii", errors="replace") == signature():
            lock.unlink()


class _Held:
    """A lock that this process has."""

    def __init__(self, lock: Path, ours: Identity) -> None:
        self._lock, self._ours = lock, ours
        self._ended = threading.Event()

    @contextmanager
    def touched(self) -> Iterator[None]:
        """Changed every few seconds by a thread, so that nobody takes it for one that was left."""
        thread = threading.Thread(target=self._touch, name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _touch(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                if _identity(self._lock) != self._ours:
                    return
                os.utime(self._lock)
                self._ours = _identity(self._lock) or self._ours

    def release(self) -> None:
        with contextlib.suppress(OSError):
            if _identity(self._lock) == self._ours:  # else we were so slow that another took it over
                self._lock.unlink()


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
    """Make the lock, signed. Raises: FileExistsError where somebody holds it; OSError, and then there is none.

    It appears with its content where the disk has hard links, so that nobody meets one that is not signed yet.
    """
    draft = part_beside(lock)
    try:
        draft.write_text(signature(), encoding="ascii")
        os.link(draft, lock)
        made = lock.stat()
        return made.st_ino, made.st_mtime_ns
    except FileExistsError:
        raise
    except OSError:  # no links here, or no disk
        return _create_open(lock)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _create_open(lock: Path) -> Identity:
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
            try:
                os.link(grave, lock)
            except FileExistsError:
                pass
            except OSError:  # no links on this disk
                if _identity(lock) is None:
                    grave.rename(lock)
                    return
        grave.unlink()


def _identity(lock: Path) -> Identity | None:
    """None when nobody holds it."""
    try:
        found = lock.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
