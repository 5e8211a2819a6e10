"""From a scan to what the networks are given, step by step as the original does it (reference 6.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from synthseg.errors import UsageError
from synthseg.inference.original.scan import Scan, few_slices_note
from synthseg.volumes.orient import Orientation
from synthseg.volumes.volume import spacing_of
from synthseg.volumes.window import Window, center_window, crop_pad

TOLERANCE_MM = 0.05
MULTIPLE = 32  # of the sides of what the networks are given
LEAST_SIDE = 128  # of the same, where no crop was asked for
CT_WINDOW = (0.0, 80.0)  # Hounsfield units
PERCENTILES = (0.5, 99.5)  # intensities that become 0 and 1
SIGMA = 0.25  # of the blur before resampling, in voxels of 1 mm


@dataclass(frozen=True)
class OriginalInput:
    """What the networks are given, and the way back to the scan's own axes.

    Attributes:
        image: [1, 1, X, Y, Z] float32 in [0, 1], sides multiples of 32.
        padded: where the un-padded patch lies in the image: a window of the patch's grid that reaches outside.
        patch: the patch in the whole scan, axes in RAS order: all of it without a crop.
        orientation: leads back to the scan's own axes, under ``affine`` (of the resampled scan, where it was).
        shape: of the output, in the order of the scan's own axes.
        voxel_mm3: what a voxel counts, single precision.
        resampled: [X, Y, Z] float64 in the scan's own axes; None where nothing was resampled or it was not asked for.
        notes: in sentences.
    """

    image: Tensor
    padded: Window
    patch: Window
    orientation: Orientation
    affine: np.ndarray
    shape: tuple[int, ...]
    voxel_mm3: np.float32
    resampled: np.ndarray | None
    notes: tuple[str, ...]

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """The patch in the image: what removing the padding leaves."""
        ends = zip(self.padded.start, self.padded.full_shape, strict=True)
        x, y, z = (slice(-begin, -begin + size) for begin, size in ends)
        return x, y, z


def prepare_as_original(
    scan: Scan, *, ct: bool = False, crop: Sequence[int] | None = None, keep_resampled: bool = False
) -> OriginalInput:
    """Steps 2 to 8 of the original's preparation.

    Args:
        crop: three sizes, multiples of 32 (:func:`crop_sizes`), of the centred patch that is segmented.
    Source: reference 6.3.
    """
    data, affine, sizes = scan.data, scan.affine, scan.sizes_mm
    notes = list(scan.notes)
    moved = needs_resampling(sizes)
    if moved:
        data, affine = resample(data, affine)
        sizes = np.ones(3, np.float32)
    orientation = ras_orientation(affine)
    remark = few_slices_note(scan, data.shape[orientation.axes[2]])
    if remark is not None:
        notes.append(remark)
    aligned = into_ras(data, orientation)
    patch = crop_window(aligned.shape, crop)
    x, y, z = (slice(begin, begin + size) for begin, size in zip(patch.start, patch.shape, strict=True))
    image, remarks = rescaled(aligned[x, y, z], ct=ct)
    least = (LEAST_SIDE,) * 3 if crop is None else tuple(crop)
    padded = padded_window(image.shape, least)
    return OriginalInput(
        image=torch.from_numpy(crop_pad(image, padded.start, padded.shape))[None, None],
        padded=padded,
        patch=patch,
        orientation=orientation,
        affine=affine,
        shape=data.shape,
        voxel_mm3=np.multiply.reduce(sizes.astype(np.float32)),
        resampled=data if moved and keep_resampled else None,
        notes=(*notes, *remarks),
    )


def needs_resampling(sizes_mm: np.ndarray) -> bool:
    """Whether any voxel size is outside 0.95 to 1.05 mm, single-precision sizes being compared in double precision.

    A header's 0.95 is a little less in single precision, and so is resampled; its 1.05 is a little less as well, and so
    is not.
    """
    sizes = np.asarray(sizes_mm, dtype=np.float64)
    return bool(((sizes > 1 + TOLERANCE_MM) | (sizes < 1 - TOLERANCE_MM)).any())


def positions(size: int, factor: float) -> np.ndarray:
    """Where along an axis of ``size`` voxels the new samples are taken, in its voxels; ``factor`` new ones a voxel.

    A floating-point range, with the sample more that rounding makes of it now and then: 181 voxels of 0.7 mm give 128.
    """
    start = -(factor - 1) / (2 * factor)
    step = 1 / factor
    along: np.ndarray = np.arange(start, start + step * np.ceil(size * factor), step)
    return np.clip(along, 0, size - 1)


def resample(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[X, Y, Z] float64 at voxels of 1 mm, and their affine.

    Blurred by 0.25 / factor, but along axes that get finer samples, then trilinear with positions held inside the grid.
    One interpolation after the other gives the trilinear values up to rounding in double precision; plane by plane, so
    that it takes no memory but the result's.

    Source: reference 6.3, step 2.
    """
    factor = spacing_of(affine)
    sigmas = np.where(factor > 1, 0.0, SIGMA / factor)
    filtered = gaussian_filter(data, sigmas)
    (x0, x1, wx), (y0, y1, wy), (z0, z1, wz) = (
        _neighbours(positions(size, float(f)), size) for size, f in zip(data.shape, factor, strict=True)
    )
    result = np.empty((len(wx), len(wy), len(wz)))
    for plane, low, high, weight in zip(result, x0, x1, wx, strict=True):
        mixed = filtered[low] * (1 - weight) + filtered[high] * weight
        mixed = mixed[y0] * (1 - wy)[:, None] + mixed[y1] * wy[:, None]
        plane[...] = mixed[:, z0] * (1 - wz) + mixed[:, z1] * wz
    moved = np.array(affine, dtype=np.float64)
    moved[:3, :3] /= factor
    moved[:3, 3] -= moved[:3, :3] @ (0.5 * (factor - 1))
    return result, moved


