"""Harder versions of a scan, to measure what a network withstands: thick slices, other contrasts, turned, stripped,
and the artefacts of ``synthseg.volumes.artefacts``, alone or together.

Pure functions of a :class:`Volume`; :func:`degrade` calls them by name (:data:`CHANGES` lists the names). Nothing here
is used in training: what training sees is the generative model's.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from synthseg.errors import UsageError, VolumeError
from synthseg.volumes.artefacts import SIDES, cut, motion, rician_noise, uneven_gain
from synthseg.volumes.orient import orientation_of
from synthseg.volumes.resample import reslice
from synthseg.volumes.volume import Volume

PLAIN = "plain"
SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the world axis (right, front, up) that slices are thick along
TURN_AXES = {"x": 0, "y": 1, "z": 2}  # world axes: right, front, up
SIGMA_PER_THICKNESS = math.log(10) / math.pi  # Billot et al. 2023, Eq. 23 with alpha = 1; 0.75 in the original's code
STRIP_MARGIN_MM = 3.0  # kept around the labels: the thin layer of CSF over the cortex, and sulci
DARKEST = 0.1  # of the brightest tissue: no re-contrasted tissue is as dark as the background
CHANGES = "plain, sagittal-Nmm, coronal-Nmm, axial-Nmm, inverted, monotone-N, smooth-N, stripped, rotated-x-N (y, z), "
CHANGES += "shifted, snr-N, bias-N, motion-N, cut-SIDE-N (percent), or several joined by +"

Curve = Callable[[np.ndarray], np.ndarray]  # [0, 1] -> [0, 1]


def degrade(scan: Volume, truth: Volume | None, change: str, *, name: str) -> tuple[Volume, Volume | None]:
    """A changed version of a scan, and the truth that goes with it.

    Args:
        scan: at its full resolution.
        truth: its label map in the same space, or None; ``stripped`` needs it.
        change: one of these, or several joined by ``+``, made from left to right.
            ``plain`` (as it is); ``axial-5mm`` (or ``coronal``, ``sagittal``, any spacing); ``inverted``;
            ``monotone-N`` and ``smooth-N`` (the N-th random intensity curve, another for each ``name``); ``stripped``;
            ``rotated-x-3`` (degrees about the axis to the right; y front, z up); ``shifted`` (half a voxel);
            ``snr-5`` (:func:`rician_noise`, any ratio); ``bias-N`` (the N-th :func:`uneven_gain` of ``name``);
            ``motion-N`` (likewise :func:`motion`); ``cut-superior-30`` (:func:`cut`: side and percent).
        name: the subject, so that each gets its own curves, noise, fields and movements.
    Returns: scan and truth. Only turning and shifting move the truth: by its affine, its voxels stay as they are.
    Raises: UsageError for an unknown change; VolumeError when the scan does not allow it.
    """
    for part in change.split("+"):
        scan, truth = _change(scan, truth, part, name)
    return scan, truth


def _change(scan: Volume, truth: Volume | None, change: str, name: str) -> tuple[Volume, Volume | None]:
    """A single change."""
    for pattern, make in _OF_THE_IMAGE:
        found = re.fullmatch(pattern, change)
        if found:
            return make(scan, found, generator_of(f"{change}/{name}")), truth
    if change == "stripped":
        return _stripped(scan, truth), truth
    turn = re.fullmatch(r"rotated-([xyz])-(\d+(?:\.\d+)?)", change)
    if turn:
        return _moved(scan, truth, rotation(scan, turn[1], float(turn[2])))
    if change == "shifted":
        return _moved(scan, truth, half_voxel_shift(scan))
    raise UsageError("change of a scan", found=repr(change), fix=f"use one of {CHANGES}")


def _stripped(scan: Volume, truth: Volume | None) -> Volume:
    if truth is None:
        raise VolumeError(scan.subject, found="no label map to strip it with", fix="give its truth")
    return strip(scan, truth)


def thick_slices(scan: Volume, direction: str, spacing_mm: float) -> Volume:
    """The scan as if acquired in slices as thick as they are apart.

    A Gaussian along the slice axis, sigma = log(10) / pi x thickness (in voxels of the scan), stands for the slice
    profile; then one sample a slice, linearly interpolated. The first slice begins at the first voxel's outer edge.

    Args:
        direction: ``sagittal``, ``coronal`` or ``axial``: the array axis closest to right, front or up is thickened.
        spacing_mm: distance and thickness of the slices; above the voxel size along that axis.
    Returns: fewer voxels along that axis, the affine to match; float32. The field of view differs by half a slice at
        most.
    Raises: VolumeError if the scan's own slices are as thick already.
    Source: Billot et al. 2023, Eqs. 23-26, with the thickness of the slices equal to their spacing, as in the paper's
        evaluation at 3, 5 and 7 mm (reference, section 8: ``simulate_upsampled_anisotropic_images``; that code has
        0.75 for log(10) / pi, and interpolates back to the old grid, which is left to inference here).
    """
    from scipy.ndimage import gaussian_filter1d

    axis = orientation_of(scan.affine).axes[SLICE_AXES[direction]]
    factor = spacing_mm / float(scan.spacing_mm[axis])
    if factor <= 1:
        found = f"slices {scan.spacing_mm[axis]:.3g} mm apart"
        raise VolumeError(scan.subject, found=found, fix=f"degrade it to more than that, not to {spacing_mm:g} mm")
    blurred = gaussian_filter1d(
        scan.data.astype(np.float32), SIGMA_PER_THICKNESS * factor, axis=axis, mode="nearest", truncate=5
    )
    shape = list(scan.shape)
    shape[axis] = max(1, math.floor(shape[axis] / factor + 0.5))
    coarse = np.eye(4)
    coarse[axis, axis], coarse[axis, 3] = factor, 0.5 * (factor - 1)
    affine = scan.affine @ coarse
    return replace(scan, data=reslice(blurred, scan.affine, shape, affine, order=1), affine=affine)


def recontrast(scan: Volume, curve: Curve) -> Volume:
    """Another contrast of the same anatomy: intensities passed through a curve.

    Voxels of exactly 0 (what a stripped scan has around the brain) stay 0. Of the others the 1st and 99th percentiles
    become levels 0 and 1, clipped; the curve's levels are spread from the old 1st percentile, but at least
    :data:`DARKEST` of the 99th, to the 99th. float32.

    Raises: VolumeError if the scan is constant where it is not 0.
    """
    inside = scan.data != 0
    values = scan.data[inside].astype(np.float32)
    low, high = np.percentile(values, (1, 99)) if len(values) else (0.0, 0.0)
    if not high > low:
        raise VolumeError(scan.subject, found="one intensity only", fix="give a scan with an image in it")
    level = curve(np.clip((values - low) / (high - low), 0, 1))
    floor = max(low, DARKEST * high)
    data = np.zeros(scan.shape, dtype=np.float32)
    data[inside] = floor + (high - floor) * level
    return replace(scan, data=data)


def draw_curve(*, monotone: bool, rng: torch.Generator, nodes: int = 6) -> Curve:
    """A random smooth map of [0, 1] onto [0, 1].

    Args:
        monotone: rising from 0 to 1, so that the order of the tissues stays (exponential increments between equally
            spaced nodes); otherwise uniform values at the nodes, stretched to reach 0 and 1: tissues may change
            places, and two of them may come out alike.
    Returns: the curve through the nodes by monotone cubic interpolation (PCHIP): no overshoot, one derivative.
    """
    from scipy.interpolate import PchipInterpolator

    drawn = torch.rand(nodes, generator=rng, dtype=torch.float64).numpy()
    heights = np.concatenate([[0.0], np.cumsum(-np.log1p(-drawn[1:]))]) if monotone else drawn
    heights = (heights - heights.min()) / (heights.max() - heights.min())
    through = PchipInterpolator(np.linspace(0, 1, nodes), heights)
    return lambda level: np.clip(through(level), 0, 1)  # rounding leaves it by 1e-17


def strip(scan: Volume, truth: Volume, margin_mm: float = STRIP_MARGIN_MM) -> Volume:
    """The scan without what lies further than ``margin_mm`` from any labelled voxel of its truth, holes filled.

    Raises: VolumeError if the truth has no label inside the scan.
    """
    from scipy.ndimage import binary_fill_holes, distance_transform_edt

    labels = reslice(truth.data, truth.affine, scan.shape, scan.affine, order=0)
    if not (labels > 0).any():
        raise VolumeError(truth.subject, found=f"no label inside {scan.subject}", fix="give both in the same space")
    near = distance_transform_edt(labels <= 0, sampling=scan.spacing_mm) <= margin_mm
    return replace(scan, data=np.where(binary_fill_holes(near), scan.data, 0).astype(scan.data.dtype))


def rotation(scan: Volume, axis: str, degrees: float) -> np.ndarray:
    """[4, 4] world to world: a right-handed turn about a world axis through the centre of the field of view."""
    angle = math.radians(degrees)
    i, j = [a for a in range(3) if a != TURN_AXES[axis]]
    sign = -1 if axis == "y" else 1  # about y the right-handed pair is (z, x), and (i, j) is (x, z)
    turn = np.eye(4)
    turn[i, i] = turn[j, j] = math.cos(angle)
    turn[i, j], turn[j, i] = -sign * math.sin(angle), sign * math.sin(angle)
    centre = (scan.affine @ [*((np.array(scan.shape) - 1) / 2), 1.0])[:3]
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return turn


def half_voxel_shift(scan: Volume) -> np.ndarray:
    """[4, 4] world to world: half a voxel along each array axis, where linear interpolation blurs most."""
    shift = np.eye(4)
    shift[:3, 3] = scan.affine[:3, :3] @ np.full(3, 0.5)
    return shift


def move(scan: Volume, motion: np.ndarray) -> Volume:
    """The scan as if the head had moved in the scanner: same grid, content moved, linear interpolation, 0 from outside.

    Args:
        motion: [4, 4] rigid, from where a point was to where it is now, in mm RAS+.
    """
    data = reslice(scan.data, motion @ scan.affine, scan.shape, scan.affine, order=1)
    return replace(scan, data=data)


def generator_of(key: str) -> torch.Generator:
    """The random stream that belongs to a text: the same everywhere, always."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _moved(scan: Volume, truth: Volume | None, motion: np.ndarray) -> tuple[Volume, Volume | None]:
    return move(scan, motion), None if truth is None else replace(truth, affine=motion @ truth.affine)


