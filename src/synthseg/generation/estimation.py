"""Intensity priors of a contrast, estimated from images and their label maps (reference section 3).

Each image gives each class a median and a median absolute deviation; their means and standard deviations over the
images are the normal priors that contrast-specific training draws from (the paper's SynthSeg-RC).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from synthseg.errors import ConfigError, ShapeError, VolumeError

NORMAL_MAD = 1 / 0.6744897501960817  # of a Gaussian: its standard deviation is so many median absolute deviations
# Of a class that no image shows: mean and standard deviation of the paper's U(0, 255) and U(0, 35), i.e. anything.
UNKNOWN_MEAN = (127.5, 255 / 12**0.5)
UNKNOWN_STD = (17.5, 35 / 12**0.5)
_TOP = 255 * (1 - 1e-9)  # the scale's clipped end, but for rounding


@dataclass(frozen=True, kw_only=True)
class EstimationRules:
    """How intensities become priors. The defaults are ours; :func:`original_rules` has the original's."""

    rescale: bool = True  # stretch each image's percentiles to 0 and 255; without, images keep their units
    percentiles: tuple[float, float] = (2.0, 98.0)
    # The upper one is of these voxels: "signal" leaves out exact zeros, which masks and fields of view leave behind.
    # Among "all" (the original's) a skull-stripped brain is a tenth: its white matter lies beyond the 98th percentile.
    rescale_over: Literal["signal", "all"] = "signal"
    # The original's scale ends at 0 and 255: where fat is no brighter than white matter (stripped or normalised scans)
    # half of the white matter lies at 255, and its spread is lost. Ours goes on beyond both ends.
    clip: bool = False
    mad_scale: Literal["normal", "raw"] = "normal"  # times 1.4826, a Gaussian's standard deviation, or as it is
    empty: Literal["skip", "zero"] = "skip"  # an image without a class: left out of its priors, or counted as (0, 0)
    interior: bool = False  # only voxels whose six neighbours have the same label, where a class has enough of them
    least_voxels: int = 10  # of a class, in an image: fewer are no sample; the original takes any

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ConfigError("priors: percentiles", found=repr(self.percentiles), fix="give 0 <= low < high <= 100")
        if self.least_voxels < 1:
            raise ConfigError("priors: least_voxels", found=repr(self.least_voxels), fix="give at least 1")


def original_rules(*, rescale: bool = True) -> EstimationRules:
    """The original's (reference section 3): a scale that clips, by all voxels; raw deviations; (0, 0) where absent."""
    own = EstimationRules(rescale=rescale, rescale_over="all", clip=True, mad_scale="raw", empty="zero")
    return replace(own, least_voxels=1)


class ClassStatistics(NamedTuple):
    """One image's intensities, class by class; NaN where the image shows too little of a class."""

    medians: np.ndarray  # [K]
    deviations: np.ndarray  # [K]
    voxels: np.ndarray  # [K] int64, that were used
    clipped: np.ndarray  # [K] share of them at 255 where the scale is clipped there; else 0


class ClassPriors(NamedTuple):
    """Priors of one dataset and channel."""

    means: np.ndarray  # [2, K]: mean and standard deviation, over images, of the class's median
    stds: np.ndarray  # [2, K]: likewise of its deviation
    images: np.ndarray  # [K] int64: how many showed the class


def rescaled(image: np.ndarray, rules: EstimationRules, *, subject: str = "image") -> np.ndarray:
    """Map two percentiles to 0 and 255, and clip where the rules say so: float64, NaN kept and not counted.

    Raises: VolumeError if the two are equal, or no voxel counts.
    Source: reference section 3, step 1.
    """
    image = np.asarray(image, dtype=np.float64)
    known = image[np.isfinite(image)]
    counted = known[known != 0] if rules.rescale_over == "signal" else known
    fix = "crop the image to the head, widen the percentiles or do not rescale"
    if not counted.size:
        raise VolumeError(subject, found="no voxel with a finite value other than 0", fix=fix)
    low, high = float(np.percentile(known, rules.percentiles[0])), float(np.percentile(counted, rules.percentiles[1]))
    if not high > low:
        ends = " and the ".join(f"{p:g}th" for p in rules.percentiles)
        raise VolumeError(subject, found=f"{low:g} as both the {ends} percentile of its voxels", fix=fix)
    kept = image.clip(low, high) if rules.clip else image
    stretched: np.ndarray = (kept - low) * (255 / (high - low))
    return stretched


