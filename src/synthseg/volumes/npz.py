"""Arrays in .npz files: what each is, before it is read. Nothing is ever unpickled. Needs numpy only."""

from __future__ import annotations

import math
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np

from synthseg.errors import VolumeError
from synthseg.volumes.checks import MAX_VOXELS
from synthseg.volumes.promised import DEFLATE, MOST_CHANNELS

MOST_ARRAYS = 1000  # in a file
_HEADER_BYTES = 1 << 14  # numpy itself refuses more than 10,000
_FIX = "save the volume anew: numpy.savez_compressed(path, vol_data=array)"

Header = tuple[tuple[int, ...], np.dtype]


def npz_headers(path: Path) -> dict[str, Header]:
    """Shape and type of each array, none of them read.

    Raises: VolumeError for an array that the file is too small for, that is packed in another way than numpy packs, or
        that is larger than any volume; for more than :data:`MOST_ARRAYS`; what ``zipfile`` and numpy raise for damage.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_ARRAYS:
            raise VolumeError(path, found=f"an archive of {len(members):,} files", fix=_FIX)
        return {member.filename.removesuffix(".npy"): _header(archive, member, path) for member in members}


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Header:
    name = member.filename[:80]
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise VolumeError(path, found=f"the array {name!r} packed in another way than numpy's", fix=_FIX)
    with archive.open(member) as file:
        start = BytesIO(file.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    size = math.prod(shape) * max(1, dtype.itemsize)
    held = member.compress_size * (1 if member.compress_type == zipfile.ZIP_STORED else DEFLATE)
    if size > min(held, member.file_size) and not dtype.hasobject:  # objects are pickled, and never read
        found = f"an array {name!r} that its file is too small for: shape {shape} of {dtype}"
        raise VolumeError(path, found=f"a truncated or damaged file ({found})", fix=_FIX)
    if math.prod(shape) > MAX_VOXELS * MOST_CHANNELS:
        raise VolumeError(path, found=f"an array {name!r} of shape {shape}", fix="save one 3D volume")
    return tuple(int(n) for n in shape), dtype


def npz_array(path: Path, key: str) -> np.ndarray:
    """One array. Ask :func:`npz_headers` first: this trusts the file."""
    with np.load(path, allow_pickle=False) as arrays:
        array: np.ndarray = arrays[key]
    return array
