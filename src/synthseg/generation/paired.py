"""An image and its label map from files, on the label map's grid: what priors and sub-labels are estimated from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synthseg.errors import UsageError, VolumeError

if TYPE_CHECKING:
    from synthseg.volumes.volume import Volume

LEAST_SHARE = 0.5  # of the labelled voxels that must lie in the image
_SAME_MM = 1e-2  # how far apart the corners of two grids may be that are the same


@dataclass(frozen=True, eq=False)
class ScanPair:
    """An image on the grid of its label map, axes in RAS+ order.

    Attributes:
        channels: [X, Y, Z] float32 each; NaN outside the image's field of view.
        labels: [X, Y, Z] int32 label values.
        spacing_mm: voxel sizes of the label map.
        acquired_mm: voxel sizes of the image as it is in its file, in the same axis order.
        notes: what was odd or mended, one sentence each.
    """

    name: str
    channels: tuple[np.ndarray, ...]
    labels: np.ndarray
    spacing_mm: tuple[float, ...]
    acquired_mm: tuple[float, ...]
    notes: tuple[str, ...] = ()


def read_pair(image: Path, labels: Path, *, channels: int = 1, resample: bool = True) -> ScanPair:
    """Read an image and its label map, the image brought onto the label map's grid where it has another.

    Args:
        channels: how many the image file holds along its fourth axis; 1 for a plain 3D image.
        resample: interpolate linearly where the grids differ (with a note); refuse such pairs otherwise.
    Raises: VolumeError for unreadable files, grids that differ without ``resample``, and images that show less than
        half of what is labelled.
    """
    from synthseg.volumes.channels import read_channels
    from synthseg.volumes.orient import to_ras
    from synthseg.volumes.read import read_volume

    truth, _ = to_ras(read_volume(labels, labels=True))
    images = [to_ras(volume)[0] for volume in read_channels(image, channels)]
    notes = [f"{image.name}: {note}" for note in dict.fromkeys(note for volume in images for note in volume.notes)]
    notes += [f"{labels.name}: {note}" for note in truth.notes]
    arrays = tuple(volume.data for volume in images)
    if not same_grid(images[0], truth):
        if not resample:
            found = (
                f"a grid of {images[0].shape} voxels of {_sizes(images[0].spacing_mm)} mm, not that of {labels.name}"
            )
            raise VolumeError(image, found=found, fix="resample it onto the label map's grid first")
        arrays = tuple(onto_grid(volume, truth, labels.name) for volume in images)
        notes.append(
            f"{image.name}: interpolated from voxels of {_sizes(images[0].spacing_mm)} mm onto the grid of"
            f" {labels.name}, {_sizes(truth.spacing_mm)} mm; this lowers the noise"
        )
    return ScanPair(
        name=image.name,
        channels=arrays,
        labels=truth.data,
        spacing_mm=tuple(float(s) for s in truth.spacing_mm),
        acquired_mm=tuple(float(s) for s in images[0].spacing_mm),
        notes=tuple(notes),
    )


def same_grid(first: Volume, second: Volume) -> bool:
    """Whether two volumes have their voxels at the same places, to a hundredth of a millimetre."""
    if first.shape != second.shape:
        return False
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in first.shape], [1], indexing="ij"), -1).reshape(-1, 4)
    return bool(np.abs(corners @ (first.affine - second.affine).T).max() <= _SAME_MM)


def match_files(
    images: Sequence[Path], found: Sequence[tuple[Path, Path]], *, shared: bool = False
) -> list[tuple[Path, Path]]:
    """Check that every image was paired with a label map of its own, or (``shared``) all with the one there is.

    Raises: UsageError naming the images without a label map, or with the same.
    """
    what = "label map"
    paired = {image for image, _ in found}
    missing = [image.name for image in images if image not in paired]
    fix = f"name image and {what} alike (sub-01_T1w, sub-01_aseg), narrow both down with patterns, or give two files"
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UsageError(images[0].parent, found=f"no {what}, or several, that fit the name of {shown}", fix=fix)
    for file, count in Counter(file for _, file in found).items():
        if count > 1 and not shared:
            wanting = ", ".join(image.name for image, own in found if own == file)
            raise UsageError(file, found=f"one {what} that fits the names of several images: {wanting}", fix=fix)
    return list(found)


def onto_grid(volume: Volume, truth: Volume, name: str) -> np.ndarray:
    """An image interpolated linearly onto a label map's grid; NaN outside its field of view.

    Args:
        name: the label map's, for messages.
    Raises: VolumeError for an image that shows less than half of what is labelled.
    """
    from synthseg.volumes.resample import reslice

    data = reslice(volume.data, volume.affine, truth.shape, truth.affine, order=1, outside=np.nan)
    labelled = truth.data != 0
    share = float(np.isfinite(data[labelled]).mean()) if labelled.any() else 1.0
    if share < LEAST_SHARE:
        found = f"an image that shows {100 * share:.0f} % of what {name} labels"
        raise VolumeError(volume.subject, found=found, fix="check that the two belong together, and their headers")
    return data


def _sizes(spacing_mm: np.ndarray) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing_mm)
