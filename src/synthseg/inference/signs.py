"""Numbers that tell whether a scan is one that the networks know: of the image, and of where its segmentation lies.

Nothing here judges: thresholds and sentences are in ``scan_warnings.py``. All of it is read of what is in memory
already, in some tenths of a second a scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthseg.inference.prepare import Prepared, looks_like_ct
from synthseg.inference.sparse import SparsePosteriors
from synthseg.inference.structures import CSF_VALUE, Channels
from synthseg.volumes import Window

SIDES = (("left", "right"), ("back", "front"), ("bottom", "top"))
BLOCK = 96  # voxels a side of the part in the middle that is looked at: statistics need no more
BRAIN_STEM = 16
# Whose place on a face says nothing: the cord always leaves the field of view, CSF is thin and lies around the brain.
NOT_CUT = (BRAIN_STEM, CSF_VALUE)
SURE, EVERY = 0.9, 7  # posterior above which, and of so many voxels one, the image is looked at


@dataclass(frozen=True, kw_only=True)
class ImageSigns:
    """What the voxels of a scan look like, before any network.

    Attributes:
        spacing_mm: of the scan's voxels.
        roughness: mean squared difference of neighbours over twice the variance, along the smoothest axis: 0 for a
            smooth image, 1 for noise without any structure (von Neumann's ratio, halved).
        flatness: share of neighbouring voxels that are exactly equal, where they are not both of the commonest value:
            near 0 for scans, near 1 for label maps and masks.
        distinct: different values in the middle of the scan.
        lowest, high: the smallest value, and the 99th percentile of those that are not 0.
        hounsfield: whether the values are Hounsfield units of a whole head (``prepare.looks_like_ct``).
        content: the part of the field of view beyond which every plane is constant, which holds no image.
    """

    spacing_mm: tuple[float, float, float]
    roughness: float
    flatness: float
    distinct: int
    lowest: float
    high: float
    hounsfield: bool
    content: Window


@dataclass(frozen=True, kw_only=True)
class BrainSigns:
    """Where the structures of a segmentation lie.

    Attributes:
        touching_mm2: area of the brain (without brain stem and CSF) on each face of the field of view, by side.
        centres_mm: centre of mass of every structure, world millimetres (right, front, up), by label value.
        brightness: mean and standard deviation of the image in every structure, where its posterior is above
            :data:`SURE`, in the units of the network's image (0 to 1), by label value.
        rim: median of the image on the faces of what the field of view holds, in the same units.
    """

    touching_mm2: dict[str, float]
    centres_mm: dict[int, tuple[float, float, float]]
    brightness: dict[int, tuple[float, float]]
    rim: float


def image_signs(prepared: Prepared) -> ImageSigns:
    """The signs of a prepared scan's voxels."""
    data = prepared.scan.data
    block = _middle(data)
    x, y, z = (float(size) for size in prepared.scan.spacing_mm)
    values, counts = np.unique(block, return_counts=True)
    some = data[::4, ::4, ::4]
    nonzero = some[some != 0]
    return ImageSigns(
        spacing_mm=(x, y, z),
        roughness=roughness(block),
        flatness=flatness(block, float(values[counts.argmax()])),
        distinct=len(values),
        lowest=float(data.min()),
        high=float(np.percentile(nonzero, 99)) if nonzero.size else 0.0,
        hounsfield=looks_like_ct(data),
        content=content_window(data),
    )


def roughness(data: np.ndarray) -> float:
    """Half of von Neumann's ratio of [X, Y, Z], along the smoothest axis; 0 of a constant image.

    Source: von Neumann 1941, the ratio of the mean square successive difference to the variance; 2 for white noise.
    """
    variance = float(data.var(dtype=np.float64))
    if variance <= 0:
        return 0.0
    ratios = [
        float(np.mean(np.square(np.diff(data, axis=axis), dtype=np.float64))) / (2 * variance)
        for axis in range(3)
        if data.shape[axis] > 1
    ]
    return min(ratios, default=0.0)


def flatness(data: np.ndarray, background: float) -> float:
    """Share of neighbours along any axis that are exactly equal, of those that are not both ``background``."""
    pairs = equal = 0
    for axis in range(3):
        planes = np.moveaxis(data, axis, 0)
        first, second = planes[:-1], planes[1:]
        same = first == second
        pairs += same.size - int(np.count_nonzero(same & (first == background)))
        equal += int(np.count_nonzero(same & (first != background)))
    return equal / pairs if pairs else 0.0


def content_window(data: np.ndarray) -> Window:
    """The box beyond which every plane of [X, Y, Z] has one value: padding, or what was masked out."""
    start, stop = [0, 0, 0], list(data.shape)
    for axis in range(3):
        planes = np.moveaxis(data, axis, 0)
        while start[axis] < stop[axis] - 1 and _constant(planes[start[axis]]):
            start[axis] += 1
        while stop[axis] - 1 > start[axis] and _constant(planes[stop[axis] - 1]):
            stop[axis] -= 1
    x, y, z = (b - a for a, b in zip(start, stop, strict=True))
    a, b, c = data.shape
    return Window((start[0], start[1], start[2]), (x, y, z), (a, b, c))


def brain_signs(prepared: Prepared, posteriors: SparsePosteriors, channels: Channels, content: Window) -> BrainSigns:
    """The signs of a segmentation.

    Args:
        posteriors: cleaned, on the 1 mm grid; channels are those of ``channels``.
        content: of :class:`ImageSigns`.
    """
    faces = _faces(prepared, posteriors, content)
    areas = np.zeros((3, 2))
    centres: dict[int, tuple[float, float, float]] = {}
    brightness: dict[int, tuple[float, float]] = {}
    box = posteriors.box.affine
    for channel, index, values in posteriors.by_channel():
        value, total = int(channels.values[channel]), float(values.sum(dtype=np.float64))
        if total <= 0:
            continue
        profiles = _profiles(index, values, posteriors.shape)
        mean = np.array([np.dot(np.arange(len(profile)), profile) / total for profile in profiles])
        x, y, z = (box[:3, :3] @ mean + box[:3, 3]).tolist()
        centres[value] = (x, y, z)
        if value not in NOT_CUT:
            areas += _on_faces(profiles, faces)
        sure = index[values > SURE][::EVERY]
        if sure.size:
            seen = _image_at(prepared, box[:3, :3] @ np.stack(np.unravel_index(sure, posteriors.shape)) + box[:3, 3:])
            brightness[value] = (float(seen.mean()), float(seen.std()))
    spacing = posteriors.grid.spacing_mm
    areas *= (np.prod(spacing) / spacing)[:, None]
    names = [name for names in SIDES for name in names]
    touching = dict(zip(names, areas.ravel().tolist(), strict=True))
    return BrainSigns(touching_mm2=touching, centres_mm=centres, brightness=brightness, rim=_rim(prepared, content))


def _image_at(prepared: Prepared, places_mm: np.ndarray) -> np.ndarray:
    """The network's image at the voxels nearest to [3, n] world places, not clipped to 0 and 1: [n]."""
    to_working = np.linalg.inv(prepared.working_affine)
    near = np.rint(to_working[:3, :3] @ places_mm + to_working[:3, 3:]).astype(int)
    i, j, k = np.clip(near, 0, np.asarray(prepared.working.shape)[:, None] - 1)
    low, high = prepared.limits
    seen: np.ndarray = (prepared.working[i, j, k] - low) / (high - low)
    return seen


def _rim(prepared: Prepared, content: Window) -> float:
    """Median of the network's image on the faces of the content."""
    inner = content.crop(prepared.scan.data)
    faces = [np.ravel(inner.take(end, axis)) for axis in range(3) for end in (0, -1)]
    low, high = prepared.limits
    return float((np.median(np.concatenate(faces)) - low) / (high - low))


def _faces(prepared: Prepared, posteriors: SparsePosteriors, content: Window) -> np.ndarray:
    """First and last plane of the content along each axis, in voxels of the posteriors' box: [3, 2]."""
    factor = prepared.native.spacing_mm / posteriors.grid.spacing_mm
    first = np.floor(np.asarray(content.start) * factor + 1e-3)
    last = np.ceil(np.add(content.start, content.shape) * factor - 1e-3) - 1
    last = np.minimum(last, np.asarray(posteriors.grid.shape) - 1)
    return (np.stack([first, last], 1) - np.asarray(posteriors.start)[:, None]).astype(int)


def _profiles(index: np.ndarray, values: np.ndarray, shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Sums of values [n] over every plane of a box along each axis: three float64 arrays, of the box's sides."""
    x, rest = np.divmod(index, shape[1] * shape[2])
    y, z = np.divmod(rest, shape[2])
    return [np.bincount(axis, values, side) for axis, side in zip((x, y, z), shape, strict=True)]


def _on_faces(profiles: list[np.ndarray], faces: np.ndarray) -> np.ndarray:
    """What of the profiles lies on the faces: [3, 2]; 0 where a face is not in the box."""
    found = [
        [float(profile[end]) if 0 <= end < len(profile) else 0.0 for end in ends]
        for profile, ends in zip(profiles, faces.tolist(), strict=True)
    ]
    return np.array(found)


def _middle(data: np.ndarray) -> np.ndarray:
    """A block of at most :data:`BLOCK` voxels a side, in the middle."""
    cut = [slice(max(0, (n - BLOCK) // 2), max(0, (n - BLOCK) // 2) + BLOCK) for n in data.shape]
    return np.ascontiguousarray(data[tuple(cut)])


def _constant(plane: np.ndarray) -> bool:
    return bool((plane == plane.flat[0]).all())
