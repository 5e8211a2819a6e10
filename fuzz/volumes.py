"""Targets: scans and label maps."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fuzz.harness import Target
from fuzz.mutate import NUMBERS, NUMBERS_64, any_bytes
from fuzz.zips import structured_zip
from synthseg.errors import SynthsegError
from synthseg.inference.original.scan import read_scan
from synthseg.volumes import read_volume
from synthseg.volumes.channels import read_channels

SHAPE = (6, 7, 8)
AFFINE = np.array([[-1.0, 0, 0, 10], [0, 0, 2, -20], [0, 1.5, 0, 7], [0, 0, 0, 1]])
_FLOATS = (
    0.0,
    -0.0,
    1e-45,
    1e-6,
    1e30,
    -1e30,
    3.4e38,
    float("nan"),
    float("inf"),
    -float("inf"),
    0.5,
    -1.0,
    352.0,
    2e9,
)
_SIDES = (0, 1, -1, 2, 3, 4, 8, 6, 7, 32767, -32768, 1000, 500)
_MOST_UNPACKED = 8 << 20


def _values(dtype: Any = np.int16) -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def _write(image: Any, path: Path) -> Path:
    image.to_filename(path)
    return path


def _nifti_images() -> list[Any]:
    scaled = nib.Nifti1Image(_values(), AFFINE)
    scaled.header.set_slope_inter(0.5, -3)
    scaled.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"hello there"))
    by_qform = nib.Nifti1Image(_values("uint8"), AFFINE)
    by_qform.set_sform(None, 0)
    by_qform.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    swapped = nib.Nifti1Image(_values(">f4"), AFFINE, nib.Nifti1Header(endianness=">"))
    single = nib.Nifti1Image(_values("int32")[..., None], AFFINE)
    single.header.set_xyzt_units("micron")
    single.set_sform(AFFINE * 1000, 1)
    return [scaled, by_qform, swapped, single, nib.Nifti2Image(_values("float64"), AFFINE)]


def _nifti_seeds(folder: Path) -> list[Path]:
    return [_write(image, folder / f"nifti-{i}.nii") for i, image in enumerate(_nifti_images())]


def _packed_seeds(folder: Path) -> list[Path]:
    return [_write(image, folder / f"nifti-{i}.nii.gz") for i, image in enumerate(_nifti_images())]


def _four_seeds(folder: Path) -> list[Path]:
    four = np.stack([_values("float32"), _values("float32") + 1], -1)
    names = ("four.nii", "four.nii.gz")
    return [_write(nib.Nifti1Image(four, AFFINE), folder / name) for name in names] + [
        _write(nib.MGHImage(four, AFFINE), folder / "four.mgz")
    ]


def _mgh_seeds(folder: Path) -> list[Path]:
    return [_write(nib.MGHImage(_values(t), AFFINE), folder / f"mgh-{t}.mgh") for t in ("uint8", "int32", "float32")]


def _mgz_seeds(folder: Path) -> list[Path]:
    return [_write(nib.MGHImage(_values(t), AFFINE), folder / f"mgh-{t}.mgz") for t in ("int16", "float32")]


def _npz_seeds(folder: Path) -> list[Path]:
    paths = [folder / f"volume-{n}.npz" for n in range(3)]
    np.savez(paths[0], vol_data=_values("float32"), affine=AFFINE)
    np.savez_compressed(paths[1], anything=np.asfortranarray(_values()), other=np.arange(3))
    np.savez_compressed(paths[2], vol_data=_values("int64"), affine=AFFINE.astype(np.int64))
    return paths


def _scan(path: Path) -> None:
    """As a label map and as a scan; what is accepted must be what is promised."""
    try:
        labels = read_volume(path, labels=True)
        assert (labels.data.dtype, labels.data.ndim) == (np.int32, 3), labels.data.dtype
    except SynthsegError:
        pass  # the same file must then be refused as a scan, or be one
    volume = read_volume(path)
    assert (volume.data.dtype, volume.data.ndim) == (np.float32, 3), volume.data.dtype
    assert np.isfinite(volume.data).all()
    assert np.isfinite(volume.affine).all(), volume.affine
    assert all(note.isprintable() for note in volume.notes), volume.notes


def _channels(path: Path) -> None:
    volumes = read_channels(path, 2)
    assert [bool(np.isfinite(volume.data).all()) for volume in volumes] == [True, True]


def _like_original(path: Path) -> None:
    scan = read_scan(path)
    assert np.isfinite(scan.data).all()
    assert np.isfinite(scan.affine).all(), scan.affine


def _fields(kind: Any) -> list[tuple[int, str, int, int]]:
    """Offset, kind and bytes a number, and count of every field of a NIfTI header."""
    dtype = kind.template_dtype
    found = []
    for name in dtype.names:
        field, offset = dtype.fields[name][:2]
        base, shape = field.subdtype or (field, ())
        if base.kind in "iuf":
            found.append((offset, base.kind, base.itemsize, int(np.prod(shape, dtype=int))))
    return found


NIFTI1, NIFTI2 = _fields(nib.Nifti1Header), _fields(nib.Nifti2Header)
# Offset, kind, bytes, count: version, four sides, type, degrees of freedom, flag, geometry.
MGH = [
    (0, "i", 4, 1),
    (4, "i", 4, 4),
    (4, "i", 4, 4),
    (20, "i", 4, 1),
    (24, "i", 4, 1),
    (28, "i", 2, 1),
    (30, "f", 4, 15),
]


def number(rng: random.Random, kind: str, size: int, order: str) -> bytes:
    """A number of a field's type that a parser may stumble over."""
    if kind == "f":
        return struct.pack(order + ("f" if size == 4 else "d"), rng.choice(_FLOATS))
    choices = _SIDES if rng.random() < 0.5 else NUMBERS + (NUMBERS_64 if size == 8 else ())
    return (int(rng.choice(choices)) % 256**size).to_bytes(size, "little" if order == "<" else "big")


