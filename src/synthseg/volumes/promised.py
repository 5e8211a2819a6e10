"""What a header promises, held against the size of its file, before any of it is believed.

A file of a few bytes may state any shape, and a compressed one may inflate a thousandfold: memory and time are bounded
by what is checked here and by the limits of ``volumes/checks.py``, not by what a file says.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np

from synthseg.errors import VolumeError
from synthseg.volumes.checks import MAX_VOXELS
from synthseg.volumes.volume import extension_of

DEFLATE = 1032  # deflate packs at most so many bytes into one
MOST_AHEAD = 64 << 20  # bytes before the voxels: a header with its extensions
MOST_CHANNELS = 20  # of a volume, for limits that hold before the shape is judged
_DAMAGED = "copy, download or export it again"
_WHAT = f"check that it is what its name says, or {_DAMAGED}"
_MGH_BYTES = {0: 1, 1: 4, 3: 4, 4: 2, 10: 2}  # a voxel, by type


def unpacked(path: Path) -> BinaryIO:
    """A volume's file, opened for reading, decompressed if it is gzip-compressed."""
    zipped = extension_of(path) in (".nii.gz", ".mgz")
    return cast(BinaryIO, gzip.open(path, "rb") if zipped else path.open("rb"))


def open_image(path: Path) -> Any:
    """A NIfTI or MGH file opened by nibabel, its voxels unread, unless its first bytes would make that dangerous.

    Raises: VolumeError for sizes that the file cannot hold; whatever nibabel raises.
    """
    with unpacked(path) as file:
        start = file.read(544)
        if extension_of(path) in (".mgz", ".mgh"):
            _check_mgh(start, path)
        else:
            _check_nifti(start, file, path)
    return nib.load(path, mmap=False)  # a mapped file may vanish, and the process with it


def check_held(image: Any, path: Path) -> None:
    """VolumeError if the file is too short for the voxels that the header of an opened image promises."""
    stored = image.dataobj
    size = math.prod(shape_of(image)) * np.dtype(image.get_data_dtype()).itemsize
    _require_room(size + max(0, int(stored.offset)), path)


def shape_of(image: Any) -> tuple[int, ...]:
    """The shape of an opened image as plain numbers: headers give numpy's, which overflow and print as ``np.int32``."""
    return tuple(int(n) for n in image.shape)


def _require_room(promised: int, path: Path) -> None:
    size = path.stat().st_size
    zipped = extension_of(path) in (".nii.gz", ".mgz")
    if promised > size * (DEFLATE if zipped else 1):
        found = f"a truncated or damaged file (its header promises {promised:,} bytes, and the file has {size:,}"
        raise VolumeError(path, found=f"{found}{' compressed' if zipped else ''})", fix=_DAMAGED)


def _check_mgh(start: bytes, path: Path) -> None:
    """nibabel goes to the end of the voxels at once: of a compressed file, all of them are inflated for it."""
    if len(start) < 284:
        raise VolumeError(path, found=f"a truncated or damaged file ({len(start)} bytes of a header)", fix=_DAMAGED)
    version, *shape, kind = struct.unpack(">6i", start[:24])
    if version != 1 or kind not in _MGH_BYTES or min(shape) < 1:
        return  # nibabel says what is wrong, without going anywhere
    voxels = math.prod(shape)
    _require_room(284 + voxels * _MGH_BYTES[kind], path)
    if voxels > MAX_VOXELS * MOST_CHANNELS:
        found = f"{voxels / 1e6:,.0f} million voxels, shape {tuple(shape)}"
        raise VolumeError(path, found=found, fix="save one 3D volume first")


def _check_nifti(start: bytes, file: BinaryIO, path: Path) -> None:
    """Where the voxels begin; extensions of the header, which nibabel reads by the sizes that they state."""
    if start[344:347] in (b"n+1", b"ni1"):
        order = "<" if 1 <= struct.unpack("<h", start[40:42])[0] <= 7 else ">"
        offset, at = struct.unpack(order + "f", start[108:112])[0], 348
    elif len(start) == 544 and 540 in struct.unpack("<i", start[:4]) + struct.unpack(">i", start[:4]):
        order = "<" if 1 <= struct.unpack("<q", start[16:24])[0] <= 7 else ">"
        offset, at = struct.unpack(order + "q", start[168:176])[0], 540
    else:
        raise VolumeError(path, found="no readable image (it has no NIfTI header)", fix=_WHAT)
    if not 0 <= offset <= MOST_AHEAD:  # NaN, too
        found = f"a truncated or damaged file (voxels that begin at byte {offset:g})"
        raise VolumeError(path, found=found, fix=_DAMAGED)
    place, end = at + 4, int(offset)
    while len(start) > at and start[at] and not 0 <= end - place < 16:
        file.seek(place)
        head = file.read(8)
        size = struct.unpack(order + "i", head[:4])[0] if len(head) == 8 else 0
        if not 16 <= size <= end - place:
            found = f"a truncated or damaged file (a header extension of {size:,} bytes where {end - place:,} are left)"
            raise VolumeError(path, found=found, fix=_DAMAGED)
        place += size
