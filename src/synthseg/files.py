"""Files that appear whole or not at all; paths and lists of paths as users write them. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import IO

from synthseg.errors import OutputError, UsageError
from synthseg.owners import is_alive, place
from synthseg.reading import is_folder, read_text

LONGEST_PATH = 4096  # of what systems take
LIST_BYTES = 64 * 2**20  # half a million paths
LEFT_AFTER_S = 3600.0  # unchanged for so long, a half-written file of another machine is taken for left behind
_PART = re.compile(r"^\.(.+)\.(\d+)-([0-9a-f]{5})[0-9a-f]{3}\.part$")  # name, process, its place


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BufferedWriter]:
    """A binary file to write to, which takes the name ``path`` only once it is complete.

    Missing folders are made. If anything fails inside the ``with`` block, the target stays as it was and nothing is
    left beside it.

    Raises: OutputError if the folder or file cannot be written, or the disk is full.
    """
    path = Path(path)
    if is_folder(path):
        raise OutputError(path, found="a folder where a file should be written", fix="give a file name inside it")
    part = part_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                sync_file(file)
            part.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # the first failure is the one to tell about
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        fix = "check the folder's permissions and free space, or write elsewhere"
        raise OutputError(path, found=f"no way to write it ({error.strerror or error})", fix=fix) from error


def part_beside(path: Path) -> Path:
    """A new hidden name beside ``path`` for a draft of it, which :func:`sweep_parts` knows the process of."""
    name = path.name.removeprefix(".")
    return path.with_name(f".{name}.{os.getpid()}-{place()}{secrets.token_hex(2)[:3]}.part")


def sync_file(file: IO[bytes]) -> None:
    """Put what was written down to the disk, where the system can: some network disks cannot, and say so."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def sync_folder(folder: Path) -> None:
    """Make a renaming in it survive a power cut, where the system can (not on Windows or some network disks)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep_parts(paths: Iterable[Path]) -> int:
    """Remove what is left of files that processes were writing to when they were killed. Returns: how many.

    Those of processes that live are never touched. Of processes on other machines nobody here can know: theirs go when
    they have not changed for ``LEFT_AFTER_S``, by the disk's own clock.

    Args:
        paths: files that may have been written by :func:`atomic_file`, or locked; each folder is looked through once.
    """
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    swept = 0
    for folder, wanted in names.items():
        with contextlib.suppress(OSError):  # no folder, nothing left in it
            with os.scandir(folder) as entries:
                found = [(entry, match) for entry in entries if (match := _PART.match(entry.name))]
            for entry, match in found:
                alive = is_alive(f"{match[3]} {match[2]}")
                if (
                    match[1].removesuffix(".lock") not in wanted
                    or alive
                    or (alive is None and not _is_old(entry, folder))
                ):
                    continue
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()
                    swept += 1
    return swept


def _is_old(entry: os.DirEntry[str], folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as file:  # made now: clocks of machines and disks differ
        return os.fstat(file.fileno()).st_mtime - entry.stat().st_mtime > LEFT_AFTER_S


def require_writable(folder: Path) -> None:
    """Make ``folder`` if needed and try to write into it, before any work is done. Raises: OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # which a kill leaves nothing of
            return
    except OSError as error:
        found = f"a folder that cannot be written to ({error.strerror})"
        raise OutputError(folder, found=found, fix="choose another folder with -o, or free it") from error


def at_home(path: str | Path) -> Path:
    """A path with ``~`` resolved, where that is somebody's home: names may begin with it, too."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_list(path: Path, *, subject: str | Path | None = None) -> list[Path]:
    """The paths in a text file, one a line, empty lines left out, ``~`` resolved.

    Args:
        subject: what errors call the list; None takes its path.
    Raises: UsageError for a file that is missing, no text, or without any path.
    """
    subject = path if subject is None else subject
    fix = "give a UTF-8 text file with one path per line"
    # Not splitlines, for which rarer characters, which names may hold, are line ends, too.
    lines = read_text(path, error=UsageError, fix=fix, subject=subject, most=LIST_BYTES).split("\n")
    long = next((number for number, line in enumerate(lines, start=1) if len(line) > LONGEST_PATH), None)
    if long is not None:
        found = f"a line of {len(lines[long - 1])} characters, which is no path (line {long})"
        raise UsageError(subject, found=found, fix=fix)
    paths = [at_home(line.strip()) for line in lines if line.strip()]
    if not paths:
        raise UsageError(subject, found="an empty list", fix="write one path per line")
    return paths
