"""Files that the tests of reading make, and break."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg.volumes import read_volume

SHAPE = (12, 13, 14)
AFFINE = np.array([[-1.0, 0, 0, 10], [0, 0, 2, -20], [0, 1.5, 0, 7], [0, 0, 0, 1]])


def make_head() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **header: object) -> Path:
    """A NIfTI file, whose raw header fields can be set to anything."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    if header:
        patch(path, **header)
    return path


def patch(path: Path, **fields: object) -> None:
    """Change header fields on disk, as nibabel would not write them."""
    raw = path.read_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + raw[348:])


def set_pixdim(path: Path, *sizes: float) -> None:
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    pixdim = header["pixdim"].copy()
    pixdim[1:4] = sizes
    patch(path, pixdim=pixdim)


def notes_of(path: Path) -> str:
    return " ".join(read_volume(path).notes)
