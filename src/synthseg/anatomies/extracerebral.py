"""What surrounds a fetal brain, from the map's own image, and centred maps, as the reference prepares them.

Source: the preparation of the fetal SynthSeg (Shang et al. 2025, arXiv 2504.10244; reference A.3).
"""

from __future__ import annotations

import numpy as np

from synthseg.anatomies.packages import require_package
from synthseg.errors import ConfigError, LabelError, ShapeError, VolumeError

OUTSIDE = 10  # every voxel without label that the image shows
PARTS = 4  # 10 to 13


def extracerebral_from_image(
    labels: np.ndarray, image: np.ndarray, *, tolerance: float = 1e-4, subject: str = "label map"
) -> np.ndarray:
    """Give every background voxel that the image shows (intensity not 0) the label 10.

    Args:
        labels: [X, Y, Z] values; image: the same grid, any units.
        tolerance: negative intensities nearer to 0 than this count as 0; any others are an error.
        subject: for messages.
    Returns: [X, Y, Z] int32.
    Raises: ShapeError for arrays that disagree; VolumeError for intensities that are negative or not finite.
    Source: reference A.3, step 1.
    """
    if labels.shape != image.shape or labels.ndim != 3:
        found = f"labels of shape {labels.shape} and an image of shape {image.shape}"
        raise ShapeError(subject, found=found, fix="resample the image onto the label map's grid")
    if not np.isfinite(image).all():
        raise VolumeError(subject, found="intensities that are not finite in its image", fix="mend the image")
    if (image <= -tolerance).any():
        found = f"intensities down to {float(image.min()):g} in its image"
        raise VolumeError(subject, found=found, fix="give an image whose background is 0 and the rest positive")
    shown = (image != 0) & ~((image < 0) & (image > -tolerance))
    return np.where((labels == 0) & shown, OUTSIDE, labels).astype(np.int32)


def split_extracerebral(labels: np.ndarray, image: np.ndarray, *, parts: int = PARTS, seed: int = 42) -> np.ndarray:
    """Split label 10 by intensity into 10, 11, 12, 13, by k-means of the intensities scaled to [0, 1].

    The clusters' order is that of k-means: label 11 is another tissue in every map, which does no harm as every label
    has a Gaussian of its own.

    Args:
        labels: [X, Y, Z] with label 10; image: the same grid.
        parts: 1 to 4.
        seed: of k-means (k-means++; the reference's is 42).
    Returns: [X, Y, Z] int32; a map with fewer different intensities than parts has fewer.
    Raises: ConfigError for other numbers of parts; ShapeError for arrays that disagree; UsageError where scikit-learn
        is not installed.
    Source: reference A.3, step 2.
    """
    if not 1 <= parts <= PARTS:
        raise ConfigError("extra-cerebral parts", found=repr(parts), fix=f"give 1 to {PARTS}")
    if labels.shape != image.shape:
        found = f"labels of shape {labels.shape} and an image of shape {image.shape}"
        raise ShapeError("extra-cerebral parts", found=found, fix="resample the image onto the label map's grid")
    outside = labels == OUTSIDE
    values = image[outside].astype(np.float64)
    parts = min(parts, len(np.unique(values)))
    result = labels.astype(np.int32)
    if parts < 2:
        return result
    require_package("sklearn", "splitting label 10 by intensity")
    from sklearn.cluster import KMeans

    scaled = (values - values.min()) / (values.max() - values.min())
    result[outside] = OUTSIDE + KMeans(n_clusters=parts, random_state=seed).fit_predict(scaled[:, None])
    return result


def centred(
    labels: np.ndarray,
    *,
    side: int = 256,
    huge: bool = False,
    drop_last_slab: bool = False,
    subject: str = "centring",
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The labels' box in the middle of a cube of background.

    Args:
        labels: [X, Y, Z].
        side: of the cube, in voxels. Odd remainders go to the high side.
        huge: cut boxes that are longer than the cube, evenly, instead of refusing them.
        drop_last_slab: repeat the reference, whose box ends one voxel early on each axis and loses what is there.
        subject: for messages.
    Returns: the cube, and its first voxel in the given map (negative where it reaches further).
    Raises: LabelError for a map without labels; ShapeError for one that does not fit.
    Source: reference A.3, step 3.
    """
    if labels.ndim != 3:
        raise ShapeError(subject, found=f"labels of shape {labels.shape}", fix="give [X, Y, Z] labels")
    places = [np.flatnonzero((labels > 0.1).any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not all(place.size for place in places):
        raise LabelError(subject, found="a map without labels", fix="leave the map out")
    low = [int(place[0]) for place in places]
    high = [int(place[-1]) + (0 if drop_last_slab else 1) for place in places]
    sizes = [max(h - s, 0) for s, h in zip(low, high, strict=True)]
    if max(sizes) > side and not huge:
        found = f"labels of {sizes} voxels, for a cube of {side}"
        raise ShapeError(subject, found=found, fix="choose a larger cube, or let it be cut (--cut)")
    cube = np.zeros((side, side, side), dtype=labels.dtype)
    start, source, target = [], [], []
    for first, size in zip(low, sizes, strict=True):
        before, cut = max(side - size, 0) // 2, max(size - side, 0) // 2
        kept = min(size, side)
        source.append(slice(first + cut, first + cut + kept))
        target.append(slice(before, before + kept))
        start.append(first + cut - before)
    cube[tuple(target)] = labels[tuple(source)]
    return cube, (start[0], start[1], start[2])
