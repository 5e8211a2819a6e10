"""What makes a file a usable 3D volume: sizes, voxel sizes, affines and values. Needs numpy only.

Each function raises a VolumeError that names the file, or returns the notes on what it noticed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from synthseg.errors import VolumeError
from synthseg.volumes.volume import spacing_of

MIN_SLICES = 4  # fewer voxels than this along an axis: not a volume (reference 6.3, step 1: "at most 3 slices")
FEW_SLICES = 10  # up to this many: usable, but worth a note
MAX_VOXELS = 200_000_000  # as stored; a 0.5 mm whole head, 512 x 512 x 512, has 134 million
# After resampling to 1 mm, i.e. 130 litres: a body-sized CT, 500 x 500 x 300 mm, has 75. Read at this size a scan takes
# 0.5 GiB in float32, and as much again for each copy on the way; at 2 mm, where the network sees it, an eighth.
MAX_VOXELS_AT_1MM = 130_000_000
MIN_SPACING_MM = 0.15  # smaller voxels than in any head scan: usually wrong units
MIN_SPACING_LABELS_MM = 0.02  # label maps are also training data, and those of a mouse's brain have voxels of 0.025 mm
MAX_SPACING_MM = 20.0
_SLICER = "save one 3D volume first, e.g. nibabel.save(image.slicer[..., 0], 'one.nii.gz')"


def check_shape(shape: tuple[int, ...], path: Path) -> tuple[tuple[int, int, int], list[str]]:
    """The three sizes of the volume, trailing axes of 1 dropped; VolumeError if it is not 3D or hardly a volume."""
    if len(shape) == 0 or min(shape) < 1:
        raise VolumeError(path, found=f"an empty image of shape {shape}", fix="check how the file was made")
    if len(shape) > 3 and max(shape[3:]) > 1:
        found = f"a {len(shape)}D image of shape {shape}, i.e. {int(np.prod(shape[3:]))} volumes"
        raise VolumeError(path, found=found, fix=_SLICER)
    if len(shape) < 3 or sorted(shape[:3])[0] == 1:
        raise VolumeError(path, found=f"a 2D image of shape {shape}", fix="give the whole 3D volume, not one slice")
    x, y, z = (int(n) for n in shape[:3])
    if min(x, y, z) < MIN_SLICES:
        found = f"only {min(x, y, z)} slices along one axis, shape {(x, y, z)}"
        raise VolumeError(path, found=found, fix=f"give a volume with at least {MIN_SLICES} voxels along every axis")
    notes = []
    if len(shape) > 3:
        notes.append(f"Trailing axes of size 1 were dropped: the file's shape is {shape}.")
    if min(x, y, z) <= FEW_SLICES:
        notes.append(f"Few slices: shape {(x, y, z)}; expect a coarse result.")
    return (x, y, z), notes


def check_affine(affine: np.ndarray, path: Path, *, units: str = "", labels: bool = False) -> None:
    """VolumeError if the affine is not finite or not invertible, or if its voxel sizes are no head scan's.

    Label maps may have smaller voxels than scans: they may be an animal's, to train with.
    """
    fix = "repair the header's orientation, or convert the scan again from its source"
    if not np.isfinite(affine).all():
        raise VolumeError(path, found="an affine with values that are not finite", fix=fix)
    spacing = spacing_of(affine)
    text = " x ".join(f"{s:.4g}" for s in spacing)
    smallest = MIN_SPACING_LABELS_MM if labels else MIN_SPACING_MM
    if min(spacing) > 0 and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-3:
        # 1e-3: 0.02 mm in a header's single precision may be a little less
        if min(spacing) >= smallest * (1 - 1e-3) and max(spacing) <= MAX_SPACING_MM:
            return
        found = f"voxels of {text} mm{units}, outside {smallest:g} to {MAX_SPACING_MM:g} mm"
        unit_fix = "the units may be wrong: check the header's voxel sizes and xyzt_units (metre, mm or micron)"
        raise VolumeError(path, found=found, fix=unit_fix + ", or resample the scan")
    raise VolumeError(path, found=f"a singular affine (columns of length {text} mm)", fix=fix)


def check_size(shape: tuple[int, int, int], affine: np.ndarray, path: Path) -> None:
    """VolumeError for scans too large to hold, from the header alone: before any voxel is read."""
    voxels = float(np.prod([float(n) for n in shape]))
    fix = "crop it to the head, or resample it to 1 mm first"
    if voxels > MAX_VOXELS:
        found = f"{voxels / 1e6:.0f} million voxels, shape {shape}: the limit is {MAX_VOXELS / 1e6:.0f} million"
        raise VolumeError(path, found=found, fix=fix)
    litres = voxels * float(np.prod(spacing_of(affine))) / 1e6
    if litres > MAX_VOXELS_AT_1MM / 1e6:
        extent = " x ".join(f"{n * s:.0f}" for n, s in zip(shape, spacing_of(affine), strict=True))
        found = f"a field of view of {extent} mm, {litres:.0f} million voxels at 1 mm"
        limit = f": the limit is {MAX_VOXELS_AT_1MM / 1e6:.0f} million"
        raise VolumeError(
            path, found=found + limit, fix="crop it to the head, and check that the voxel sizes are right"
        )


def check_image(data: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """Values of an image: not-finite voxels become 0 with a note (SPM writes NaN around the brain).

    Raises: VolumeError if no voxel is finite, or all have the same value.
    """
    notes = []
    with np.errstate(invalid="ignore"):
        low, high = data.min(), data.max()
    if not (np.isfinite(low) and np.isfinite(high)):  # NaN and infinity show in the extremes: no mask of all voxels
        finite = np.isfinite(data)
        bad = data.size - int(np.count_nonzero(finite))
        if bad == data.size:
            raise VolumeError(path, found="no finite voxel, only NaN or infinity", fix="check how the file was made")
        data = np.where(finite, data, np.float32(0))
        notes.append(f"{bad} voxels ({100 * bad / data.size:.2g} %) were NaN or infinite and became 0.")
        low, high = data.min(), data.max()
    if low == high:
        found = f"a constant image: every voxel is {float(data.flat[0]):g}"
        raise VolumeError(path, found=found, fix="check that the scan was exported completely")
    return data, notes


def check_labels(data: np.ndarray, path: Path) -> np.ndarray:
    """Values of a label map as int32; VolumeError if they are not whole numbers, or do not fit."""
    fix = "give a label map (whole numbers); resample label maps with nearest neighbour, never linearly"
    if not np.issubdtype(data.dtype, np.integer):
        if not np.isfinite(data).all():
            raise VolumeError(path, found="label values that are NaN or infinite", fix=fix)
        whole = np.rint(data)
        # 1e-3: what scaling by a header's slope in single precision may leave of a whole number
        fraction = np.abs(data - whole)
        if fraction.max() > 1e-3:
            worst = float(data.flat[int(fraction.argmax())])
            raise VolumeError(path, found=f"label values that are not whole numbers, e.g. {worst:g}", fix=fix)
        data = whole
    low, high = int(data.min()), int(data.max())
    limits = np.iinfo(np.int32)
    if low < limits.min or high > limits.max:
        raise VolumeError(path, found=f"label values from {low} to {high}, beyond 32 bits", fix=fix)
    return data.astype(np.int32)
