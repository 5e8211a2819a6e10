"""Hostile folders, and processes that are watched: what the tests of security share."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
WATCH = '''\
"""Denies and writes down every use of the network by a Python process, and every object that is unpickled by name."""
import os
import sys

import _socket

LOG, ALLOWED = os.environ["SECURITY_LOG"], os.environ.get("SECURITY_LOOPBACK") == "1"


def local(address):
    return isinstance(address, (str, bytes)) or str(address[0]).startswith(("127.", "::1", "localhost"))


def watch(event, arguments):
    what = None
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if arguments[0].family != _socket.AF_UNIX and not (ALLOWED and local(arguments[1])):
            what = f"{event} {arguments[1]}"
    elif event == "socket.bind":  # urllib3 looks for IPv6 that way as it is imported
        if arguments[0].family != _socket.AF_UNIX and not local(arguments[1]):
            what = f"{event} {arguments[1]}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"):
        if not (ALLOWED and (arguments[0] is None or local((arguments[0],)))):
            what = f"{event} {arguments}"
    if what is not None:
        with open(LOG, "a") as file:
            file.write(f"{os.getpid()} {sys.argv[:2]}: {what}\\n")
        raise OSError(f"denied by the test: {what}")


sys.addaudithook(watch)
with open(LOG + ".started", "a") as file:
    file.write(f"{os.getpid()}\\n")
'''


STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,bind,sendto,sendmsg,sendmmsg")


class Bomb:
    """An object whose pickle, when it is opened, makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def bomb(mark: Path) -> bytes:
    """The bytes of a pickle that makes the folder ``mark``."""
    return pickle.dumps(Bomb(mark), protocol=2)


def watched(folder: Path, *, loopback: bool = False) -> dict[str, str]:
    """An environment in which Python processes and their children are denied the network; they say so in ``net.log``.

    Args:
        loopback: allow 127.0.0.1, for Dask.
    """
    site = folder / "watch"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(WATCH)
    (folder / "home").mkdir(exist_ok=True)
    return os.environ | {
        "PYTHONPATH": str(site),
        "SECURITY_LOG": str(folder / "net.log"),
        "SECURITY_LOOPBACK": "1" if loopback else "0",
        "HOME": str(folder / "home"),  # where OpenVINO's telemetry would keep its identifier
        "CI": "",  # where it would be silent
        "OMP_NUM_THREADS": "1",
    }


def traced(command: Sequence[str], folder: Path) -> list[str]:
    """The command under strace, where that works: native libraries are no part of what Python can watch."""
    trial = [*STRACE, "-o", os.devnull, "true"]
    if shutil.which("strace") is None or subprocess.run(trial, capture_output=True, check=False).returncode:
        return list(command)
    return [*STRACE, "-o", str(folder / "strace.log"), *command]


def uses_of_the_network(folder: Path, *, loopback: bool = False) -> list[str]:
    """What was denied, or seen by strace. At least one watched process must have started."""
    assert (folder / "net.log.started").is_file(), "no process was watched"
    log, calls = folder / "net.log", folder / "strace.log"
    found = log.read_text().splitlines() if log.exists() else []
    for line in calls.read_text(errors="replace").splitlines() if calls.exists() else []:
        here = "127.0.0." in line or '"::1"' in line
        if "AF_INET" in line and not (here and (loopback or " bind(" in line)):
            found.append(line)
    return found


def synthseg(
    arguments: Sequence[object], environment: dict[str, str], *, program: str = "synthseg", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    command = [str(SCRIPTS / program), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
