"""Error bars: how far volumes move when the same head is segmented again, slightly turned and mirrored.

A copy is sampled from the scan itself onto a turned grid of the network's voxels: one interpolation, the same one that
brings the unchanged scan to that grid. Turning only the affine would cost none, and change nothing: the network works
on the scan's own axes and never sees the angle. Turning the working grid's image would interpolate twice and make the
copies blurrier than the scan, which is a change of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from synthseg.errors import SynthsegError, UsageError
from synthseg.inference.bundle import multiple_of
from synthseg.inference.focus import MARGIN_MM
from synthseg.inference.grids import Grid
from synthseg.inference.prepare import AIR_HU, edge_aligned_grid, grid_of, looks_like_ct, subject_of
from synthseg.inference.segmentation import Interval, Segmentation
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.want import Want
from synthseg.volumes import Volume, bounding_box, resample_to_spacing, reslice, to_ras
from synthseg.volumes.resample import blur_for_spacing
from synthseg.volumes.standard import close_to_spacing

MAX_DEGREES = 3.0  # about each axis: how differently a head lies in two sessions
CONFIDENCE = 0.95
LEAST = 2  # copies: with the scan itself three values, the fewest whose spread means anything


@dataclass(frozen=True)
class Change:
    """What is done to a copy: turned about the axes to the right, front and up, then perhaps mirrored."""

    degrees: tuple[float, float, float]
    mirrored: bool

    def __str__(self) -> str:
        turns = ", ".join(f"{angle:.1f}" for angle in self.degrees)
        return f"turned by {turns} degrees" + (" and mirrored" if self.mirrored else "")


def check_repeat(count: int) -> None:
    """Raise UsageError unless ``count`` is 0 (no error bars) or at least :data:`LEAST`."""
    if count != 0 and count < LEAST:
        raise UsageError("--repeat", found=str(count), fix=f"use at least {LEAST} copies, or leave it out")


def segment_copies(
    segmenter: Segmenter, scan: Volume, segmentation: Segmentation, count: int
) -> tuple[Segmentation, ...]:
    """Segment ``count`` slightly changed copies of a scan.

    Copy k (from 1) is turned by angles drawn uniformly from -3 to 3 degrees about each axis, and mirrored when k is
    even. The angles depend on the scan's voxels only: the same scan gives the same copies, and more copies begin with
    the same ones. Read, brain window and CT decision are those of the unchanged scan.

    Args:
        scan: as it was segmented.
        segmentation: of the unchanged scan; where its brain is, the copies look.
    Returns: for each copy the structures and volumes, sides as in the unchanged scan; label maps are left out (one
        voxel of background).
    Raises: SynthsegError naming the scan and the copy if one cannot be segmented.
    """
    ras, _ = to_ras(scan)
    source = _Source.of(segmenter, ras, segmentation)
    # Quality is predicted of the scan alone; a CT's copies have been clipped.
    plain = segmenter.without_quality().with_config(replace(segmenter.config, ct=False))
    want = Want(space="1mm")  # volumes are measured there: labels on the copy's own grid would be of no use
    copies = []
    for number, change in enumerate(draw_changes(ras, count), start=1):
        try:
            result = plain.segment(source.copy(change), want)
        except SynthsegError as error:
            found = f"copy {number} of {count} ({change}) that could not be segmented: {error.found}"
            fix = "the result hangs on how the head lies: look at it without --repeat"
            raise SynthsegError(subject_of(scan), found=found, fix=fix) from error
        copies.append(_unchanged_sides(result) if change.mirrored else _volumes_only(result))
    return tuple(copies)


def with_intervals(segmentation: Segmentation, copies: Sequence[Segmentation]) -> Segmentation:
    """The segmentation with the spread of its volumes over itself and the copies, the total's under 0.

    The copies must have the same structures: choose and merge in them what was chosen and merged in the segmentation.
    """
    every = (segmentation, *copies)
    intervals = {value: interval_of([one.volumes_mm3[value] for one in every]) for value in segmentation.volumes_mm3}
    return replace(segmentation, intervals={0: interval_of([one.total_mm3 for one in every]), **intervals})


def interval_of(values: Sequence[float]) -> Interval:
    """Mean, standard deviation (n - 1) and 95 % interval of n volumes in mm3.

    The interval is where one more segmentation of the same head would fall, not where the mean lies, which would shrink
    to nothing with more copies: mean -+ t sd sqrt(1 + 1/n), t the 97.5 % point of Student's distribution with n - 1
    degrees of freedom; not below 0. It holds what the head's position and the grid do to a volume; it knows nothing of
    errors that all copies share.
    """
    from scipy.special import stdtrit  # here: a tenth of a second that runs without error bars need not wait

    n = len(values)
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd * math.sqrt(1 + 1 / n)
    return Interval(mean=mean, low=max(mean - reach, 0.0), high=mean + reach, sd=sd, n=n)


def draw_changes(scan: Volume, count: int) -> list[Change]:
    """The changes of ``count`` copies of a scan in RAS order: a function of its voxels."""
    digest = hashlib.sha256(np.ascontiguousarray(scan.data, dtype=np.float32).tobytes())
    rng = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:7], "big"))
    return [draw_change(mirrored=number % 2 == 0, rng=rng) for number in range(1, count + 1)]


def draw_change(*, mirrored: bool, rng: torch.Generator) -> Change:
    """A turn with every angle uniform in [-``MAX_DEGREES``, ``MAX_DEGREES``]."""
    x, y, z = ((2 * torch.rand(3, generator=rng, dtype=torch.float64) - 1) * MAX_DEGREES).tolist()
    return Change((x, y, z), mirrored)


def rotation_matrix(degrees: tuple[float, float, float]) -> np.ndarray:
    """[3, 3]: right-handed turns about the axes to the right, front and up, in this order."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = math.cos(angle)
        step[i, j], step[j, i] = -math.sin(angle), math.sin(angle)
        turn = step @ turn
    return turn


