"""A scan becomes the network's input: RAS order, working spacing, intensities in [0, 1], sides the network accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from synthseg.errors import VolumeError
from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.volumes import Orientation, Volume, Window, center_window, crop_pad, resample_to_spacing, to_ras
from synthseg.volumes.standard import close_to_spacing, intensity_range, scale

RESULT_SPACING_MM = 1.0
AIR_HU = -900.0  # air is -1000 HU; scanners fill the corners with -1024, -2000 or -3024
AIR_SHARE = 0.05  # of all voxels: a head never fills 95 % of a field of view
SOFT_TISSUE_SHARE = 0.02  # of all voxels, within 0 to 80 HU
MAX_EXTENT_MM = 600.0  # a whole head and neck fits in 400 mm
MIN_EXTENT_MM = 60.0  # second-largest side: a brain is about 140 mm wide; a slab may be thin along one axis only


@dataclass(frozen=True)
class Prepared:
    """What the network sees and all that is needed to come back.

    ``scan`` is the input in RAS order; ``orientation`` leads back to the input's axes, under ``original_affine``.
    ``fine`` is the 1 mm grid of the results, in RAS order: the scan's own grid when that is within the tolerance of
    1 mm. ``working`` [x, y, z] are the scan's intensities on the network's grid, ``working_affine`` that grid's;
    ``window`` is the box of its voxels that the network sees (it may reach beyond the scan), ``whole`` the smallest one
    with all of the scan whose sides the network accepts. ``limits`` are the intensities that the image has as 0 and 1,
    ``widenings`` counts how often the window was found too small.
    """

    scan: Volume
    orientation: Orientation
    original_affine: np.ndarray
    fine: Grid
    notes: tuple[str, ...]
    working: np.ndarray
    working_affine: np.ndarray
    whole: Window
    window: Window
    limits: tuple[float, float]
    widenings: int = 0

    @cached_property
    def image(self) -> Tensor:
        """[1, 1, X, Y, Z] float32 in [0, 1] on ``padded``; 0 beyond the scan. Made when it is first asked for."""
        begin, end = self.window.start, tuple(np.add(self.window.start, self.window.shape))
        low = [max(b, 0) for b in begin]
        high = [min(e, n) for e, n in zip(end, self.working.shape, strict=True)]
        part = scale(self.working[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], self.limits)
        image = crop_pad(part, [b - a for a, b in zip(low, begin, strict=True)], self.window.shape)
        return torch.from_numpy(image)[None, None]

    @property
    def padded(self) -> Grid:
        """The grid of the image."""
        x, y, z = self.window.shape
        return Grid((x, y, z), self.window.affine(self.working_affine))

    @property
    def native(self) -> Grid:
        """The scan's own grid, in RAS order."""
        return grid_of(self.scan)

    def through(self, window: Window, config: InferenceConfig, *, rescaled: bool) -> Prepared:
        """The same scan through another window.

        Args:
            rescaled: let the percentiles of the scan's voxels inside the window be 0 and 1. That is what training does:
                its images are rescaled within their crop. Otherwise intensities stay as they are.
        Raises: VolumeError if there is no contrast in the window.
        """
        limits = self.limits
        if rescaled:
            ends = zip(window.start, window.shape, strict=True)
            inside = self.working[tuple(slice(max(begin, 0), begin + size) for begin, size in ends)]
            limits = intensity_range(inside, config.percentiles, subject=subject_of(self.scan))
        return replace(self, window=window, limits=limits)


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
    whole = whole_window(data.shape, multiple)
    return Prepared(
        scan=scan,
        orientation=orientation,
        original_affine=volume.affine,
        fine=fine_grid(scan, config.spacing_tolerance),
        notes=(*notes, *ct_notes),
        working=data,
        working_affine=np.asarray(working.affine, dtype=np.float64),
        whole=whole,
        window=whole,
        limits=intensity_range(data, config.percentiles, subject=subject),
    )


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
    if float(data.min()) > AIR_HU:  # most scans: nothing to count
        return False
    air = np.count_nonzero(data <= AIR_HU) / data.size
    tissue = np.count_nonzero((data > 0) & (data <= 80)) / data.size
    return bool(air >= AIR_SHARE and tissue >= SOFT_TISSUE_SHARE)


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


def whole_window(shape: Sequence[int], multiple: int) -> Window:
    """The smallest window with all of a grid whose sides are multiples, the smaller half of the rest before.

    Source: reference 6.3, step 7.
    """
    return center_window(shape, [n + (-n) % multiple for n in shape])


def edge_aligned_grid(grid: Grid, spacing_mm: float) -> Grid:
    """The grid of cubic voxels that begins at the same outer edges as ``grid`` and covers it (reference 6.3)."""
    factor = grid.spacing_mm / spacing_mm
    # The small allowance keeps 2.0000001 x 90 voxels from growing a 181st sample.
    sizes = [max(1, math.ceil(n * f - 1e-4)) for n, f in zip(grid.shape, factor, strict=True)]
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] / factor
    affine[:3, 3] = grid.affine[:3, 3] - affine[:3, :3] @ (0.5 * (factor - 1))
    return Grid((sizes[0], sizes[1], sizes[2]), affine)
