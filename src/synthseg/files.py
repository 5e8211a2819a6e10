"""Files that appear whole or not at all; paths and lists of paths as users write them. Standard library only."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from synthseg.errors import OutputError, UsageError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BufferedWriter]:
    """A binary file to write to, which takes the name ``path`` only once it is complete.

    Missing folders are made. If anything fails inside the ``with`` block, the target stays as it was and nothing is
    left beside it.

    Raises: OutputError if the folder or file cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(path, found="a folder where a file should be written", fix="give a file name inside it")
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # the first failure is the one to tell about
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        fix = "check the folder's permissions and free space, or write elsewhere"
        raise OutputError(path, found=f"no way to write it ({error.strerror or error})", fix=fix) from error


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where the system can (not on Windows or some network disks)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def require_writable(folder: Path) -> None:
    """Make ``folder`` if needed and try to write into it, before any work is done. Raises: OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".synthseg-"):
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
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows editors put a mark in front
    except FileNotFoundError:
        raise UsageError(subject, found="no such file", fix="give a text file with one path per line") from None
    except (OSError, UnicodeDecodeError) as error:
        fix = "give a text file with one path per line"
        raise UsageError(subject, found=f"no readable text file ({error})", fix=fix) from error
    if any("\0" in line for line in lines):
        raise UsageError(subject, found="zero bytes in the text, as UTF-16 has them", fix="save it as UTF-8")
    paths = [at_home(line.strip()) for line in lines if line.strip()]
    if not paths:
        raise UsageError(subject, found="an empty list", fix="write one path per line")
    return paths
