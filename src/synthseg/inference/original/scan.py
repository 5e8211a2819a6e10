"""A scan as the original reads it: intensities in double precision, voxel sizes as the header states them."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from synthseg.errors import SynthsegError, VolumeError
from synthseg.volumes import Volume, read_volume
from synthseg.volumes.checks import MAX_VOXELS, check_affine, check_image, check_shape, check_size
from synthseg.volumes.headers import mgh_geometry, nifti_geometry
from synthseg.volumes.npz import npz_array, npz_headers
from synthseg.volumes.promised import check_held, open_image, shape_of
from synthseg.volumes.read import nibabel_complaints, require_volume_file, translated
from synthseg.volumes.volume import extension_of, spacing_of

MOST_CHANNELS = 10  # up to this size a last axis is taken for channels (reference 6.3, step 1)
NPZ_KEY = "vol_data"
HEADERS_APART = 1e-3  # relative; beyond it, header and affine disagree about a voxel's size


@dataclass(frozen=True)
class Scan:
    """A scan in the order of its own axes.

    Attributes:
        data: [X, Y, Z] float64.
        affine: [4, 4] float64, voxel indices to mm.
        sizes_mm: [3] float32, voxel sizes: of the header (NIfTI ``pixdim``, MGH ``delta``, npz 1), for a volume from
            memory of the affine.
        path: None for a volume from memory.
        notes: what was noticed on reading, in sentences.
    """

    data: np.ndarray
    affine: np.ndarray
    sizes_mm: np.ndarray
    path: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        return str(self.path) if self.path is not None else "scan"


def read_scan(scan: str | Path | Volume) -> Scan:
    """Read a scan, or take one from memory, with the intensities and the voxel sizes that the original would see.

    Of a file whose last axis, the fourth, has at most 10 entries the first channel is taken, with a note. What cannot
    be used is refused as everywhere else (:func:`synthseg.volumes.read_volume`), and voxels that are not finite become
    0: there the original fails, or its result is nothing but NaN. An npz file has the identity for an affine, whatever
    it holds.

    Raises: VolumeError naming the file and what is wrong with it.
    Source: reference 6.3, steps 1 and 2.
    """
    if isinstance(scan, Volume):
        return _from_memory(scan)
    with nibabel_complaints([]), np.errstate(all="ignore"):  # read_volume notes what was mended
        return _from_file(Path(scan))


def _from_file(path: Path) -> Scan:
    opened = _opened_4d(path)
    if opened is None:
        volume = read_volume(path)
        return _with_header(path, volume, _doubled(path, volume))
    try:
        return _first_channel(path, opened)
    except SynthsegError:
        raise
    except Exception as error:  # damaged files make the parsers raise anything
        found = f"a truncated or damaged file ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        raise VolumeError(path, found=found, fix="copy, download or export it again") from error


def _from_memory(volume: Volume) -> Scan:
    subject = volume.path or Path("scan")
    check_shape(volume.data.shape, subject)
    check_affine(volume.affine, subject)
    data, notes = check_image(np.asarray(volume.data, dtype=np.float64), subject)
    affine = np.asarray(volume.affine, dtype=np.float64)
    return Scan(data, affine, spacing_of(affine).astype(np.float32), volume.path, (*volume.notes, *notes))


def _opened_4d(path: Path) -> Any | None:
    """The opened file (of npz: its array) if it is one of several channels; None leaves it to ``read_volume``."""
    opened: Any = None
    try:
        with translated(path), nibabel_complaints([]):
            if require_volume_file(path) == ".npz":
                shape = npz_headers(path)[NPZ_KEY][0]
            else:
                opened = open_image(path)
                shape = shape_of(opened)
    except VolumeError:  # read_volume says what is wrong
        return None
    few = len(shape) > 3 and 1 < shape[-1] <= MOST_CHANNELS and math.prod(shape[:3]) <= MAX_VOXELS
    if not few or max(shape[3:-1], default=1) > 1:
        return None
    return npz_array(path, NPZ_KEY) if opened is None else opened


def _first_channel(path: Path, opened: Any) -> Scan:
    """The first channel of an opened 4D file, under the same checks as any scan."""
    notes: list[str] = []
    if isinstance(opened, np.ndarray):
        affine = np.eye(4)
    elif isinstance(opened, nib.Nifti1Image):
        affine, notes, _ = nifti_geometry(opened, opened.header, path)
    else:
        with gzip.open(path, "rb") if extension_of(path) == ".mgz" else path.open("rb") as file:
            affine, notes, _ = mgh_geometry(opened, file.read(30))
    shape, shape_notes = check_shape(opened.shape[:3], path)
    check_affine(affine, path)
    check_size(shape, affine, path)
    if not isinstance(opened, np.ndarray):
        check_held(opened, path)
    stored = opened if isinstance(opened, np.ndarray) else opened.dataobj
    data, data_notes = check_image(np.asarray(stored[..., 0], dtype=np.float64).reshape(shape), path)
    took = f"The file's shape is {tuple(opened.shape)}: only the first of its {opened.shape[-1]} channels was used."
    volume = Volume(data, affine, path, (*notes, took, *shape_notes, *data_notes))
    return _with_header(path, volume, data)


def _doubled(path: Path, volume: Volume) -> np.ndarray:
    """The volume's values in double precision: read again where single precision has rounded them."""
    if extension_of(path) == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            if NPZ_KEY not in arrays or np.can_cast(arrays[NPZ_KEY].dtype, np.float32):
                return volume.data.astype(np.float64)
            values = np.asarray(arrays[NPZ_KEY], dtype=np.float64)
    else:
        image: Any = nib.load(path, mmap=False)
        scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
        if not scaled and np.can_cast(image.get_data_dtype(), np.float32):
            return volume.data.astype(np.float64)
        values = image.get_fdata(dtype=np.float64, caching="unchanged")
    values = values.reshape(volume.shape, order="A")
    return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, 0.0)


