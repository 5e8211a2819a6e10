"""What goes wrong while a scan is made: noise, an uneven coil, a head that moves, a field of view that ends too soon.

Pure functions of a :class:`Volume` that leave its grid as it is (a cut makes it smaller); ``synthseg.volumes.degrade``
calls them by name. They imitate the acquisition, and share nothing with the generative model networks are trained on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from synthseg.errors import VolumeError
from synthseg.volumes.orient import orientation_of
from synthseg.volumes.resample import reslice
from synthseg.volumes.volume import Volume
from synthseg.volumes.window import Window, bounding_box

BIAS_STD = 0.5  # of the log gain over the head: one sixth of it is brightened by more than 1.6, one sixth darkened
BIAS_NODES_MM = 80.0  # apart: about the reach of one coil element
STILL_SHARE = 0.07  # of all lines of k-space, those about its centre: where the head is in the image
MOVES = 3  # poses before those lines, and as many after
TURN_STD_DEG = 3.0  # about each axis
SHIFT_STD_MM = 2.0  # along each axis
SIDES = {  # of the head: world axis (right, front, up), and 1 for its far end
    "left": (0, 0),
    "right": (0, 1),
    "posterior": (1, 0),
    "anterior": (1, 1),
    "inferior": (2, 0),
    "superior": (2, 1),
}
_BINS = 256


def foreground(scan: Volume) -> np.ndarray:
    """[X, Y, Z] bool: voxels brighter than Otsu's threshold of the whole scan, which tells a head from air.

    Raises: VolumeError if the scan is constant.
    Source: Otsu 1979, the threshold of largest variance between the two classes, on 256 bins.
    """
    values = scan.data[np.isfinite(scan.data)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not high > low:
        raise VolumeError(scan.subject, found="one intensity only", fix="give a scan with an image in it")
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    sums = (counts * centres).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return np.asarray(scan.data > edges[1:][np.nanargmax(between)])


def rician_noise(scan: Volume, snr: float, *, rng: torch.Generator) -> Volume:
    """The scan as the magnitude of a noisy complex image.

    Signal-to-noise ratio: the mean of the foreground (:func:`foreground`) over the standard deviation of the white
    Gaussian noise in each of the two channels, at the scan's own voxel size. Where there is no signal the noise stays,
    Rayleigh distributed: air, and what a stripped scan has around the brain, is no longer 0. float32.

    Raises: VolumeError if the scan is constant or has negative intensities (magnitudes have none).
    Source: Gudbjartsson and Patz 1995, the distribution of a magnitude image.
    """
    if float(scan.data.min()) < 0:
        found = f"intensities down to {float(scan.data.min()):g}"
        raise VolumeError(scan.subject, found=found, fix="add noise to magnitude images only, which have none below 0")
    sigma = float(scan.data[foreground(scan)].mean(dtype=np.float64)) / snr
    real, imaginary = (sigma * torch.randn(scan.shape, generator=rng).numpy() for _ in range(2))
    return replace(scan, data=np.hypot(scan.data.astype(np.float32) + real, imaginary))


def uneven_gain(scan: Volume, *, rng: torch.Generator, std: float = BIAS_STD) -> Volume:
    """The scan times a smooth field, as close to a surface coil.

    The log gain is a cubic spline through normal values at nodes :data:`BIAS_NODES_MM` apart, shifted and scaled to
    mean 0 and standard deviation ``std`` over the foreground, so that every scan meets the same strength. float32.

    Raises: VolumeError if the scan is constant.
    """
    extent = np.asarray(scan.shape) * scan.spacing_mm
    nodes = [max(3, math.ceil(side / BIAS_NODES_MM) + 1) for side in extent]
    field = torch.randn(nodes, generator=rng).numpy()
    for axis, (n, k) in enumerate(
        zip(scan.shape, nodes, strict=True)
    ):  # a spline through a grid is one along each axis
        field = np.moveaxis(np.tensordot(_spline(n, k), field, (1, axis)), 0, axis)
    head = field[foreground(scan)].astype(np.float64)
    gain = np.exp((field - head.mean()) / max(head.std(), 1e-6) * std)
    return replace(scan, data=(scan.data * gain).astype(np.float32))


def motion(scan: Volume, *, rng: torch.Generator) -> Volume:
    """The scan of a head that moved a few times while it was made.

    Lines of k-space are measured one after the other along one axis, phase encoding from back to front. Those about
    the centre (:data:`STILL_SHARE` of all) see the head where it is in the scan, so that its truth stays in place;
    before and after, the head lies in :data:`MOVES` other poses each, for random spans. Every pose is a turn and a
    shift about the centre of the content. The result is the magnitude: blur, ringing and ghosts. float32.

    Raises: VolumeError if the scan is empty.
    """
    from scipy.fft import fft, ifft

    if not scan.data.any():
        raise VolumeError(scan.subject, found="no intensity above 0", fix="give a scan with an image in it")
    axis = orientation_of(scan.affine).axes[1]
    box = bounding_box(scan.data != 0, margin=math.ceil(15 / scan.spacing_mm.min()))
    still = replace(scan, data=box.crop(scan.data).astype(np.float32), affine=box.affine(scan.affine))
    length = scan.shape[axis]
    strip = _along(box, axis, scan.shape)  # the box, but the whole field of view along the lines' axis
    order = np.argsort(np.fft.fftfreq(length), kind="stable")  # in time: from one end of k-space to the other
    spectrum = fft(_placed(still.data, box, axis, length), axis=axis)
    for begin, end in _spans(length, rng):
        pose = _pose(still, rng)
        moved = reslice(still.data, pose @ still.affine, still.shape, still.affine, order=1)
        lines: list[slice | np.ndarray] = [slice(None)] * 3
        lines[axis] = order[begin:end]
        spectrum[tuple(lines)] = fft(_placed(moved, box, axis, length), axis=axis)[tuple(lines)]
    image = np.abs(ifft(spectrum, axis=axis)).astype(np.float32)
    return replace(scan, data=strip.uncrop(image))


def cut(scan: Volume, side: str, percent: float) -> Volume:
    """The scan with a field of view that ends too soon: fewer voxels, the affine to match.

    Args:
        side: of the head, one of :data:`SIDES`; the array axis closest to it is cut.
        percent: share of the foreground's extent along that axis that is lost, with all that lies beyond.
    Raises: VolumeError if the scan is constant, or fewer than two voxels would be left.
    """
    world, upper = SIDES[side]
    orientation = orientation_of(scan.affine)
    axis = orientation.axes[world]
    at_end = bool(upper) == bool(scan.affine[world, axis] > 0)
    box = bounding_box(foreground(scan))
    first, last = box.start[axis], box.start[axis] + box.shape[axis]
    lost = round(box.shape[axis] * percent / 100)
    begin, end = (0, last - lost) if at_end else (first + lost, scan.shape[axis])
    if end - begin < 2:
        found = f"{max(end - begin, 0)} voxels left after a cut of {percent:g} %"
        raise VolumeError(scan.subject, found=found, fix="cut less than the whole head")
    start, shape = [0, 0, 0], list(scan.shape)
    start[axis], shape[axis] = begin, end - begin
    window = Window((start[0], start[1], start[2]), (shape[0], shape[1], shape[2]), scan.shape)
    return replace(scan, data=window.crop(scan.data), affine=window.affine(scan.affine))


def rigid(
    centre: np.ndarray, turns_deg: Sequence[float] | np.ndarray, shift_mm: Sequence[float] | np.ndarray
) -> np.ndarray:
    """[4, 4] world to world: turns about the axes to the right, front and up through ``centre``, then a shift."""
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", list(turns_deg), degrees=True).as_matrix()
    matrix[:3, 3] = centre + np.asarray(shift_mm) - matrix[:3, :3] @ centre
    return matrix


def _spline(n: int, nodes: int) -> np.ndarray:
    """[n, nodes] float32: from values at nodes, the outer ones at the ends, to their cubic spline at ``n`` voxels."""
    from scipy.interpolate import CubicSpline

    at_nodes = np.linspace(0, 1, nodes)
    return np.asarray(CubicSpline(at_nodes, np.eye(nodes))(np.linspace(0, 1, n)), dtype=np.float32)


def _pose(still: Volume, rng: torch.Generator) -> np.ndarray:
    drawn = torch.randn(6, generator=rng, dtype=torch.float64).numpy()
    centre = (still.affine @ [*((np.asarray(still.shape) - 1) / 2), 1.0])[:3]
    return rigid(centre, drawn[:3] * TURN_STD_DEG, drawn[3:] * SHIFT_STD_MM)


def _spans(length: int, rng: torch.Generator) -> list[tuple[int, int]]:
    """First line and the line after the last of every pose but the resting one, in time."""
    rest = max(1, round(length * STILL_SHARE / 2))
    spans = []
    for low, high in ((0, length // 2 - rest), (length // 2 + rest, length)):
        inner = torch.rand(MOVES - 1, generator=rng).sort().values.numpy()
        ends = [low, *(low + np.rint(inner * (high - low)).astype(int)).tolist(), high]
        spans += list(itertools.pairwise(ends))
    return [(begin, end) for begin, end in spans if end > begin]


def _along(box: Window, axis: int, full: tuple[int, int, int]) -> Window:
    start, shape = list(box.start), list(box.shape)
    start[axis], shape[axis] = 0, full[axis]
    return Window((start[0], start[1], start[2]), (shape[0], shape[1], shape[2]), full)


def _placed(data: np.ndarray, box: Window, axis: int, length: int) -> np.ndarray:
    """The box's data within the whole field of view along one axis."""
    before = box.start[axis]
    pad = [(0, 0)] * 3
    pad[axis] = (before, length - before - box.shape[axis])
    return np.pad(data, pad)