# Changes that leave the truth where it is: what they are called, and what makes them of the scan, the parts of the name
# and the random stream of change and subject.
_NUMBER = r"(\d+(?:\.\d+)?)"
_OF_THE_IMAGE: tuple[tuple[str, Callable[[Volume, re.Match[str], torch.Generator], Volume]], ...] = (
    (PLAIN, lambda scan, _found, _rng: scan),
    (rf"({'|'.join(SLICE_AXES)})-{_NUMBER}mm", lambda scan, found, _rng: thick_slices(scan, found[1], float(found[2]))),
    ("inverted", lambda scan, _found, _rng: recontrast(scan, lambda level: 1 - level)),
    (
        r"(monotone|smooth)-\d+",
        lambda scan, found, rng: recontrast(scan, draw_curve(monotone=found[1] == "monotone", rng=rng)),
    ),
    (rf"snr-{_NUMBER}", lambda scan, found, rng: rician_noise(scan, float(found[1]), rng=rng)),
    (r"bias-\d+", lambda scan, _found, rng: uneven_gain(scan, rng=rng)),
    (r"motion-\d+", lambda scan, _found, rng: motion(scan, rng=rng)),
    (rf"cut-({'|'.join(SIDES)})-{_NUMBER}", lambda scan, found, _rng: cut(scan, found[1], float(found[2]))),
)
