"""Where a template's cerebrum lies in another: landmarks, then demons, by SimpleITK (``pip install SimpleITK``).

The images registered are made of labels: cortex half as bright as what it encloses. Only positions come out of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from maps import CORTICAL, GREY, WITHIN, CerebrumMap
from scipy import ndimage

LEVELS = ((4.0, 60, 2.0), (2.0, 25, 1.5))  # spacing in mm, iterations, smoothing of the field in voxels
GRID_MM = 2.0


@dataclass(frozen=True)
class Correspondence:
    """Positions in the template for positions in a map.

    Attributes:
        affine: [3, 4], map mm to template mm.
        shift_mm: [X, Y, Z, 3] float32, added after the affine, on a grid of the map.
        origin_mm, spacing_mm: [3], of that grid.
    """

    affine: np.ndarray
    shift_mm: np.ndarray
    origin_mm: np.ndarray
    spacing_mm: np.ndarray

    def __call__(self, points_mm: np.ndarray) -> np.ndarray:
        """[N, 3] mm in the map -> [N, 3] mm in the template."""
        at = ((points_mm - self.origin_mm) / self.spacing_mm).T
        moved = points_mm @ self.affine[:, :3].T + self.affine[:, 3]
        for axis in range(3):
            moved[:, axis] += ndimage.map_coordinates(self.shift_mm[..., axis], at, order=1, mode="nearest")
        return moved


def register(brain: CerebrumMap, template: CerebrumMap) -> Correspondence:
    """Match a template to a map: an affine of the landmarks, then symmetric-forces demons at 4 and 2 mm."""
    import SimpleITK as sitk  # needed at build time only, so the package does not depend on it

    affine = match_landmarks(brain.landmarks, template.landmarks)
    field = None
    for spacing, iterations, smoothing in LEVELS:
        fixed, moving = _image(brain, spacing), _image(template, min(spacing, GRID_MM))
        start = sitk.AffineTransform(affine[:, :3].ravel().tolist(), affine[:, 3].tolist())
        moving = sitk.Resample(moving, fixed, start, sitk.sitkLinear, 0.0)
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(smoothing)
        demons.SetSmoothUpdateField(True)
        demons.SetUpdateFieldStandardDeviations(1.0)
        demons.SetNumberOfThreads(1)
        if field is None:
            field = demons.Execute(fixed, moving)
        else:
            field = demons.Execute(fixed, moving, sitk.Resample(field, fixed, sitk.Transform(), sitk.sitkLinear))
    assert field is not None
    # Demons says where a point of the map lies in the affinely moved template: turned, it is a shift after the affine.
    shift = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3) @ affine[:, :3].T
    return Correspondence(affine, shift.astype(np.float32), np.array(field.GetOrigin()), np.array(field.GetSpacing()))


def match_landmarks(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """[3, 4] affine that takes landmarks [N, 3] to others with the least squares; missing ones (NaN) are left out."""
    both = np.isfinite(here).all(1) & np.isfinite(there).all(1)
    design = np.concatenate([here[both], np.ones((int(both.sum()), 1))], axis=1)
    solution: np.ndarray = np.linalg.lstsq(design, there[both], rcond=None)[0].T
    return solution


def _image(brain: CerebrumMap, spacing_mm: float) -> Any:
    import SimpleITK as sitk

    levels = np.zeros(4, dtype=np.float32)
    levels[[CORTICAL, GREY, WITHIN]] = 0.5, 0.6, 1.0
    wide = spacing_mm / brain.spacing_mm
    blurred = ndimage.gaussian_filter(levels[brain.tissue], 0.4 * wide, truncate=2.5)
    step = np.maximum(np.round(wide).astype(int), 1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(blurred[:: step[0], :: step[1], :: step[2]].transpose(2, 1, 0)))
    image.SetSpacing([float(s) for s in step * brain.spacing_mm])
    image.SetOrigin([float(o) for o in brain.origin_mm])
    return image
