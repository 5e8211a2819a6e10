"""Reading ``.npy`` files, in which the original keeps its lists and priors. Nothing in them is ever executed."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np

from synthseg.errors import LabelError, SynthsegError
from synthseg.reading import exists, require_file

MAX_VALUE = 2**31 - 1
# what numpy raises for headers of which a byte was changed
_DAMAGED = (ValueError, TypeError, EOFError, MemoryError, OverflowError, RecursionError, SyntaxError, TokenError)
_HEADER_BYTES = 10_000  # more is refused by numpy, too
_MAGIC, _ZIP, _PICKLE = b"\x93NUMPY", b"PK", b"\x80"  # first bytes of .npy and .npz files, and of pickles since 2003


def read_npy(path: str | Path, *, error: type[SynthsegError] = LabelError) -> np.ndarray:
    """Load one array; pickles are refused, as a pickle may hold a program.

    Args:
        error: the kind of error to raise.
    Raises: ``error`` naming the file, if it is missing, damaged, pickled, or an archive of several arrays.
    """
    path = Path(path)
    fix = "save one plain array a file: np.save(path, array)"
    size = require_file(path, error=error, fix=fix, empty=True) if exists(path) else 0
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
            file.seek(0)
            if start != _MAGIC:
                raise error(path, found=_what(start), fix=fix)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # files of Python 2 are read like any other
                shape, dtype = _header(file)
                if math.prod(shape) * max(1, dtype.itemsize) > size:
                    raise ValueError(f"{size:,} bytes that should hold a shape of {shape} of {dtype}")
                file.seek(0)
                loaded: np.ndarray = np.load(file, allow_pickle=False)
            return loaded
    except OSError as problem:
        raise error(path, found=f"no readable file ({problem.strerror or problem})", fix="check the path") from problem
    except _DAMAGED as problem:
        if "allow_pickle" in str(problem):
            fix = "give numbers or text of a plain type: np.save(path, np.array(list_of_them))"
            raise error(path, found=_what(_PICKLE), fix=fix) from problem
        found = f"a damaged array ({' '.join(str(problem).split()[:12]) or type(problem).__name__})"
        raise error(path, found=found, fix="copy the file again, or save it anew by np.save") from problem


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of what a file says that it holds."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"format version {version[0]}.{version[1]}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if version != (1, 0):  # a length of 32 bits
        length = int.from_bytes(file.read(4), "little")
        if length > _HEADER_BYTES:
            raise ValueError(f"a header of {length:,} bytes")
        file.seek(-4, 1)
    shape, _, dtype = read(file)
    return shape, dtype


def _what(start: bytes) -> str:
    if start.startswith(_PICKLE):
        return "pickled objects, which may hold a program and are never loaded"
    return "an archive of arrays (.npz)" if start.startswith(_ZIP) else "no .npy file"


def as_list(values: np.ndarray, subject: str | Path) -> np.ndarray:
    """A list as the original's files hold it: one axis, at least one entry.

    Raises: LabelError naming ``subject``.
    """
    if values.ndim != 1:
        found = f"an array of shape {list(values.shape)}" if values.ndim else f"the single value {values[()]!r}"
        raise LabelError(subject, found=found, fix="give one list: an array of one axis, an entry a label")
    if not len(values):
        raise LabelError(subject, found="an empty list", fix="give an entry for each label, the background first")
    return values


def whole_numbers(values: np.ndarray, subject: str | Path) -> tuple[int, ...]:
    """A list of label values or classes, whatever type they were saved with.

    Raises: LabelError naming ``subject`` and the first entry (counted from 0) that is no whole number of 0 to 2^31 - 1.
    """
    values = as_list(values, subject)
    if values.dtype.kind not in "iuf":
        raise LabelError(subject, found=f"entries of type {values.dtype}", fix="give whole numbers")
    with np.errstate(invalid="ignore"):
        rounded = np.rint(values)
    whole = np.isfinite(values) & (values == rounded) & (values >= 0) & (values <= MAX_VALUE)
    if not whole.all():
        entry = int(np.flatnonzero(~whole)[0])
        found = f"entry {entry}: {values[entry].item()!r}"
        raise LabelError(subject, found=found, fix=f"give whole numbers from 0 to {MAX_VALUE}")
    return tuple(int(value) for value in values)


def words(values: np.ndarray, subject: str | Path) -> tuple[str, ...]:
    """A list of names.

    Raises: LabelError naming ``subject`` and the first entry (counted from 0) that is no name.
    """
    values = as_list(values, subject)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind != "U":
        raise LabelError(subject, found=f"entries of type {values.dtype}", fix="give an array of text, a name a label")
    codes = np.frombuffer(values.tobytes(), np.dtype(np.uint32).newbyteorder(values.dtype.byteorder))
    if codes.size and codes.max() > sys.maxunicode:  # on which numpy itself fails
        raise LabelError(subject, found="damaged text", fix="copy the file again, or save it anew by np.save")
    names = tuple(str(name).strip() for name in values)
    if "" in names:
        raise LabelError(subject, found=f"entry {names.index('')}: no name", fix="give every label a name")
    return names
