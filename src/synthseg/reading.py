"""Reading what people and other programs wrote: text, JSON, TOML, folders. Standard library only.

Nothing here trusts a file: it may be a pipe that nobody writes to, an endless device, no text, far too large, or text
that makes a parser recurse, count to infinity or take minutes. Each of these is one error of the caller's kind.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from synthseg.errors import SynthsegError, UsageError

CONFIG_BYTES = (
    2**20
)  # TOML: recipes have a few thousand; the standard library takes 4 s for a hostile file of this size
JSON_BYTES = 64 * 2**20
TABLE_BYTES = 2**30  # scores of 10,000 scans are 600 MB; memory is a small multiple of it
DEEPEST = 64  # tables in tables
_WHOLE = 2**64  # TOML has whole numbers of 64 bits; Python cannot even print those of more than 4300 digits
# A key of many parts (a.b.c. ...), for which tomllib's time grows with the third power: 20,000 parts are 29 s.
_LONG_KEY = re.compile(
    r"(?:^|[\[{,])[ \t]*(?:(?:[\w-]+|\"[^\"\n]*\"|'[^'\n]*')[ \t]*\.[ \t]*){" + str(DEEPEST) + "}", re.MULTILINE
)


def read_text(
    path: str | Path,
    *,
    error: type[SynthsegError],
    fix: str,
    most: int = TABLE_BYTES,
    subject: str | Path | None = None,
) -> str:
    """A text file, with plain line ends and without a byte-order mark.

    Args:
        error, fix: kind of the error, and what it tells to do.
        most: bytes that such a file may have.
        subject: what errors call the file; None takes its path.
    Raises: ``error`` for a file that is missing, not a regular file, larger than ``most`` or not UTF-8.
    """
    path, subject = Path(path), path if subject is None else subject
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise error(subject, found="a folder where a file is meant", fix=fix)
        if not stat.S_ISREG(found.st_mode):
            raise error(subject, found="a pipe or a device, not a file", fix=fix)
        if found.st_size > most:
            size = f"{found.st_size / 2**20:.0f} MiB of text (at most {most / 2**20:.0f} are read)"
            raise error(subject, found=size, fix=fix)
        raw = path.read_bytes()
    except FileNotFoundError:
        raise error(subject, found="no such file", fix=fix) from None
    except (OSError, ValueError) as problem:  # ValueError: a name with a zero byte
        reason = getattr(problem, "strerror", None) or problem
        raise error(subject, found=f"no readable file ({reason})", fix=fix) from problem
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        what = "UTF-16 text" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else f"bytes at {problem.start}"
        found_there = f"no readable text file ({what}, not UTF-8)"
        raise error(subject, found=found_there, fix=fix) from problem
    if "\0" in text:
        found_there = "zero bytes in the text, as binary files and UTF-16 have them"
        raise error(subject, found=found_there, fix=fix)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def require_file(
    path: str | Path, *, error: type[SynthsegError], fix: str, as_text: bool = False, empty: bool = False
) -> int:
    """The size in bytes of a regular file: opening a pipe would wait for ever, reading a device never end.

    Args:
        error, fix: kind of the error, and what it tells to do.
        as_text: the name is for a library that takes UTF-8 names only (safetensors).
        empty: let an empty file pass, of which the caller has more to say.
    Raises: ``error`` for anything else than a regular file with something in it, or a link to one.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - one look, whatever the kind of path
    except FileNotFoundError:
        raise error(path, found="no such file", fix=fix) from None
    except (OSError, ValueError) as problem:  # a link to itself; ValueError: a name with a zero byte
        reason = getattr(problem, "strerror", None) or problem
        raise error(path, found=f"a file that cannot be read ({reason})", fix=fix) from problem
    if stat.S_ISDIR(found.st_mode):
        raise error(path, found="a folder where a file is meant", fix=fix)
    if not stat.S_ISREG(found.st_mode):
        raise error(path, found="a pipe or a device, not a file", fix=fix)
    if not found.st_size and not empty:
        raise error(path, found="an empty file (0 bytes)", fix=fix)
    if as_text and _no_unicode(os.fspath(path)):
        raise error(path, found="a name or folder whose bytes are no UTF-8 text", fix="rename it")
    return found.st_size