def structured_nifti(rng: random.Random, content: bytes) -> bytes:
    """Header fields that lie: sides, types, offsets, scales, affines, extensions."""
    order = ">" if content[:4] in (b"\0\0\1\x5c", b"\0\0\2\x1c") else "<"
    fields = NIFTI2 if content[:4] in (b"\0\0\2\x1c", b"\x1c\2\0\0") else NIFTI1
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.1:  # the size of an extension
            start = 540 if fields is NIFTI2 else 348
            changed[start + 4 : start + 8] = number(rng, "i", 4, order)
            changed[start : start + 1] = b"\1"
            continue
        offset, kind, size, count = rng.choice(fields)
        if rng.random() < 0.4:  # sides, type, bits, voxel sizes, offset, scale
            offset, kind, size, count = rng.choice(fields[3:12])
        offset += size * rng.randrange(count)
        changed[offset : offset + size] = number(rng, kind, size, order)
    return bytes(changed)


def structured_mgh(rng: random.Random, content: bytes) -> bytes:
    """As for NIfTI: sides, type and geometry."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        offset, kind, size, count = rng.choice(MGH)
        offset += size * rng.randrange(count)
        changed[offset : offset + size] = number(rng, kind, size, ">")
    return bytes(changed)


def packed(inner: Callable[[random.Random, bytes], bytes], rng: random.Random, content: bytes) -> bytes:
    """Change what is inside a gzip file; or make it inflate, follow it by another, or lie about its length."""
    try:
        plain = zlib.decompressobj(31).decompress(content, _MOST_UNPACKED)
    except zlib.error:
        return any_bytes(rng, content)
    how = rng.random()
    if how < 0.75:
        changed = inner(rng, plain) if rng.random() < 0.8 else any_bytes(rng, plain)
        return gzip.compress(changed, 1, mtime=0)
    if how < 0.85:
        return gzip.compress(plain + bytes(rng.choice((1 << 10, 1 << 20, 8 << 20))), 1, mtime=0)
    if how < 0.92:
        return content + rng.choice((content, b"\x1f\x8b", b"trailing", gzip.compress(bytes(1 << 20))))
    return content[:-8] + rng.randbytes(8)


def _as_mgz(rng: random.Random, content: bytes) -> bytes:
    return packed(structured_mgh, rng, content)


def _four(rng: random.Random, content: bytes) -> bytes:
    if content[:2] != b"\x1f\x8b":
        return structured_nifti(rng, content)
    return packed(rng.choice((structured_nifti, structured_mgh)), rng, content)


def bomb(kind: str, sides: tuple[int, ...], held: int) -> bytes:
    """A gzip file whose header states sides and which inflates to ``held`` bytes of zeros after the header.

    Args:
        kind: "nifti" or "mgh".
    """
    if kind == "nifti":
        header = nib.Nifti1Header()
        header.set_data_shape(SHAPE)
        header.set_data_dtype(np.float64)
        header["dim"][: len(sides) + 1] = (len(sides), *sides)
        header["vox_offset"] = 352
        header["magic"] = b"n+1"
        start = header.binaryblock + bytes(4)
    else:
        start = struct.pack(">7ih", 1, *sides, *[1] * (4 - len(sides)), 3, 0, 0) + bytes(254)
    out = BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=0) as file:
        file.write(start)
        for _ in range(held >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(held & ((1 << 20) - 1)))
    return out.getvalue()


TARGETS = (
    Target("nifti", _nifti_seeds, _scan, structured_nifti),
    Target("nifti-gz", _packed_seeds, _scan, partial(packed, structured_nifti)),
    Target("nifti-4d", _four_seeds, _channels, _four),
    Target("mgh", _mgh_seeds, _scan, structured_mgh),
    Target("mgz", _mgz_seeds, _scan, _as_mgz),
    Target("npz", _npz_seeds, _scan, structured_zip),
    Target(
        "original-scan",
        lambda folder: [*_packed_seeds(folder), *_four_seeds(folder), *_npz_seeds(folder)],
        _like_original,
        lambda rng, content: (structured_zip if content[:2] == b"PK" else _four)(rng, content),
    ),
)
