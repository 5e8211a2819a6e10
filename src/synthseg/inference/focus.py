"""From a scan of any field of view to the part that matters to the network: around the brain.

Two kinds of network are shown a window only, each for its own reason:

- One that normalises each image by its own statistics (``norm = "instance"``) sees a head among a lot of neck or air as
  another mixture than the brains it has learnt from. Its card states the field of view of its training; scans beyond
  it are cut to that, and their intensities rescaled inside (docs/decisions/0004-instance-norm.md).
- One with batch norm takes any field of view, and what it says of the brain hardly depends on far air. It is shown the
  brain with a margin, intensities as in the whole scan: the same answer for less work.

The brain is found by a locator: a small network (``modes.toml``) that looks at the whole scan coarsely. Where it sees
no brain, the network itself looks at the whole scan. A window that turns out too small is widened (:func:`widened`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from synthseg.inference.bundle import crops_by_margin, locator_of, main_of, multiple_of
from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.inference.model import Model
from synthseg.inference.postprocess import largest_component
from synthseg.inference.prepare import Prepared, whole_window
from synthseg.volumes import Volume, Window, bounding_box, resample_to_spacing
from synthseg.volumes.standard import rescale

FOREGROUND = 0.5  # posterior of all structures together from which a voxel counts as brain
MARGIN_MM = 8.0  # kept around the brain as first seen, which may fall short of its rim
# Voxels kept around it for a network of any field of view. Of the shipped network with batch norm in place of instance
# norm, less than 1 voxel of the brain in 1000 then has another label than in the whole field
# (tests/test_inference_focus_margin.py).
FREE_MARGIN_VOX = 16
WORTHWHILE_MM3 = 160.0 * 192 * 160  # a window about a brain is seldom smaller: smaller scans are not cut
AIR = 0.05  # of the way from the 1st to the 99th percentile, averaged over blocks of so many voxels a side:
AIR_BLOCK_VOX = 4
LEAST_BRAIN_ML = 30.0  # less was not found: a fetal brain of 20 weeks has some 50 ml
LEAST_LOCATED_ML = 300.0  # what a locator, trained on adults, must find to be believed: half of a newborn's brain
LEAST_TOUCHING_MM2 = 300.0  # of a face: less is stray, the spinal cord, or the tip of a dome less than 1 mm high
WIDER_MM = 24.0  # by as much a window grows where the brain reaches beyond it
MOST_WIDENINGS = 3
SIDES = (("left", "right"), ("back", "front"), ("bottom", "top"))

# ``look(model, image, of)``: what ``of`` makes of the posteriors [n, Y, Z, C] of a network, slab by slab, for an image
# [1, 1, X, Y, Z] on the CPU: [X, Y, Z, ...].
Look = Callable[[Model, Tensor, Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True)
class Focused:
    """A scan through its window, and the tissue groups [X, Y, Z] there if S1 has seen this very image already."""

    prepared: Prepared
    groups: Tensor | None = None


def focused(prepared: Prepared, models: Mapping[str, Model], config: InferenceConfig, look: Look) -> Focused:
    """The same scan through a window around the brain; as it is where the network is better off, or no worse, so.

    Args:
        models: the networks of the run by role.
        look: how a network looks at an image.
    Raises: VolumeError if there is no contrast in the window.
    """
    main = main_of(models)
    if not config.crop or not _too_large(prepared, main):
        return Focused(prepared)
    locator = locator_of(models)
    box, groups = None, None
    if locator is not None:
        box, groups = _located(prepared, models, locator, look)
    if box is None and main.field_of_view_mm is not None and "guided" not in models:
        background = look(main, prepared.image, _background)
        box = _box(background.cpu().numpy() < 1 - FOREGROUND, prepared.padded, prepared, LEAST_BRAIN_ML)
    if box is None:
        if locator is None and main.field_of_view_mm is None:
            return Focused(prepared)  # nobody looked
        note = f"no {main.organ} was seen at a first look: the whole field of view was segmented at once"
        return Focused(replace(prepared, notes=(*prepared.notes, note)), groups)
    window = _window(*box, prepared, main.field_of_view_mm, multiple_of(models))
    if window == prepared.window:
        return Focused(prepared, groups)
    return Focused(prepared.through(window, config, rescaled=main.field_of_view_mm is not None))


def touching(posteriors: Tensor, start: int, planes: int) -> np.ndarray:
    """How many voxels on the faces of the image are not background, as one slab tells: [3, 2] int64, axis and end.

    Args:
        posteriors: [n, Y, Z, C], planes ``start`` to ``start + n - 1`` of ``planes``. The counts of slabs add up.
    """

    def count(face: Tensor) -> int:
        return int((face.argmax(-1) > 0).sum())

    counts = np.zeros((3, 2), dtype=np.int64)
    if len(posteriors) and start == 0:
        counts[0, 0] = count(posteriors[0])
    if len(posteriors) and start + len(posteriors) == planes:
        counts[0, 1] = count(posteriors[-1])
    counts[1] = count(posteriors[:, 0]), count(posteriors[:, -1])
    counts[2] = count(posteriors[:, :, 0]), count(posteriors[:, :, -1])
    return counts


def widened(
    prepared: Prepared, models: Mapping[str, Model], config: InferenceConfig, counts: np.ndarray
) -> Prepared | None:
    """The same scan through a window that reaches further where the brain touches the window's faces, with a note.

    Args:
        counts: what :func:`touching` says of all the slabs of the segmented image.
    Returns: None if nothing is to be gained: no face is touched, the scan itself ends there, or the window was widened
        :data:`MOST_WIDENINGS` times already.
    Raises: VolumeError if there is no contrast in the window.
    """
    window, whole, spacing = prepared.window, prepared.whole, prepared.padded.spacing_mm
    start, shape = np.array(window.start), np.array(window.shape)
    area = np.prod(spacing) / spacing
    beyond = np.stack([start > 0, start + shape < prepared.working.shape], 1)  # where the scan goes on
    wider = (counts * area[:, None] >= LEAST_TOUCHING_MM2) & beyond
    if not wider.any() or prepared.widenings >= MOST_WIDENINGS:
        return None
    multiple = multiple_of(models)
    step = np.ceil(WIDER_MM / spacing / multiple).astype(int) * multiple
    sides = np.minimum(shape + step * wider.sum(1), whole.shape)
    low, high = np.array(whole.start), np.add(whole.start, whole.shape)
    start = np.clip(start - step * wider[:, 0], low, high - sides)
    where = ", ".join(name for names, ends in zip(SIDES, wider, strict=True) for name in np.array(names)[ends])
    note = f"the {main_of(models).organ} reached beyond the window it was first seen through: widened at the {where}"
    grown = prepared.through(
        _as_window(start, sides, whole.full_shape), config, rescaled=main_of(models).field_of_view_mm is not None
    )
    return replace(grown, notes=(*prepared.notes, note), widenings=prepared.widenings + 1)


def _too_large(prepared: Prepared, main: Model) -> bool:
    """Whether the whole scan reaches beyond the network's field of view, or is worth cutting for one without."""
    extent = np.asarray(prepared.whole.shape) * prepared.padded.spacing_mm
    if main.field_of_view_mm is not None:
        return bool((extent > np.asarray(main.field_of_view_mm) + 1e-3).any())
    return crops_by_margin(main) and bool(extent.prod() > WORTHWHILE_MM3)