def _with_header(path: Path, volume: Volume, data: np.ndarray) -> Scan:
    """The scan with the voxel sizes of its header, and notes on where they matter."""
    if extension_of(path) == ".npz":
        affine = np.eye(4)
        notes = volume.notes
        if not np.array_equal(volume.affine, affine):
            notes = (*notes, "The affine of the npz file was not used: the original takes voxels of 1 mm in RAS order.")
        return Scan(data, affine, np.ones(3, np.float32), path, notes)
    scan = Scan(data, volume.affine, spacing_of(volume.affine).astype(np.float32), path, volume.notes)
    image: Any = nib.load(path, mmap=False)
    is_nifti = isinstance(image, nib.Nifti1Image)
    stated = np.array(image.header["pixdim"][1:4] if is_nifti else image.header["delta"], dtype=np.float32)
    own = spacing_of(image.affine)
    unit = np.median(spacing_of(volume.affine) / own)  # reading has turned metres and microns into millimetres
    if abs(unit - 1) > HEADERS_APART:
        stated = (stated * unit).astype(np.float32)
    if not (np.isfinite(stated).all() and (stated > 0).all()):
        return scan
    if np.allclose(stated, scan.sizes_mm, rtol=HEADERS_APART, atol=0):
        return replace(scan, sizes_mm=stated)
    said, meant = (" x ".join(f"{size:.4g}" for size in sizes) for sizes in (stated, scan.sizes_mm))
    note = (
        f"Both count, as in the original: the header's voxel sizes ({said} mm) decide if the scan is resampled and how "
        f"large its voxels are counted, the affine's ({meant} mm) how it is resampled."
    )
    return replace(scan, sizes_mm=stated, notes=(*scan.notes, note))


def few_slices_note(scan: Scan, upwards: int) -> str | None:
    """What to say where the original fails although the scan can be segmented.

    Args:
        upwards: voxels from bottom to top, after resampling.
    Source: reference 6.3, step 1.
    """
    is_mgh = scan.path is not None and extension_of(scan.path) in (".mgz", ".mgh")
    if upwards > MOST_CHANNELS and (is_mgh or scan.data.shape[2] > MOST_CHANNELS):
        return None
    return f"The original fails on scans with {MOST_CHANNELS} slices or fewer: it has no result to compare with."
