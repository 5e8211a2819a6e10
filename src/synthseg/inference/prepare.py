"""A scan becomes the network's input: RAS order, working spacing, intensities in [0, 1], sides the network accepts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from synthseg.errors import VolumeError
from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.volumes import Orientation, Volume, Window, center_window, crop_pad, resample_to_spacing, to_ras
from synthseg.volumes.standard import close_to_spacing, rescale

RESULT_SPACING_MM = 1.0
AIR_HU = -900.0  # air is -1000 HU; scanners fill the corners with -1024, -2000 or -3024
AIR_SHARE = 0.05  # of all voxels: a head never fills 95 % of a field of view
SOFT_TISSUE_SHARE = 0.02  # of all voxels, within 0 to 80 HU
MAX_EXTENT_MM = 600.0  # a whole head and neck fits in 400 mm
MIN_EXTENT_MM = 60.0  # second-largest side: a brain is about 140 mm wide; a slab may be thin along one axis only


@dataclass(frozen=True)
class Prepared:
    """What the network sees and all that is needed to come back.

    ``image`` is [1, 1, X, Y, Z] float32 in [0, 1] on ``padded``; ``working`` [x, y, z] holds the intensities it was
    made from, and the padded grid begins at its voxel ``start``. ``scan`` is the input in RAS order; ``orientation``
    leads back to the input's axes, under ``original_affine``. ``fine`` is the 1 mm grid of the results, in RAS order:
    the scan's own grid when that is within the tolerance of 1 mm.
    """

    image: Tensor
    padded: Grid
    scan: Volume
    orientation: Orientation
    original_affine: np.ndarray
    fine: Grid
    notes: tuple[str, ...]
    working: np.ndarray
    start: tuple[int, int, int]

    @property
    def native(self) -> Grid:
        """The scan's own grid, in RAS order."""
        return grid_of(self.scan)


def prepare(volume: Volume, *, spacing_mm: float, multiple: int, config: InferenceConfig) -> Prepared:
    """Bring a scan into the form the network was trained on.

    Args:
        spacing_mm: voxel size of the network's world (its card's ``spacing_mm``).
        multiple: sides of the network's input are multiples of this many voxels.
    Raises: VolumeError for a field of view no head fits in or for a scan without contrast.
    Source: Billot et al. 2023, section 3.3; reference 6.3 (padding to the next multiple, without its minimum of 128).
    """
    subject = subject_of(volume)
    check_extent(volume, subject)
    scan, orientation = to_ras(volume)
    notes = list(dict.fromkeys((*volume.notes, *scan.notes)))
    working = scan
    if not close_to_spacing(scan.spacing_mm, spacing_mm, config.spacing_tolerance):
        working = resample_to_spacing(scan, spacing_mm, order=1)
    data, ct_notes = window_ct(working.data, config)
    notes += ct_notes
    scaled = rescale(data, config.percentiles, subject=subject)
    image, start = pad_to_multiple(scaled, multiple)
    padded = grid_of(working).window(start, image.shape)
    return Prepared(
        image=torch.from_numpy(image)[None, None],
        padded=padded,
        scan=scan,
        orientation=orientation,
        original_affine=volume.affine,
        fine=fine_grid(scan, config.spacing_tolerance),
        notes=tuple(notes),
        working=data,
        start=start,
    )


