"""A scan and its labels made small enough to live inside a page: cropped, blanked outside the brain, 8 bits."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthseg.errors import ShapeError
from synthseg.inference.structures import Structure
from synthseg.report.overlay import PLANES, WINDOW_PERCENTILES, blend, cut_through
from synthseg.volumes import Volume, bounding_box, crop_pad, resample_to_spacing, reslice, to_ras

MARGIN_MM = 12.0  # kept around the labels: enough to see what was missed, too little for a face
MOST_VOXELS = 8_000_000  # 200^3: beyond, voxels are made larger
SLICES_AT = (0.3, 0.5, 0.7)  # of the labelled box, where the pictures without WebGL are cut


@dataclass(frozen=True)
class Slice:
    """One cut as two pictures of equal size, to be laid over each other: grey, and labels with nothing in between."""

    plane: str
    position: float
    width_mm: float
    height_mm: float
    grey_png: bytes
    labels_png: bytes


@dataclass(frozen=True)
class Embedded:
    """What a page holds of a scan.

    Attributes:
        scan, labels: NIfTI-1 files (gzip), uint8 and uint8 or uint16, on one grid in RAS order; headers are new, so
            that nothing that was written into the scan's comes along. A label is its position in ``structures`` + 1.
        centres: [n, 3] where to look for each structure: its voxel nearest to its centre of mass, as fractions.
        start: where to look first, as fractions: the middle of the brain, a sixth of it to the right.
        shape, spacing_mm: of that grid.
        thumbnail: JPEG, three planes in a row.
    """

    scan: bytes
    labels: bytes
    structures: tuple[Structure, ...]
    centres: np.ndarray
    start: tuple[float, float, float]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    slices: tuple[Slice, ...]
    thumbnail: bytes
    notes: tuple[str, ...]


def prepare(scan: Volume, labels: Volume, *, whole_head: bool = False) -> tuple[Volume, Volume, tuple[str, ...]]:
    """Scan and labels on one small grid in RAS order, and notes on what was done to them.

    Args:
        scan: resliced (linear) onto the labels' grid where that is another one.
        whole_head: keep everything; otherwise both are cropped to the labels and ``MARGIN_MM`` around them, and voxels
            farther from any label take the lowest intensity: a head can be recognised by its face.
    Raises: ShapeError unless both are 3D.
    """
    if scan.data.ndim != 3 or labels.data.ndim != 3:
        found = f"shapes {scan.data.shape} and {labels.data.shape}"
        raise ShapeError(scan.subject, found=found, fix="give two 3D volumes")
    notes = []
    if scan.data.shape != labels.data.shape or not np.allclose(scan.affine, labels.affine, atol=1e-3):
        scan = Volume(reslice(scan.data, scan.affine, labels.shape, labels.affine, order=1), labels.affine)
        notes.append("the scan is shown on the grid of its labels")
    image, _ = to_ras(scan)
    label_map, _ = to_ras(labels)
    near = np.ones(label_map.shape, dtype=bool)
    if not whole_head and label_map.data.any():
        near = within(label_map.data != 0, label_map.spacing_mm, MARGIN_MM)
        notes.append(f"what is more than about {MARGIN_MM:g} mm from any label is black (--whole-head shows it)")
    box = bounding_box(near)
    image = _cropped(image, np.where(near, image.data, image.data.min()), box.start, box.shape)
    label_map = _cropped(label_map, label_map.data, box.start, box.shape)
    if image.data.size > MOST_VOXELS:
        spacing = _coarser(image)
        image = resample_to_spacing(image, spacing, order=1)
        label_map = resample_to_spacing(label_map, spacing, order=0)
        size = " x ".join(f"{mm:.2f}" for mm in image.spacing_mm)
        notes.append(f"shown with voxels of {size} mm, to keep the page small")
    return image, label_map, tuple(notes)


def embed(image: Volume, labels: Volume, structures: Sequence[Structure], notes: Sequence[str] = ()) -> Embedded:
    """All that a page holds of what :func:`prepare` gave. ``structures`` without background, in ascending order."""
    indexed = _indexed(labels.data, structures)
    low, high = window_of(image.data, labels.data)
    grey = (np.clip((image.data - low) / max(high - low, 1e-6), 0, 1) * 255).round().astype(np.uint8)
    x, y, z = (float(mm) for mm in image.spacing_mm)
    a, b, c = ((voxel + 0.5) / n for voxel, n in zip(cut_through(labels.data), image.shape, strict=True))
    return Embedded(
        scan=_nifti(grey, image.affine),
        labels=_nifti(indexed, image.affine),
        structures=tuple(structures),
        centres=_centres(indexed, len(structures)),
        start=(a, b, c),
        shape=image.shape,
        spacing_mm=(x, y, z),
        slices=tuple(_slices(grey, indexed, structures, image.spacing_mm)),
        thumbnail=_thumbnail(grey, labels, tuple(structures)),
        notes=tuple(notes),
    )


def within(mask: np.ndarray, spacing_mm: np.ndarray, distance_mm: float) -> np.ndarray:
    """[X, Y, Z] bool: voxels no farther than ``distance_mm`` from the mask, to within a block of about 3 mm."""
    from scipy.ndimage import distance_transform_edt

    blocks = [max(1, round(3 / mm)) for mm in spacing_mm]
    padded = [(0, -n % block) for n, block in zip(mask.shape, blocks, strict=True)]
    whole = np.pad(mask, padded)
    a, b, c = (n // block for n, block in zip(whole.shape, blocks, strict=True))
    small: np.ndarray = np.asarray(whole.reshape(a, blocks[0], b, blocks[1], c, blocks[2]).any(axis=(1, 3, 5)))
    distance = distance_transform_edt(~small, sampling=np.asarray(spacing_mm) * blocks)
    near: np.ndarray = np.asarray(distance) <= distance_mm
    for axis, block in enumerate(blocks):
        near = near.repeat(block, axis=axis)
    return near[tuple(slice(0, n) for n in mask.shape)]


def window_of(image: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Intensities shown as black and white: percentiles of the labelled voxels (of all, where there are no labels), and
    a fifth of their range below, for what is darker than any brain."""
    low, high = np.percentile(image[labels != 0] if labels.any() else image, WINDOW_PERCENTILES)
    return max(float(low) - 0.2 * float(high - low), float(image.min())), float(high)


