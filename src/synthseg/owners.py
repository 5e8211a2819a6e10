"""Whose a half-written file or a lock is, and whether that process still lives. Standard library only."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path


@cache
def place() -> str:
    """Five letters for where process numbers mean what they mean here: this machine since it was started, and in it
    this container. Two places share theirs by a chance of one in a million.
    """
    known = [socket.gethostname()]
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    for ask in (boot.read_text, lambda: str(processes.readlink())):
        try:
            known.append(ask())
        except OSError:
            known.append("")
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:5]


def signature() -> str:
    """Place and number of this process and, where it is known, when it began, as :func:`is_alive` reads them."""
    return f"{place()} {os.getpid()} {_began(os.getpid())}".strip()


def is_alive(signed: str) -> bool | None:
    """Whether the process of a signature lives; None where that cannot be known: another machine, no signature.

    A number that another process has got since counts as alive where the signature does not say when its own began.
    """
    where, number, began, *_ = [*signed.split(), "", "", ""]
    if where != place() or not number.isdecimal() or os.name != "posix":
        return None
    if began and _began(int(number)) not in ("", began):
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _began(number: int) -> str:
    """When a process began, in ticks since the machine did; empty where the system does not say (only Linux does)."""
    try:
        # The name of the program, in brackets, may hold anything; the 20th number after it is what is asked for.
        return Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()[19].decode("ascii")
    except (OSError, IndexError, ValueError):
        return ""
