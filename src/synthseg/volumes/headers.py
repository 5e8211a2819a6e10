"""What a NIfTI or MGH header says about the grid, and where it contradicts itself.

nibabel mends much silently on loading (zero and negative voxel sizes, for instance), so the raw header is read as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from synthseg.errors import VolumeError
from synthseg.volumes.volume import spacing_of

_UNITS = {1: ("metre", 1e3), 2: ("mm", 1.0), 3: ("micron", 1e-3)}  # NIfTI xyzt_units, lowest three bits


def nifti_geometry(image: Any, raw: Any, path: Any) -> tuple[np.ndarray, list[str], str]:
    """The affine in mm of a NIfTI image, what was odd about it, and the header's unit for messages.

    Args:
        image: the nibabel image; raw: its header as stored, unchecked; path: for messages.
    Raises: VolumeError if the voxel size is needed and missing.
    """
    notes: list[str] = []
    affine = np.array(image.affine, dtype=np.float64)
    sform, qform = int(raw["sform_code"]), int(raw["qform_code"])
    pixdim = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
    shown = " x ".join(f"{p:.4g}" for p in pixdim)
    if sform <= 0 and not (np.isfinite(pixdim).all() and (pixdim != 0).all()):
        fix = "set the voxel sizes (pixdim) in the header, or convert the scan again from its source"
        raise VolumeError(path, found=f"voxel sizes {shown} in the header, and no sform to take them from", fix=fix)
    if sform > 0 and not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        notes.append(f"The header's voxel sizes (pixdim) are {shown}: those of the sform are used.")
    elif sform > 0 and not np.allclose(pixdim, spacing_of(affine), rtol=0.01):
        used = " x ".join(f"{s:.4g}" for s in spacing_of(affine))
        notes.append(f"The header's voxel sizes (pixdim) are {shown}, the sform's {used}: those of the sform are used.")
    elif sform <= 0 and (pixdim < 0).any():
        notes.append(f"The header's voxel sizes (pixdim) are {shown}: their signs are ignored.")
    if sform <= 0 and qform <= 0:
        notes.append(
            "Neither sform nor qform is coded: the orientation is a guess (axes to the left, front and top, centred). "
            "Check left and right."
        )
    if sform > 0 and qform > 0:
        notes.extend(_disagreement(image, affine))
    unit, factor = _UNITS.get(int(raw["xyzt_units"]) & 7, ("mm", 1.0))
    if factor != 1.0:
        notes.append(f"The header's unit is the {unit}: converted to mm.")
        affine[:3] *= factor
    return affine, notes, "" if factor == 1.0 else f" (the header's unit is the {unit})"


def _disagreement(image: Any, affine: np.ndarray) -> list[str]:
    """A note if sform and qform place some corner of the volume more than half the smallest voxel apart."""
    try:
        qform = image.header.get_qform()
    except (ValueError, ArithmeticError) as error:  # a quaternion that is no rotation
        return [f"The qform is damaged ({error}): the sform is used."]
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in image.shape[:3]], [1], indexing="ij"), -1).reshape(-1, 4)
    apart = np.linalg.norm(corners @ (affine - qform).T[:, :3], axis=1).max()
    if np.isfinite(apart) and apart <= 0.5 * spacing_of(affine).min():
        return []
    return [f"sform and qform disagree by up to {apart:.1f} mm: the sform is used."]


def mgh_geometry(image: Any, raw: bytes) -> tuple[np.ndarray, list[str], str]:
    """The affine in mm of an MGH image; ``raw`` is the first 30 bytes of its header."""
    notes = []
    if int.from_bytes(raw[28:30], "big") == 0:  # goodRASFlag
        notes.append(
            "The header says that it holds no orientation: FreeSurfer's default, coronal with 1 mm voxels, is a guess."
        )
    return np.array(image.affine, dtype=np.float64), notes, ""
