"""Writing volumes: NIfTI-1, MGZ and npz, whole or not at all.

A file is written beside its target under another name, forced to disk, and then renamed over it: whoever sees the
target sees a complete file, also after a crash or a full disk. The bytes depend on the data only (no time stamps).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from synthseg.errors import OutputError
from synthseg.files import atomic_file
from synthseg.volumes.volume import VOLUME_EXTENSIONS, Volume, extension_of

_COMMENT = 6  # NIfTI extension code for plain text
_MGH_DTYPES = (np.uint8, np.int16, np.int32, np.float32)  # all that FreeSurfer's format holds


def write_volume(volume: Volume, path: str | Path, *, dtype: Any = None, header_like: str | Path | None = None) -> Path:
    """Write a volume, atomically.

    Args:
        path: ends in .nii, .nii.gz, .mgz, .mgh or .npz (arrays ``vol_data`` and ``affine``); folders are made.
        dtype: the type on disk. By default that of the data, with float64 and float16 as float32, int64 as int32 and
            bool as uint8; MGH, which knows few types, takes the next larger one.
        header_like: a NIfTI file whose space (scanner, aligned, MNI, ...: the code of the form that is used) is kept;
            otherwise, and without a code there, it is 1, scanner.
    Returns: the path. sform and qform are both set, in mm; with a sheared affine only the sform: no qform can say it.
    Raises: OutputError for an unknown extension, values that ``dtype`` cannot hold, or a place that cannot be written.
    """
    path = Path(path)
    extension = _require_extension(path)
    if volume.data.ndim != 3:
        raise OutputError(path, found=f"data of shape {volume.data.shape}", fix="pass [X, Y, Z], or use write_array4d")
    data = _as_stored(volume.data, dtype, extension, path)
    code = 1 if header_like is None else _space_code(header_like)
    _write(path, extension, data, volume.affine, code, None)
    return path


def write_array4d(
    array: np.ndarray,
    affine: np.ndarray,
    path: str | Path,
    names: Sequence[str] | None = None,
    *,
    header_like: str | Path | None = None,
) -> Path:
    """Write posteriors [C, X, Y, Z] as one float32 file, atomically, channels last: (X, Y, Z, C).

    Args:
        names: of the channels; kept in NIfTI as a comment extension (JSON, ``{"channels": [...]}``), in npz as the
            array ``channels``; MGH has no place for them.
        header_like: as in :func:`write_volume`.
    Raises: OutputError as in :func:`write_volume`, and if there are not C names.
    """
    path = Path(path)
    extension = _require_extension(path)
    if array.ndim != 4 or (names is not None and len(names) != len(array)):
        found = f"an array of shape {array.shape} with {'no' if names is None else len(names)} names"
        raise OutputError(path, found=found, fix="pass [C, X, Y, Z] and C names")
    data = np.moveaxis(array, 0, -1).astype(np.float32, copy=False)
    code = 1 if header_like is None else _space_code(header_like)
    _write(path, extension, data, affine, code, None if names is None else [str(name) for name in names])
    return path


def _require_extension(path: Path) -> str:
    extension = extension_of(path)
    if not extension:
        known = ", ".join(VOLUME_EXTENSIONS)
        raise OutputError(path, found="a file name without a volume's extension", fix=f"end it in one of {known}")
    return extension


def _as_stored(data: np.ndarray, dtype: Any, extension: str, path: Path) -> np.ndarray:
    """The data in the type it will have on disk; OutputError rather than values changed without a word."""
    kept = {"float64": np.float32, "float16": np.float32, "int64": np.int32, "bool": np.uint8}
    target = np.dtype(kept.get(data.dtype.name, data.dtype) if dtype is None else dtype)
    if extension in (".mgz", ".mgh") and target not in _MGH_DTYPES:
        wider = [np.dtype(kind) for kind in _MGH_DTYPES if np.can_cast(target, kind)]
        if not wider:
            raise OutputError(
                path, found=f"{target} values, which MGH cannot hold", fix="use float32, or write .nii.gz"
            )
        target = wider[0]
    if np.issubdtype(target, np.integer) and not np.can_cast(data.dtype, target):
        limits = np.iinfo(target)
        low, high = data.min(), data.max()
        whole = np.issubdtype(data.dtype, np.integer) or bool((data == np.rint(data)).all())
        if not (whole and low >= limits.min and high <= limits.max):
            found = f"values from {low} to {high} that {target} cannot hold exactly"
            raise OutputError(path, found=found, fix="choose a larger dtype, or float32")
    return data.astype(target, copy=False)


def _space_code(header_like: str | Path) -> int:
    if extension_of(header_like) not in (".nii", ".nii.gz"):
        return 1  # the other formats have no such code
    try:
        image: Any = nib.load(header_like)
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
        return next((code for code in codes if code > 0), 1)
    except (OSError, ValueError, EOFError, KeyError, ImageFileError, HeaderDataError) as error:
        fix = "give the NIfTI file whose space the result is in, or leave header_like out"
        raise OutputError(header_like, found=f"no readable NIfTI header ({error})", fix=fix) from error


def _write(
    path: Path, extension: str, data: np.ndarray, affine: np.ndarray, code: int, names: list[str] | None
) -> None:
    with atomic_file(path) as file:
        if extension == ".npz":
            arrays = {"vol_data": data, "affine": np.asarray(affine, dtype=np.float64)}
            if names is not None:
                arrays["channels"] = np.array(names)
            np.savez_compressed(file, allow_pickle=False, **arrays)
            return
        mgh = extension in (".mgz", ".mgh")
        image = nib.MGHImage(data, affine) if mgh else _nifti(data, affine, code, names)
        if extension in (".nii.gz", ".mgz"):
            # level 1: label maps come out 10 % larger than at level 9, in a fraction of the time
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def _nifti(data: np.ndarray, affine: np.ndarray, code: int, names: list[str] | None) -> Any:
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=code)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4)
    image.set_qform(affine, code=0 if sheared else code, update_affine=False)
    if names is not None:
        text = json.dumps({"channels": names}).encode()
        image.header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, text))
    return image