def read_json(path: str | Path, *, error: type[SynthsegError], fix: str, any_name: bool = False) -> Any:
    """What a JSON file says. Raises: ``error`` as :func:`read_text` and :func:`parse_json`."""
    text = read_text(path, error=error, fix=fix, most=JSON_BYTES)
    return parse_json(text, path, error=error, fix=fix, any_name=any_name)


def parse_json(text: str, subject: str | Path, *, error: type[SynthsegError], fix: str, any_name: bool = False) -> Any:
    """What a JSON text says, strictly.

    Args:
        any_name: let text pass that is no Unicode: in what we wrote ourselves, names of files may be any bytes.
    Raises: ``error`` for text that is no JSON, keys given twice, NaN and infinite numbers (which JSON has not), whole
        numbers beyond 64 bits, text that is no Unicode, and values nested deeper than :data:`DEEPEST`.
    """
    try:
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as problem:
        raise error(subject, found="no readable JSON (it is nested too deeply)", fix=fix) from problem
    except ValueError as problem:  # also whole numbers of more than 4300 digits
        raise error(subject, found=f"no readable JSON ({problem})", fix=fix) from problem
    _require_usable(values, subject, error=error, fix=fix, finite=True, any_name=any_name)
    return values


def read_toml(path: str | Path, *, error: type[SynthsegError], fix: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises: ``error`` as :func:`read_text`; for text that is no TOML, NaN, whole numbers beyond 64 bits, zero bytes in
        texts, and keys of more than :data:`DEEPEST` parts.
    """
    text = read_text(path, error=error, fix=fix, most=CONFIG_BYTES)
    if _LONG_KEY.search(text):
        raise error(path, found=f"no readable TOML (a key of more than {DEEPEST} parts)", fix=fix)
    try:
        values = tomllib.loads(text)
    except RecursionError as problem:
        raise error(path, found="no readable TOML (it is nested too deeply)", fix=fix) from problem
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as problem:
        raise error(path, found=f"no readable TOML ({problem})", fix=fix) from problem
    _require_usable(values, path, error=error, fix=fix, finite=False, any_name=False)
    return values


def list_folder(folder: Path) -> list[Path]:
    """What is directly in a folder, sorted. Raises: UsageError for a folder that cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as problem:
        found = f"a folder that cannot be read ({problem.strerror or problem})"
        raise UsageError(folder, found=found, fix="check the path and its permissions") from problem


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file; False, and no error, for names that no system takes or lets us look at."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for names that are too long


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder; False, and no error, for names that no system takes or lets us look at."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for names that are too long


def exists(path: str | Path) -> bool:
    """Whether there is anything; False, and no error, for names that no system takes or lets us look at."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for names that are too long


def real_path(path: str | Path) -> Path:
    """The path with its links followed, as far as they lead: ``Path.resolve`` ends at a link to itself."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return Path(path).absolute()


def as_text(name: str | Path) -> str:
    """A file's name as text that any file can hold: bytes that are no UTF-8 become ``\\udc..``."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON does not have")


def _require_usable(
    values: Any, subject: str | Path, *, error: type[SynthsegError], fix: str, finite: bool, any_name: bool
) -> None:
    """Refuse what no reader of plain values expects. Without recursion: they may be deep. Raises: ``error``."""
    waiting = [("", values, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        complaint = (
            f"values nested more than {DEEPEST} deep" if depth > DEEPEST else _complaint(value, finite, any_name)
        )
        if complaint:
            raise error(f"{subject}: {place}" if place else subject, found=complaint, fix=fix)
        if isinstance(value, Mapping):
            waiting += [("", key, depth + 1) for key in value]
            waiting += [
                (f"{place}.{key}"[-200:] if place else str(key)[:200], one, depth + 1) for key, one in value.items()
            ]
        elif isinstance(value, list):
            waiting += [(place, one, depth + 1) for one in value]


def _complaint(value: Any, finite: bool, any_name: bool) -> str:
    if isinstance(value, int) and not -_WHOLE < value < _WHOLE:
        return "a whole number of more than 64 bits"
    if isinstance(value, float) and (math.isnan(value) or (finite and math.isinf(value))):
        return f"{value}, which is no number that can be used"
    if isinstance(value, str) and "\0" in value:
        return "text with zero bytes"
    if isinstance(value, str) and not any_name and _no_unicode(value):
        return "text that is no Unicode"
    return ""


def _no_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