@dataclass(frozen=True)
class _Source:
    """What all copies share: the scan, blurred as its resampling would, and the grid they are sampled on."""

    scan: Volume  # RAS order
    grid: Grid  # of the network's voxels, around the brain
    ct_window: tuple[float, float] | None

    @classmethod
    def of(cls, segmenter: Segmenter, ras: Volume, segmentation: Segmentation) -> _Source:
        config, spacing_mm = segmenter.config, segmenter.model.spacing_mm
        same = close_to_spacing(ras.spacing_mm, spacing_mm, config.spacing_tolerance)
        is_ct = config.ct
        if is_ct is None:  # as for the unchanged scan: a turned copy has other shares of air and soft tissue
            seen = ras if same or ras.data.min() > AIR_HU else resample_to_spacing(ras, spacing_mm, order=1)
            is_ct = looks_like_ct(seen.data)
        working = grid_of(ras) if same else edge_aligned_grid(grid_of(ras), spacing_mm)
        blurred = ras if same else blur_for_spacing(ras, spacing_mm)
        grid = brain_window(
            working, segmentation.labels, segmenter.model.field_of_view_mm, multiple_of(segmenter.models)
        )
        return cls(blurred, grid, config.ct_window if is_ct else None)

    def copy(self, change: Change) -> Volume:
        """The scan as if the head had been turned about the middle of the grid."""
        centre = (self.grid.affine @ [*((np.array(self.grid.shape) - 1) / 2), 1.0])[:3]
        motion = np.eye(4)
        motion[:3, :3] = rotation_matrix(change.degrees)
        motion[:3, 3] = centre - motion[:3, :3] @ centre
        data = reslice(
            self.scan.data,
            motion @ self.scan.affine,
            self.grid.shape,
            self.grid.affine,
            order=1,
            outside=float(self.scan.data.min()),
        )
        if self.ct_window is not None:
            data = np.clip(data, *self.ct_window)
        if change.mirrored:
            data = np.ascontiguousarray(data[::-1])
        return Volume(data, self.grid.affine, self.scan.path)


def brain_window(
    working: Grid, labels: Volume, field_of_view_mm: tuple[float, float, float] | None, multiple: int
) -> Grid:
    """The part of the working grid that the copies show.

    All of it when the network takes any field of view, or at least that of the scan; else, as for the unchanged scan
    (``focus.py``), the network's field of view around the brain, larger where the brain is.
    """
    sizes, spacing = np.asarray(working.shape), working.spacing_mm
    if field_of_view_mm is None or (sizes * spacing <= np.asarray(field_of_view_mm) + 1e-3).all():
        return working
    ras, _ = to_ras(labels)
    box = bounding_box(ras.data > 0)
    to_working = np.linalg.inv(working.affine) @ ras.affine
    ends = [np.asarray(box.start) - 0.5, np.asarray(box.start) + box.shape - 0.5]
    low, high = ((to_working[:3, :3] @ end + to_working[:3, 3]) + 0.5 for end in ends)  # in voxels, from their edges
    wanted = np.maximum(np.asarray(field_of_view_mm) / spacing, high - low + 2 * MARGIN_MM / spacing)
    sides = np.minimum(np.ceil(wanted / multiple - 1e-3).astype(int) * multiple, sizes)
    start = np.clip(np.rint((low + high - sides) / 2).astype(int), 0, sizes - sides)
    return working.window(start.tolist(), sides.tolist())


def _unchanged_sides(mirrored: Segmentation) -> Segmentation:
    """Volumes of a mirrored copy under the sides they have in the scan: left and right exchanged."""
    partner = {structure.value: structure.partner for structure in mirrored.structures}
    volumes = {value: mirrored.volumes_mm3[partner[value]] for value in mirrored.volumes_mm3}
    return replace(_volumes_only(mirrored), volumes_mm3=volumes)


def _volumes_only(segmentation: Segmentation) -> Segmentation:
    """A copy's label maps are of no further use, and a hundred of them would fill the memory."""
    nothing = Volume(np.zeros((1, 1, 1), np.int32), np.eye(4))
    return replace(segmentation, native=nothing, fine=None, notes=())
