"""Reading scans and label maps: NIfTI-1 and -2, MGH, MGZ and npz.

Whatever is wrong with a file ends in a VolumeError that names it; whatever can be mended safely is mended and noted.
"""

from __future__ import annotations

import gzip
import logging
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, ImageDataError

from synthseg.errors import VolumeError
from synthseg.reading import exists, is_folder, require_file
from synthseg.volumes.checks import check_affine, check_image, check_labels, check_shape, check_size
from synthseg.volumes.headers import mgh_geometry, nifti_geometry
from synthseg.volumes.npz import npz_array, npz_headers
from synthseg.volumes.promised import check_held, open_image, shape_of, unpacked
from synthseg.volumes.volume import VOLUME_EXTENSIONS, Volume, extension_of

_AGAIN = "copy, download or export it again"
_NAMED = 20  # arrays that a message names


@dataclass(frozen=True)
class _Source:
    """An opened file: what its header says, and how to load its voxels."""

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    units: str
    notes: tuple[str, ...]
    load: Callable[[bool], np.ndarray]  # True: values as stored (scaled); False: as float32


def read_volume(path: str | Path, *, labels: bool = False) -> Volume:
    """Read a scan, or a label map, as one 3D volume.

    Args:
        path: .nii, .nii.gz, .mgz, .mgh or .npz (array ``vol_data`` or the only 3D one, and perhaps a 4 x 4 ``affine``).
        labels: read whole numbers. Otherwise values are scaled as the header says.
    Returns: the volume, float32 or (labels) int32, in the file's own axis order. ``notes`` tells what was odd: dropped
        axes of size 1, few slices, NaN or infinite voxels (set to 0), sform and qform at odds (nibabel's choice, the
        sform, is used), voxel sizes repaired from the sform, units converted to mm, an orientation that is a guess.
    Raises: VolumeError for anything that is not one usable 3D volume: see ``volumes/checks.py`` for the limits. Size
        and geometry are judged by the header, before voxels are read.
    Source: reference 6.2 (formats) and 6.3, step 1; 9.3 lists what the original left unchecked.
    """
    path = Path(path)
    extension = require_volume_file(path)
    complaints: list[str] = []
    with translated(path), nibabel_complaints(complaints):
        source = _open_npz(path) if extension == ".npz" else _open_nibabel(path, extension)
        if source.dtype.fields is not None or source.dtype.kind not in "biuf":
            kind = (
                "complex numbers"
                if source.dtype.kind == "c"
                else "colours (RGB)"
                if source.dtype.fields
                else "no numbers"
            )
            raise VolumeError(
                path, found=f"{kind} as voxels ({source.dtype})", fix="save one real number per voxel first"
            )
        shape, shape_notes = check_shape(source.shape, path)
        check_affine(source.affine, path, units=source.units, labels=labels)
        check_size(shape, source.affine, path)
        data = source.load(labels).reshape(shape, order="A")
    data, data_notes = (check_labels(data, path), []) if labels else check_image(data, path)
    told = [f"The header was mended on reading: {complaint}." for complaint in complaints]
    return Volume(data, source.affine, path, (*source.notes, *told, *shape_notes, *data_notes))