def _background(posteriors: Tensor) -> Tensor:
    return posteriors[..., 0].clone()


def _located(
    prepared: Prepared, models: Mapping[str, Model], locator: Model, look: Look
) -> tuple[tuple[np.ndarray, np.ndarray] | None, Tensor | None]:
    """The brain's box as the locator sees it; and if that is S1 of robust mode, its groups of the prepared image."""
    takes_part = locator is models.get("tissues")  # S1 is believed as far as the network itself would be
    least_ml = LEAST_BRAIN_ML if takes_part else LEAST_LOCATED_ML
    if locator.spacing_mm == main_of(models).spacing_mm and not any(
        n % locator.multiple for n in prepared.window.shape
    ):
        image, grid = prepared.image, prepared.padded
    else:
        image, grid = _coarse(prepared, locator)
    if takes_part and image is prepared.image:
        said = look(locator, image, lambda posteriors: posteriors)
        return _box(said[..., 0].cpu().numpy() < 1 - FOREGROUND, grid, prepared, least_ml), said.argmax(-1)
    part = _without_air(image, locator.multiple)
    x, y, z = (slice(begin, begin + n) for begin, n in zip(part.start, part.shape, strict=True))
    background = look(locator, image[:, :, x, y, z], _background)
    inside = grid.window(part.start, part.shape)
    return _box(background.cpu().numpy() < 1 - FOREGROUND, inside, prepared, least_ml), None


