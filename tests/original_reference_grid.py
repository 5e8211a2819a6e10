"""Section 6.3 and 6.7 of the behaviour specification: from a file to the network's grid, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

Array = np.ndarray[Any, Any]
MULTIPLE = 32
MIN_PADDED = 128


class Image(NamedTuple):
    """voxels [X, Y, Z] float64, affine [4, 4], voxel size by the header."""

    voxels: Array
    affine: Array
    zooms: Array
    nifti: bool


def read(path: str | Path) -> Image:
    """Read as float64, squeezed, and reject what the original cannot process (step 1)."""
    path = Path(path)
    if path.suffix == ".npz":
        voxels, affine, zooms, nifti = np.load(path)["vol_data"].astype(np.float64), np.eye(4), np.ones(3), False
    else:
        file = nib.load(path)
        voxels, affine = np.asarray(file.dataobj, dtype=np.float64), np.asarray(file.affine, np.float64)
        nifti = not path.name.endswith(".mgz")
        zooms = np.asarray(file.header.get_zooms()[:3] if nifti else file.header["delta"], np.float64)
    voxels = voxels.squeeze()
    return Image(_one_volume(voxels, nifti), affine, zooms, nifti)


def _one_volume(voxels: Array, nifti: bool) -> Array:
    if voxels.ndim not in (3, 4):
        raise ValueError(f"{voxels.ndim}-D")
    last = voxels.shape[-1]
    if voxels.ndim == 3:
        if last <= 3 or (last <= 10 and nifti):
            raise ValueError(f"3-D with {last} slices")
        return voxels
    if last > 10 and nifti:
        raise ValueError(f"4-D with {last} frames")
    return voxels[..., 0]


def needs_resampling(zooms: Array) -> bool:
    """Any axis outside [0.95, 1.05] mm."""
    return bool(((zooms < 0.95) | (zooms > 1.05)).any())


def positions(n: int, factor: float) -> Array:
    """Where the new samples of an axis lie, in old voxels; a floating-point range may give one too many."""
    start, step = -(factor - 1) / (2 * factor), 1 / factor
    return np.arange(start, start + step * math.ceil(n * factor), step).clip(0, n - 1)


def resample(voxels: Array, affine: Array) -> tuple[Array, Array]:
    """To exactly 1 mm (step 2): (voxels, affine)."""
    factor = np.sqrt((affine[:3, :3] ** 2).sum(0))
    sigma = np.where(factor > 1, 0, 0.25 / factor)
    blurred = ndimage.gaussian_filter(voxels, sigma, mode="reflect", truncate=4.0)
    axes = [positions(n, f) for n, f in zip(voxels.shape, factor, strict=True)]
    interpolate = RegularGridInterpolator([np.arange(n) for n in voxels.shape], blurred, method="linear")
    new = np.stack([interpolate(np.stack(np.meshgrid([x], *axes[1:], indexing="ij"), -1))[0] for x in axes[0]])
    new_affine = affine.copy()
    new_affine[:3, :3] /= factor
    new_affine[:3, 3] -= new_affine[:3, :3] @ (0.5 * (factor - 1))
    return new, new_affine


class Orientation(NamedTuple):
    """axes[w]: voxel axis of world axis w; flipped[w]: whether it runs against it."""

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]


def orientation(affine: Array) -> Orientation:
    """Step 3: obliquity ignored."""
    axes = np.abs(np.linalg.inv(affine)[:3, :3]).argmax(0)
    for axis in range(3):
        if axis not in axes:
            most = np.bincount(axes, minlength=3).argmax()
            axes[np.flatnonzero(axes == most)[-1]] = axis
    flipped = [bool(affine[world, axis] < 0) for world, axis in enumerate(axes)]
    return Orientation(tuple(int(a) for a in axes), tuple(flipped))


def align(voxels: Array, how: Orientation) -> Array:
    """Native axes -> RAS; further axes stay last."""
    voxels = voxels.transpose(*how.axes, *range(3, voxels.ndim))
    return np.flip(voxels, [w for w in range(3) if how.flipped[w]])


def unalign(voxels: Array, how: Orientation) -> Array:
    """RAS -> native axes."""
    voxels = np.flip(voxels, [w for w in range(3) if how.flipped[w]])
    return voxels.transpose(*np.argsort(how.axes), *range(3, voxels.ndim))


def round_up(n: int) -> int:
    return math.ceil(n / MULTIPLE) * MULTIPLE


def crop_sizes(crop: Sequence[int] | None) -> tuple[int, ...] | None:
    """`--crop N [N N]`, each size rounded up to a multiple of 32."""
    if crop is None:
        return None
    return tuple(round_up(n) for n in (list(crop) * 3 if len(crop) == 1 else crop))


def center_crop_box(shape: Sequence[int], sizes: Sequence[int] | None) -> tuple[slice, ...]:
    """Step 4; a size that the image does not reach is ignored."""
    if sizes is None:
        return tuple(slice(0, n) for n in shape)
    starts = [max(0, int((n - size) / 2)) for n, size in zip(shape, sizes, strict=True)]
    return tuple(slice(a, min(a + size, n)) for a, size, n in zip(starts, sizes, shape, strict=True))


def center_crop(voxels: Array, sizes: Sequence[int] | None) -> Array:
    return voxels[center_crop_box(voxels.shape, sizes)]


def normalise(voxels: Array, ct: bool = False) -> Array:
    """Steps 5 and 6: to [0, 1] between the 0.5th and the 99.5th percentile of all voxels."""
    if ct:
        voxels = voxels.clip(0, 80)
    low, high = np.percentile(voxels, 0.5), np.percentile(voxels, 99.5)
    if low == high:
        return np.zeros_like(voxels)
    return (voxels.clip(low, high) - low) / (high - low)


def pad_box(shape: Sequence[int], sizes: Sequence[int] | None = None) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """Step 7: (padded shape, where the content lies in it)."""
    least = sizes or (MIN_PADDED,) * 3
    padded = tuple(max(round_up(n), m) for n, m in zip(shape, least, strict=True))
    before = [(p - n) // 2 for p, n in zip(padded, shape, strict=True)]
    return padded, tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))


def pad(voxels: Array, sizes: Sequence[int] | None = None) -> Array:
    padded, box = pad_box(voxels.shape, sizes)
    out = np.zeros(padded, voxels.dtype)
    out[box] = voxels
    return out


def paste(patch: Array, shape: Sequence[int], box: tuple[slice, ...]) -> Array:
    """A cropped segmentation [X, Y, Z] or posteriors [X, Y, Z, L] into the aligned size (section 6.7)."""
    if patch.ndim == 3:
        whole = np.zeros(shape, patch.dtype)
    else:
        whole = np.zeros((*shape, patch.shape[3]))  # double precision from here on (section 6.8)
        whole[..., 0] = 1
    whole[box] = patch
    return whole


class Prepared(NamedTuple):
    """What `prepare` found on the way; `network_input` [X, Y, Z] is padded, in [0, 1]."""

    image: Image
    resampled: Array | None  # None: within 5 % of 1 mm
    affine: Array  # of the output grid
    zooms: Array
    how: Orientation
    aligned_shape: tuple[int, ...]
    crop_box: tuple[slice, ...]
    cropped: bool
    pad_box: tuple[slice, ...]
    network_input: Array


def prepare(path: str | Path, *, ct: bool = False, crop: Sequence[int] | None = None) -> Prepared:
    """Section 6.3, all steps."""
    image = read(path)
    voxels, affine, zooms, resampled = image.voxels, image.affine, image.zooms, None
    if needs_resampling(zooms):
        resampled, affine = resample(voxels, affine)
        voxels, zooms = resampled, np.ones(3)
    how = orientation(affine)
    aligned = align(voxels, how)
    if aligned.shape[2] <= 10:
        raise ValueError(f"S axis of {aligned.shape[2]} voxels")
    sizes = crop_sizes(crop)
    box = center_crop_box(aligned.shape, sizes)
    content = normalise(aligned[box], ct)
    return Prepared(
        image,
        resampled,
        affine,
        zooms,
        how,
        aligned.shape,
        box,
        sizes is not None,
        pad_box(content.shape, sizes)[1],
        pad(content, sizes),
    )