def class_statistics(
    image: np.ndarray,
    labels: np.ndarray,
    classes: np.ndarray,
    rules: EstimationRules | None = None,
    *,
    subject: str = "image",
) -> ClassStatistics:
    """Median and median absolute deviation of each class's intensities.

    Args:
        image: [X, Y, Z]; NaN where there is none.
        labels: [X, Y, Z] label indices, 0 to L - 1.
        classes: [L] class of each label, 0 to K - 1; K is the largest plus one. Class 0 is the background.
        subject: the image's name for messages.
    Returns: in intensity units in which the percentiles are 0 and 255, or the image's without rescaling. Except in
        class 0, voxels whose value in the image is exactly 0 are left out: there a mask or the field of view ended.
        With ``clip``, as in the original, so are all that are not above 0 on the scale.
    Raises: ShapeError for arrays that disagree; VolumeError for an image that cannot be rescaled.
    Source: reference section 3, steps 1 to 3.
    """
    rules = rules or EstimationRules()
    if image.shape != labels.shape:
        found = f"an image of shape {image.shape} and labels of shape {labels.shape}"
        raise ShapeError(subject, found=found, fix="bring both onto one grid")
    values = rescaled(image, rules, subject=subject) if rules.rescale else np.asarray(image, np.float64)
    of_voxel = np.asarray(classes)[labels]
    signal = values > 0 if rules.clip else image != 0
    usable = np.isfinite(values) & (signal | (of_voxel == 0))
    inner = usable & _interior(labels) if rules.interior else usable
    count = int(np.max(classes)) + 1
    pools, inner_pools = (_pools(values, of_voxel, mask, count) for mask in (usable, inner))
    medians, deviations = np.full(count, np.nan), np.full(count, np.nan)
    voxels, clipped = np.zeros(count, dtype=np.int64), np.zeros(count)
    top = _TOP if rules.rescale and rules.clip else np.inf
    scale = NORMAL_MAD if rules.mad_scale == "normal" else 1.0
    for k, (whole, inside) in enumerate(zip(pools, inner_pools, strict=True)):
        pool = inside if len(inside) >= rules.least_voxels else whole
        voxels[k] = len(pool)
        if len(pool) >= rules.least_voxels:
            medians[k] = np.median(pool)
            deviations[k] = scale * np.median(np.abs(pool - medians[k]))
            clipped[k] = float(np.mean(pool >= top))
    return ClassStatistics(medians, deviations, voxels, clipped)


def summarise(images: Sequence[ClassStatistics], rules: EstimationRules | None = None) -> ClassPriors:
    """Priors of images of one contrast: means and population standard deviations over the images.

    A class that no image shows gets the moments of the paper's uniform ranges (any intensity), or zeros with
    ``empty = "zero"``. Means below 0, which the mixture never draws, become 0.

    Raises: ShapeError for no images; ConfigError for images in units of their own (``rescale = False``) whose tissues
        have negative intensities, such as Hounsfield units.
    """
    rules = rules or EstimationRules()
    if not images:
        raise ShapeError("priors", found="no images", fix="give at least one")
    medians = np.stack([image.medians for image in images])
    deviations = np.stack([image.deviations for image in images])
    shown = np.isfinite(medians)
    if not (rules.rescale or rules.clip) and (medians[shown] < 0).any():
        lowest = np.where(shown, medians, np.inf).min(axis=0)
        found = f"a median of {lowest.min():g} in class {int(lowest.argmin())}"
        raise ConfigError("priors: rescale", found=found, fix="rescale, or make the images' intensities positive first")
    if rules.empty == "zero":
        medians, deviations = np.where(shown, medians, 0), np.where(shown, deviations, 0)
        return ClassPriors(_moments(medians), _moments(deviations), shown.sum(axis=0))
    seen = shown.any(axis=0)
    means, stds = (np.empty((2, medians.shape[1])) for _ in range(2))
    means[:], stds[:] = np.array(UNKNOWN_MEAN)[:, None], np.array(UNKNOWN_STD)[:, None]
    means[:, seen], stds[:, seen] = _moments(medians[:, seen]), _moments(deviations[:, seen])
    means[0] = means[0].clip(min=0)
    return ClassPriors(means, stds, shown.sum(axis=0))


def stack_priors(blocks: Iterable[ClassPriors]) -> tuple[np.ndarray, np.ndarray]:
    """``prior_means`` and ``prior_stds`` in the original's layout: [2 m, K] each, two rows a dataset and channel."""
    listed = list(blocks)
    return np.concatenate([block.means for block in listed]), np.concatenate([block.stds for block in listed])


def _moments(values: np.ndarray) -> np.ndarray:
    """[2, K]: mean and population standard deviation over the first axis, NaN left out."""
    return np.stack([np.nanmean(values, axis=0), np.nanstd(values, axis=0)])


def _pools(values: np.ndarray, of_voxel: np.ndarray, mask: np.ndarray, count: int) -> list[np.ndarray]:
    """The masked values of each class."""
    chosen, kinds = values[mask], of_voxel[mask]
    order = np.argsort(kinds.astype(np.uint16), kind="stable")  # counted, not compared: fast for few classes
    ends = np.cumsum(np.bincount(kinds, minlength=count))
    return np.split(chosen[order], ends[:-1])


def _interior(labels: np.ndarray) -> np.ndarray:
    """Voxels whose six neighbours have their label; those at the array's border have none beyond it."""
    inner = np.ones(labels.shape, dtype=bool)
    for axis in range(labels.ndim):
        first = [slice(None)] * labels.ndim
        second = [slice(None)] * labels.ndim
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        same = labels[tuple(first)] == labels[tuple(second)]
        inner[tuple(first)] &= same
        inner[tuple(second)] &= same
    return inner
