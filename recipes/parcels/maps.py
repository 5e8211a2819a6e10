"""Label maps made alike, so that maps of different origin can be registered to each other and lend each other parcels.

A map is cut to the box of its cerebrum, in RAS order, with coordinates in millimetres from the box's centre. Some
atlases hold cortex and deep grey only: what lies inside the cortex (white matter, ventricles) is found for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from merge import CORTEX, parcels_of_side
from scipy import ndimage

from synthseg.errors import LabelError
from synthseg.volumes import Orientation, Volume, from_ras, read_volume, to_ras

MARGIN_MM = 8.0
# FreeSurfer's numbers. Ventricles, choroid plexus and lesions count as inside: not every map tells them apart.
INSIDE = (2, 4, 5, 25, 28, 30, 31, 78, 136, 137, 41, 43, 44, 57, 60, 62, 63, 79, 163, 164, 14, 72, 77, 80, 192)
CALLOSUM = tuple(range(250, 256))
DEEP = (10, 11, 12, 13, 17, 18, 26, 49, 50, 51, 52, 53, 54, 58)
LANDMARKS = (*DEEP, 3, 42)  # their centres are matched first
NOTHING, CORTICAL, WITHIN, GREY = range(4)


@dataclass(frozen=True, eq=False)
class CerebrumMap:
    """A label map around its cerebrum: [X, Y, Z] in RAS order.

    Attributes:
        name: of its file.
        tissue: uint8, 0 outside, 1 cortex, 2 inside the cortex (white matter, ventricles), 3 deep grey.
        parcels: int16, on the cortex: a Desikan-Killiany value, or 3 / 42 where there is none; 0 elsewhere.
        landmarks: [16, 3], in mm: centres of the deep structures and of each side's cortex; NaN where one is missing.
        spacing_mm: [3].
        box: where it was cut out of the whole map in RAS order, whose shape and way back the next two are.
        affine: of the file.
    """

    name: str
    tissue: np.ndarray
    parcels: np.ndarray
    landmarks: np.ndarray
    spacing_mm: np.ndarray
    box: tuple[slice, slice, slice]
    full_shape: tuple[int, int, int]
    orientation: Orientation
    affine: np.ndarray

    def on_file_grid(self, labels: np.ndarray) -> Volume:
        """Labels [X, Y, Z] of this box as a volume on the grid of the file."""
        whole = np.zeros(self.full_shape, dtype=labels.dtype)
        whole[self.box] = labels
        return Volume(from_ras(whole, self.orientation), self.affine)

    @property
    def origin_mm(self) -> np.ndarray:
        """[3]: the first voxel's centre, in mm from the box's centre."""
        return -(np.array(self.tissue.shape) - 1) / 2 * self.spacing_mm


def read_cerebrum(path: str | Path) -> CerebrumMap:
    """Read a map with cortex as 3/42 or as parcels, the latter in FreeSurfer's numbers.

    Raises: VolumeError as ``read_volume``; LabelError without cortex on a side.
    """
    stored = read_volume(path, labels=True)
    volume, orientation = to_ras(stored)
    kind, cortex_of = _tables()
    values = np.clip(volume.data, 0, len(kind) - 1)
    found = ndimage.find_objects((kind[values] == CORTICAL).astype(np.uint8))
    if not found or found[0] is None:
        raise LabelError(path, found="no cortex", fix="give cortex as 3 and 42, or as Desikan-Killiany parcels")
    margin = np.ceil(MARGIN_MM / volume.spacing_mm).astype(int)
    x, y, z = (slice(max(0, s.start - m), s.stop + m) for s, m in zip(found[0], margin, strict=True))
    box = (x, y, z)
    values = np.ascontiguousarray(values[box])
    tissue, side = kind[values], cortex_of[values]
    for number, name in ((3, "left"), (42, "right")):
        if not (side == number).any():
            fix = "give cortex as 3 and 42, or as Desikan-Killiany parcels"
            raise LabelError(path, found=f"no {name} cortex", fix=fix)
    if not (tissue == WITHIN).any():
        tissue = _with_inside(tissue)
    parcels = np.where(tissue == CORTICAL, values, 0).astype(np.int16)
    named = np.where(side > 0, side, np.where(tissue == GREY, values, 0))
    origin = -(np.array(tissue.shape) - 1) / 2 * volume.spacing_mm
    present = [value for value in LANDMARKS if (named == value).any()]
    centres = dict(zip(present, ndimage.center_of_mass(named > 0, named, present), strict=True))
    nowhere = np.full(3, np.nan)
    landmarks = np.array([origin + volume.spacing_mm * np.array(centres.get(value, nowhere)) for value in LANDMARKS])
    place = (box, volume.shape, orientation, stored.affine)
    return CerebrumMap(Path(path).name, tissue, parcels, landmarks, volume.spacing_mm, *place)


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """For every value up to 2100: its tissue, and 3 or 42 for cortex."""
    kind, cortex_of = np.zeros(2101, dtype=np.uint8), np.zeros(2101, dtype=np.int16)
    kind[[*INSIDE, *CALLOSUM]] = WITHIN
    kind[list(DEEP)] = GREY
    for side, values in parcels_of_side().items():
        for value in (CORTEX[side], *values):
            kind[value], cortex_of[value] = CORTICAL, CORTEX[side]
    return kind, cortex_of


def _with_inside(tissue: np.ndarray) -> np.ndarray:
    """Fill the inside of a map of cortex and deep grey only.

    Two fronts walk through what is neither: one from the deep grey, one from outside. The inside of a gyrus is
    reached from the deep grey first (its front is three times as fast), a sulcus from outside, although the
    cortex is open at the medial wall. Holes and slits of a voxel are closed before.
    """
    known = tissue > 0
    free = ~ndimage.binary_closing(known, np.ones((3, 3, 3), dtype=bool))
    outer = ndimage.binary_opening(_seen_from_outside(known), np.ones((3, 3, 3), dtype=bool)) & free
    inner = tissue == GREY
    while True:
        grown = ndimage.binary_dilation(inner, iterations=3, mask=(free | (tissue == GREY)) & ~outer)
        walked = outer | (ndimage.binary_dilation(outer) & free & ~grown)
        if (grown == inner).all() and (walked == outer).all():
            break
        inner, outer = grown, walked
    # Slits that were closed go with the inside where they touch it.
    inside = inner | (ndimage.binary_dilation(inner) & ~known & ~outer)
    return np.where(known, tissue, np.where(inside, WITHIN, NOTHING)).astype(np.uint8)


def _seen_from_outside(known: np.ndarray) -> np.ndarray:
    """Where a line to the left, right, front, back or top meets nothing known; from below, the brain is open."""
    seen = np.zeros(known.shape, dtype=bool)
    for axis, back in ((0, False), (0, True), (1, False), (1, True), (2, True)):
        view = np.flip(known, axis) if back else known
        met = np.logical_or.accumulate(view, axis=axis)
        seen |= ~(np.flip(met, axis) if back else met)
    return seen