def _neighbours(along: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The voxels before and after every position, and the weight of the second."""
    low = np.minimum(along.astype(np.int64), max(size - 2, 0))
    return low, np.minimum(low + 1, size - 1), along - low


def ras_orientation(affine: np.ndarray) -> Orientation:
    """Which axis runs to the right, to the front and up, by the original's rule.

    For every world axis the voxel axis with the largest entry in the inverse affine; where one is left without, it goes
    to the last world axis that shares its voxel axis with another. Flipped where it points the other way. For affines
    far from any axis this is not always nibabel's answer.

    Source: reference 6.3, step 3.
    """
    axes = np.abs(np.linalg.inv(affine)[:3, :3]).argmax(axis=0)
    for missing in range(3):
        if missing not in axes:
            found, counts = np.unique(axes, return_counts=True)
            axes[np.flatnonzero(axes == found[counts.argmax()])[-1]] = missing
    a, b, c = (int(axis) for axis in axes)
    down = [bool(affine[world, axis] < 0) for world, axis in enumerate((a, b, c))]
    names = {axis: ("RAS", "LPI")[flip][world] for world, (axis, flip) in enumerate(zip((a, b, c), down, strict=True))}
    return Orientation((a, b, c), (down[0], down[1], down[2]), "".join(names[axis] for axis in range(3)))


def into_ras(data: np.ndarray, orientation: Orientation) -> np.ndarray:
    """A view of [X, Y, Z] with its axes to the right, front and up; ``from_ras`` is the way back."""
    x, y, z = (slice(None, None, -1 if flip else 1) for flip in orientation.flips)
    return data.transpose(orientation.axes)[x, y, z]


def crop_sizes(crop: int | Sequence[int] | None) -> tuple[int, int, int] | None:
    """One size or three, each rounded up to a multiple of 32 (reference 6.3, step 4). None stays None.

    Raises: UsageError for sizes below 1, or another number of them than one or three.
    """
    if crop is None:
        return None
    sizes = [crop] if isinstance(crop, int) else [int(size) for size in crop]
    if len(sizes) not in (1, 3) or min(sizes) < 1:
        raise UsageError("crop", found=f"{crop}", fix="give one size in voxels, or three, each at least 1")
    x, y, z = (-(-size // MULTIPLE) * MULTIPLE for size in sizes * (3 // len(sizes)))
    return x, y, z


def crop_window(shape: tuple[int, ...], crop: Sequence[int] | None) -> Window:
    """The centred patch of these sizes; along axes that are shorter, all of them."""
    return center_window(shape, shape if crop is None else [min(n, size) for n, size in zip(shape, crop, strict=True)])


def padded_window(shape: tuple[int, ...], least: Sequence[int]) -> Window:
    """The window around a patch whose sides are multiples of 32 and at least ``least``, the smaller half before."""
    sides = [max(-(-n // MULTIPLE) * MULTIPLE, low) for n, low in zip(shape, least, strict=True)]
    return center_window(shape, sides)


def rescaled(data: np.ndarray, *, ct: bool) -> tuple[np.ndarray, list[str]]:
    """Intensities between the percentiles 0.5 and 99.5 of all voxels as 0 to 1, float32; and what there is to say.

    Computed in double precision. Where the percentiles are one number, the image becomes 0 throughout.

    Source: reference 6.3, steps 5 and 6.
    """
    if ct:
        data = np.clip(data, *CT_WINDOW)
    low, high = np.percentile(data, PERCENTILES)
    if not high > low:
        note = f"No contrast: percentiles {PERCENTILES[0]} and {PERCENTILES[1]} are both {low:g}, the image became 0."
        return np.zeros(data.shape, np.float32), [note]
    image = np.clip(data, low, high)
    image -= low
    image /= high - low
    return image.astype(np.float32), []
