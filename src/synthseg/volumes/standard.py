"""How every scan is brought into the networks' world: the one rule that inference and validation share."""

from __future__ import annotations

import numpy as np

from synthseg.errors import VolumeError
from synthseg.volumes.ranks import percentiles_of

# Billot et al. 2023, section 3.3. The original code uses (0.5, 99.5).
PERCENTILES = (1.0, 99.0)  # intensities that become 0 and 1
SPACING_TOLERANCE = 0.05  # relative: a scan this close to a grid's voxel size is not resampled to it (reference 6.3)


def close_to_spacing(spacing_mm: np.ndarray, target_mm: float, tolerance: float = SPACING_TOLERANCE) -> bool:
    """Whether every axis lies within the relative ``tolerance`` of ``target_mm`` (reference 6.3, step 2: 5 %)."""
    return bool(np.all(np.abs(np.asarray(spacing_mm) / target_mm - 1) <= tolerance + 1e-9))


def rescale(data: np.ndarray, percentiles: tuple[float, float] = PERCENTILES, *, subject: str) -> np.ndarray:
    """Map the two percentiles of all voxels to 0 and 1, clipped. float32.

    Raises: VolumeError if both percentiles are the same number.
    Source: Billot et al. 2023, section 3.3.
    """
    return scale(data, intensity_range(data, percentiles, subject=subject))


def intensity_range(
    data: np.ndarray, percentiles: tuple[float, float] = PERCENTILES, *, subject: str
) -> tuple[float, float]:
    """The intensities that :func:`rescale` maps to 0 and 1. Raises: as it does."""
    low, high = percentiles_of(data, percentiles)
    if not high > low:
        p_low, p_high = percentiles
        smallest, largest = float(data.min()), float(data.max())
        found = (
            f"no contrast: percentiles {p_low:g} and {p_high:g} are both {low:g} (range {smallest:g} to {largest:g})"
        )
        fix = "give a scan with an image in it"
        if largest > smallest:
            fix = "crop it to the head, or check its intensities (Hounsfield units need --ct, other scans --no-ct)"
        raise VolumeError(subject, found=found, fix=fix)
    return low, high


def scale(data: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Map two intensities, the lower one first, to 0 and 1, clipped. float32, a new array."""
    low, high = limits
    scaled: np.ndarray = np.clip(data, low, high).astype(np.float32, copy=False)
    scaled -= np.float32(low)
    scaled /= np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)