def _coarse(prepared: Prepared, locator: Model) -> tuple[Tensor, Grid]:
    """The whole scan as a locator of another voxel size wants it."""
    scan = Volume(prepared.working, prepared.working_affine, prepared.scan.path)
    coarse = resample_to_spacing(scan, locator.spacing_mm, order=1)
    window = whole_window(coarse.data.shape, locator.multiple)
    image = window.crop(rescale(coarse.data, subject=scan.subject))
    x, y, z = window.shape
    return torch.from_numpy(image)[None, None], Grid((x, y, z), window.affine(coarse.affine))


def _without_air(image: Tensor, multiple: int) -> Window:
    """The part of an image [1, 1, X, Y, Z] beyond which it is dark throughout; all of it where nothing is bright.

    Dark is less than :data:`AIR` on average over blocks: no brain is that dark, whatever the contrast.
    """
    block = math.gcd(multiple, AIR_BLOCK_VOX)
    bright = functional.avg_pool3d(image, block)[0, 0].numpy() >= AIR
    box = bounding_box(bright, margin=1)
    start = [low * block // multiple * multiple for low in box.start]
    stop = [-(-(low + n) * block // multiple) * multiple for low, n in zip(box.start, box.shape, strict=True)]
    return _as_window(np.array(start), np.subtract(stop, start), image.shape[2:])


def _box(brain: np.ndarray, grid: Grid, prepared: Prepared, least_ml: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The largest piece's first and last edge along each axis, in voxels of the working grid (0: its first edge)."""
    largest = largest_component(brain)
    if largest.sum() * grid.voxel_volume_mm3 < 1000 * least_ml:
        return None
    box = bounding_box(largest)
    move = np.linalg.inv(prepared.working_affine) @ grid.affine
    ends = [np.asarray(box.start) - 0.5, np.add(box.start, box.shape) - 0.5]
    low, high = (move[:3, :3] @ end + move[:3, 3] + 0.5 for end in ends)
    return low, high


def _window(
    low: np.ndarray,
    high: np.ndarray,
    prepared: Prepared,
    field_of_view_mm: tuple[float, float, float] | None,
    multiple: int,
) -> Window:
    """Around the box from ``low`` to ``high``; no side longer than the whole image's.

    As large as the field of view, or larger where the brain is, and centred on the box. Without a field of view it
    begins whole multiples from where the whole image begins: pooling then takes the same voxels together.
    """
    spacing, whole = prepared.padded.spacing_mm, prepared.whole
    first = np.asarray(whole.start)
    if field_of_view_mm is None:
        begin = np.maximum(np.floor((low - FREE_MARGIN_VOX - first) / multiple + 1e-3), 0).astype(int) * multiple
        end = np.ceil((high + FREE_MARGIN_VOX - first) / multiple - 1e-3).astype(int) * multiple
        return _as_window(first + begin, np.minimum(end, whole.shape) - begin, whole.full_shape)
    wanted = np.maximum(np.asarray(field_of_view_mm), (high - low) * spacing + 2 * MARGIN_MM) / spacing
    sides = np.minimum(np.ceil(wanted / multiple - 1e-3).astype(int) * multiple, whole.shape)
    start = np.rint((low + high) / 2 - sides / 2).astype(int)
    return _as_window(np.clip(start, first, first + whole.shape - sides), sides, whole.full_shape)


def _as_window(start: np.ndarray, shape: np.ndarray, full_shape: Sequence[int]) -> Window:
    (i, j, k), (x, y, z), (a, b, c) = start.tolist(), shape.tolist(), full_shape
    return Window((i, j, k), (x, y, z), (a, b, c))