def require_volume_file(path: Path) -> str:
    """The extension of an existing, non-empty file with a name we know."""
    extension = extension_of(path)
    if is_folder(path):
        raise VolumeError(path, found="a folder", fix="give one file, or segment the folder's scans as a batch")
    if not extension and exists(path):
        known = ", ".join(VOLUME_EXTENSIONS)
        fix = f"convert it to one of {known} (DICOM: with dcm2niix)"
        raise VolumeError(path, found=f"the unknown file type {path.suffix!r}", fix=fix)
    require_file(path, error=VolumeError, fix="check the path and the extension, or copy the file again")
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise VolumeError(path, found=f"a file that cannot be read ({error})", fix="check its permissions") from error
    if start[128:] == b"DICM":
        raise VolumeError(path, found="a DICOM file", fix="convert the series to NIfTI first, e.g. with dcm2niix")
    zipped = start[:2] == b"\x1f\x8b"
    if extension == ".nii.gz" and not zipped:
        raise VolumeError(
            path, found="a file that is not gzip-compressed", fix=f"rename it to .nii if it is NIfTI, or {_AGAIN}"
        )
    if extension in (".nii", ".mgh") and zipped:
        fix = "rename it to .nii.gz" if extension == ".nii" else "rename it to .mgz"
        raise VolumeError(path, found=f"a gzip-compressed file named {extension}", fix=fix)
    return extension


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Whatever the format libraries raise, as VolumeErrors that name the file (and keep the cause)."""
    try:
        with np.errstate(all="ignore"):  # numbers beyond their type are told by what they lead to
            yield
    except VolumeError:
        raise
    except MemoryError as error:
        fix = "close other programs, or crop the scan to the head"
        raise VolumeError(path, found="more voxels than there is memory for", fix=fix) from error
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise VolumeError(path, found=f"a truncated or damaged file ({error})", fix=_AGAIN) from error
    except (ImageFileError, HeaderDataError, ImageDataError) as error:
        found = f"no readable image ({_first_line(error)})"
        raise VolumeError(path, found=found, fix=f"check that it is what its name says, or {_AGAIN}") from error
    except Exception as error:  # damaged files make the parsers raise anything: MGHError, TokenError, RuntimeError, ...
        found = f"a truncated or damaged file ({_first_line(error)})"
        raise VolumeError(path, found=found, fix=_AGAIN) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def nibabel_complaints(heard: list[str]) -> Iterator[None]:
    """Collect what nibabel logs about this thread's header, instead of printing it."""
    here = threading.get_ident()

    def listen(record: logging.LogRecord) -> bool:
        if record.thread != here:
            return True
        message = record.getMessage().strip().rstrip(".")
        # Voxel sizes and form codes have notes of their own, in plainer words.
        if not message.startswith(("pixdim[1,2,3]", "sform_code", "qform_code")) and message not in heard:
            heard.append(message)
        return False

    logger = nib.imageglobals.logger
    logger.addFilter(listen)
    try:
        yield
    finally:
        logger.removeFilter(listen)


def _open_nibabel(path: Path, extension: str) -> _Source:
    image = open_image(path)
    if extension in (".mgz", ".mgh"):
        with unpacked(path) as file:
            affine, notes, units = mgh_geometry(image, file.read(30))
    elif isinstance(image, nib.Nifti1Image):  # Nifti2Image is a kind of it
        with unpacked(path) as file:
            raw = type(image.header).from_fileobj(file, check=False)
        affine, notes, units = nifti_geometry(image, raw, path)
    else:
        found = f"{type(image).__name__.removesuffix('Image')} data in a file named {extension}"
        raise VolumeError(path, found=found, fix="convert it to NIfTI first")

    def load(as_stored: bool) -> np.ndarray:
        check_held(image, path)
        if as_stored:
            return np.asanyarray(image.dataobj)
        if (image.dataobj.slope, image.dataobj.inter) == (1, 0):  # nibabel passes 32-bit integers through float64
            return _as_float32(image.dataobj.get_unscaled())
        data: np.ndarray = image.get_fdata(dtype=np.float32, caching="unchanged")
        return data

    return _Source(shape_of(image), image.get_data_dtype(), affine, units, tuple(notes), load)


def _as_float32(data: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32: infinite, and noted as such
        return data.astype(np.float32, copy=False)


def _open_npz(path: Path) -> _Source:
    headers = npz_headers(path)
    key = "vol_data"
    if key not in headers:
        volumes = [name for name, (shape, _) in headers.items() if len(shape) == 3]
        if len(volumes) != 1:
            named = str(sorted(headers)) if len(headers) <= _NAMED else f"{len(headers)} arrays"
            found = f"{len(volumes)} 3D arrays among {named}"
            raise VolumeError(path, found=found, fix="store the volume under the key 'vol_data'")
        key = volumes[0]
    notes = [] if key == "vol_data" else [f"The volume was taken from the array {key!r}."]
    affine = np.eye(4)
    if "affine" in headers:
        if headers["affine"][0] != (4, 4) or headers["affine"][1].kind not in "iuf":
            raise VolumeError(path, found=f"an 'affine' of shape {headers['affine'][0]}", fix="store a 4 x 4 matrix")
        affine = npz_array(path, "affine").astype(np.float64)
    else:
        notes.append("The file holds no affine: voxels of 1 mm with axes to the right, front and top are assumed.")

    def load(as_stored: bool) -> np.ndarray:
        data = npz_array(path, key)
        return data if as_stored else _as_float32(data)

    return _Source(*headers[key], affine, "", tuple(notes), load)
