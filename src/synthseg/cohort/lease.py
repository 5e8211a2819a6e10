"""Who may write a cohort's ledger: one process at a time, among all machines that see the folder.

The lease is a file that only one can create and that its holder writes anew every few seconds. No system locks: not
every network disk of a cluster has those.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

from synthseg.errors import OutputError, UsageError

LEASE_NAME = ".cohort.lease"
BEAT_S = 2.0
DEAD_AFTER_S = 5.0  # unchanged for so long, and its process on this machine is gone
STALE_AFTER_S = 60.0  # unchanged for so long, wherever its process is: network disks show changes late


class Lease:
    """Held within a ``with`` block.

    Args:
        out: the cohort's output folder, which must exist.
        dead_after_s, stale_after_s: how long a lease that another left must stay unchanged before it is taken over.
    Raises (on entering): UsageError while another run holds it; OutputError if it cannot be written.
    """

    def __init__(self, out: Path, *, dead_after_s: float = DEAD_AFTER_S, stale_after_s: float = STALE_AFTER_S) -> None:
        self.path = out / LEASE_NAME
        self.token = secrets.token_hex(8)
        self.lost = False
        self._dead_after_s, self._stale_after_s = dead_after_s, stale_after_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="synthseg-lease", daemon=True)

    def __enter__(self) -> Lease:
        try:
            self._acquire()
        except OSError as error:
            fix = "check the folder's permissions and free space, or write elsewhere"
            raise OutputError(self.path, found=f"no way to write it ({error.strerror or error})", fix=fix) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if _read(self.path).get("token") == self.token:
                self._sweep()
                self.path.unlink()

    def require(self) -> None:
        """Raises: OutputError once another run has taken the lease, as after this process stood still for minutes."""
        if self.lost:
            found = "the lease of another run, which took this one for dead"
            raise OutputError(self.path, found=found, fix="let the other run finish, or stop it and run this again")

    def _acquire(self) -> None:
        seen, since = "", time.monotonic()
        while True:
            with contextlib.suppress(FileExistsError):
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                try:
                    with os.fdopen(handle, "w") as file:
                        file.write(self._text(0))
                except OSError:  # a full disk: without a word in it, it would be taken for another's
                    self.path.unlink(missing_ok=True)
                    raise
                return
            held = _read_text(self.path)
            if held is None:
                continue
            if held != seen:
                if seen:
                    raise self._busy(held)  # its holder lives: it has just written it
                seen, since = held, time.monotonic()
            elif time.monotonic() - since > self._patience(held):
                self._take_over(held)
            time.sleep(min(0.1, self._dead_after_s / 5))

    def _patience(self, held: str) -> float:
        holder = _parse(held)
        if not held:  # its maker died before the first word, or writes it just now
            return self._dead_after_s
        if holder.get("host") == socket.gethostname() and not _alive(holder.get("pid")):
            return self._dead_after_s
        return self._stale_after_s

    def _take_over(self, held: str) -> None:
        """Of several that wait for a dead one, the renaming lets one through; the others find a new lease."""
        grave = self.path.with_name(f"{self.path.name}.{self.token}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(grave)
            if _read_text(grave) != held:  # somebody was faster, and this is theirs
                try:
                    os.link(grave, self.path)
                except FileExistsError:
                    pass
                except OSError:  # no links on this disk
                    if not self.path.exists():
                        grave.rename(self.path)
                        return
            grave.unlink()

    def _busy(self, held: str) -> UsageError:
        holder = _parse(held)
        who = f"{holder.get('host', 'another machine')}, process {holder.get('pid', 'unknown')}"
        fix = "let it finish, or stop it; `synthseg cohort status` shows how far it is"
        return UsageError(self.path.parent, found=f"another run at work on this cohort ({who})", fix=fix)

    def _sweep(self) -> None:
        """Remove what dead ones, or a full disk, have left: halves of beats, leases taken away. By its holder only."""
        for left in self.path.parent.glob(f"{self.path.name}.*"):
            with contextlib.suppress(OSError):
                left.unlink()

    def _keep(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT_S):
            beat += 1
            with contextlib.suppress(OSError):  # a disk that is away for a moment: the next beat may reach it
                found = _read(self.path)
                if found.get("token", self.token) != self.token:
                    self.lost = True
                    return
                part = self.path.with_name(f"{self.path.name}.{self.token}.part")
                part.write_text(self._text(beat))
                part.replace(self.path)

    def _text(self, beat: int) -> str:
        return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": self.token, "beat": beat})


def holder_of(out: Path) -> dict[str, object]:
    """Host, pid and beat of the run that holds the lease, or held it when it died; empty when there is none."""
    return _read(out / LEASE_NAME)


def _read(path: Path) -> dict[str, object]:
    return _parse(_read_text(path) or "")


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _parse(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _alive(pid: object) -> bool:
    """Whether a process of this machine lives; what cannot be known counts as alive."""
    if not isinstance(pid, int):
        return False
    if os.name != "posix":  # there it would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