def _cropped(volume: Volume, data: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*start, 1])[:3]
    return Volume(crop_pad(data, start, shape), affine)


def _coarser(volume: Volume) -> list[float]:
    """Voxel sizes with which the volume has at most ``MOST_VOXELS``: the smallest are raised first."""
    extent, spacing = np.asarray(volume.shape) * volume.spacing_mm, volume.spacing_mm.copy()
    while np.prod(np.ceil(extent / spacing)) > MOST_VOXELS:
        spacing[spacing < spacing.min() * 1.01] *= 1.05
    return [float(mm) for mm in spacing]


def _indexed(labels: np.ndarray, structures: Sequence[Structure]) -> np.ndarray:
    values = np.array([0, *(s.value for s in structures)])
    return np.searchsorted(values, labels).astype(np.uint8 if len(values) < 256 else np.uint16)


def _nifti(data: np.ndarray, affine: np.ndarray) -> bytes:
    import nibabel as nib

    image = nib.Nifti1Image(np.asfortranarray(data), affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)  # 9: 0.3 % smaller, thrice the time


def _centres(indexed: np.ndarray, count: int) -> np.ndarray:
    """The voxel of each structure nearest to its centre of mass (which may lie outside a curved one), as fractions."""
    shape = np.asarray(indexed.shape)
    centres = np.full((count, 3), 0.5)
    order = np.argsort(indexed, axis=None, kind="stable")
    bounds = np.searchsorted(indexed.ravel()[order], np.arange(count + 2))
    for index in range(count):
        flat = order[bounds[index + 1] : bounds[index + 2]]
        if flat.size:
            voxels = np.stack(np.unravel_index(flat, indexed.shape), axis=1)
            nearest = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
            centres[index] = (nearest + 0.5) / shape
    return centres


def _slices(
    grey: np.ndarray, indexed: np.ndarray, structures: Sequence[Structure], spacing_mm: np.ndarray
) -> list[Slice]:
    box = bounding_box(indexed != 0)
    palette = np.array([(0, 0, 0), *(s.color for s in structures)], dtype=np.uint8)
    made = []
    for axis, plane in enumerate(PLANES):
        across = [other for other in range(3) if other != axis]
        for at in SLICES_AT:
            index = box.start[axis] + int(at * (box.shape[axis] - 1))
            # Transposed and flipped: right or front to the right, up upwards.
            under, over = (array.take(index, axis=axis).T[::-1] for array in (grey, indexed))
            width, height = (float(spacing_mm[a] * grey.shape[a]) for a in across)
            made.append(Slice(plane, at, width, height, _image(under, "PNG"), _painted(over, palette)))
    return made


def _thumbnail(grey: np.ndarray, labels: Volume, structures: tuple[Structure, ...], height: int = 150) -> bytes:
    """Three planes through the middle, labels half over them, in a row of ``height`` pixels."""
    from PIL import Image

    centre = cut_through(labels.data)
    parts = []
    for axis in range(3):
        across = [other for other in range(3) if other != axis]
        picture = blend(
            grey.take(centre[axis], axis=axis).T,
            labels.data.take(centre[axis], axis=axis).T,
            structures,
            low=0,
            high=255,
        )[::-1]
        wide, tall = (labels.spacing_mm[a] * labels.shape[a] for a in across)
        image = Image.fromarray((picture * 255).astype(np.uint8))
        parts.append(image.resize((max(1, round(height * wide / tall)), height)))
    return _image(np.concatenate([np.asarray(part) for part in parts], axis=1), "JPEG")


def _painted(indexed: np.ndarray, palette: np.ndarray) -> bytes:
    """PNG of labels in their colours; where there is none, it is transparent."""
    from PIL import Image

    if indexed.dtype != np.uint8:  # more than a palette holds
        return _image(np.dstack([palette[indexed], np.where(indexed > 0, 255, 0).astype(np.uint8)]), "PNG")
    image = Image.fromarray(np.ascontiguousarray(indexed)).convert("P")
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", transparency=0, optimize=True)
    return file.getvalue()


def _image(pixels: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    quality = {"quality": 82} if kind == "JPEG" else {"optimize": True}
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format=kind, **quality)
    return file.getvalue()