def scaled_window(prepared: Prepared, window: Window, config: InferenceConfig) -> Prepared:
    """A window of the padded grid, its intensities rescaled by the percentiles of the scan's voxels inside it.

    That is what training does: its images are rescaled within their crop.
    Raises: VolumeError if there is no contrast in the window.
    """
    begin = [w + s for w, s in zip(window.start, prepared.start, strict=True)]
    low = [max(b, 0) for b in begin]
    high = [min(b + n, m) for b, n, m in zip(begin, window.shape, prepared.working.shape, strict=True)]
    part = prepared.working[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    scaled = rescale(part, config.percentiles, subject=subject_of(prepared.scan))
    image = crop_pad(scaled, [b - a for a, b in zip(low, begin, strict=True)], window.shape)
    padded = prepared.padded.window(window.start, window.shape)
    start = (begin[0], begin[1], begin[2])
    return replace(prepared, image=torch.from_numpy(image)[None, None], padded=padded, start=start)


def subject_of(volume: Volume) -> str:
    """How messages call a scan: its path, or 'scan' for one that came from memory."""
    return str(volume.path) if volume.path is not None else "scan"


def grid_of(volume: Volume) -> Grid:
    """The grid a volume lies on."""
    x, y, z = volume.data.shape
    return Grid((x, y, z), np.asarray(volume.affine, dtype=np.float64))


def check_extent(volume: Volume, subject: str) -> None:
    """Refuse fields of view that cannot be a head before anything large is allocated.

    Raises: VolumeError naming the extent, the voxel size and the shape.
    """
    extent = np.asarray(volume.data.shape) * volume.spacing_mm
    sides = " x ".join(f"{side:.0f}" for side in extent)
    voxels = " x ".join(f"{size:.3g}" for size in volume.spacing_mm)
    found = f"a field of view of {sides} mm (voxels of {voxels} mm, shape {tuple(volume.data.shape)})"
    if extent.max() > MAX_EXTENT_MM:
        fix = f"crop it to the head, or correct the voxel size in the header; at most {MAX_EXTENT_MM:.0f} mm fit"
        raise VolumeError(subject, found=found, fix=fix)
    if np.sort(extent)[1] < MIN_EXTENT_MM:
        fix = (
            f"give a scan that covers a brain (two sides of at least {MIN_EXTENT_MM:.0f} mm), or correct the voxel size"
        )
        raise VolumeError(subject, found=found, fix=fix)


def fine_grid(scan: Volume, tolerance: float) -> Grid:
    """Grid of the results: the scan's own within ``tolerance`` of 1 mm, else the edge-aligned 1 mm grid."""
    grid = grid_of(scan)
    if close_to_spacing(grid.spacing_mm, RESULT_SPACING_MM, tolerance):
        return grid
    return edge_aligned_grid(grid, RESULT_SPACING_MM)


def looks_like_ct(data: np.ndarray) -> bool:
    """Whether intensities are Hounsfield units: plenty of air below -900 and soft tissue between 0 and 80.

    Deliberately strict: clipping an MR scan by mistake destroys it, while a missed CT is only segmented less well and
    is spoken about in the notes. Skull-stripped CT (background 0) cannot be told from MR and needs ``ct=True``.
    """
    air = float(np.mean(data <= AIR_HU))
    tissue = float(np.mean((data > 0) & (data <= 80)))
    return air >= AIR_SHARE and tissue >= SOFT_TISSUE_SHARE


def window_ct(data: np.ndarray, config: InferenceConfig) -> tuple[np.ndarray, list[str]]:
    """Clip Hounsfield units to the brain window when the scan is CT; says what was decided and why."""
    is_ct = looks_like_ct(data) if config.ct is None else config.ct
    low, high = config.ct_window
    if is_ct:
        clipped = np.clip(data, low, high)
        if config.ct is None:
            return clipped, [
                f"recognised as CT (Hounsfield units): clipped to [{low:g}, {high:g}]; --no-ct turns this off"
            ]
        return clipped, []
    if config.ct is None and float(data.min()) < -1:
        return data, [
            f"has negative intensities (down to {data.min():g}) but was not recognised as CT; if it is, use --ct"
        ]
    return data, []


def pad_to_multiple(data: np.ndarray, multiple: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Zeros around ``data`` up to the next multiple along each axis, the smaller half before.

    Returns: the padded array and the start of its grid in voxels of ``data`` (zero or negative).
    Source: reference 6.3, step 7.
    """
    window = center_window(data.shape, [n + (-n) % multiple for n in data.shape])
    return window.crop(data), window.start


def edge_aligned_grid(grid: Grid, spacing_mm: float) -> Grid:
    """The grid of cubic voxels that begins at the same outer edges as ``grid`` and covers it (reference 6.3)."""
    factor = grid.spacing_mm / spacing_mm
    # The small allowance keeps 2.0000001 x 90 voxels from growing a 181st sample.
    sizes = [max(1, math.ceil(n * f - 1e-4)) for n, f in zip(grid.shape, factor, strict=True)]
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] / factor
    affine[:3, 3] = grid.affine[:3, 3] - affine[:3, :3] @ (0.5 * (factor - 1))
    return Grid((sizes[0], sizes[1], sizes[2]), affine)
