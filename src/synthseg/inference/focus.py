"""From a scan of any field of view to the part that the network was trained to see: around the brain.

A network that normalises each image by its own statistics (``norm = "instance"``) sees a head among a lot of neck or
air as another mixture than the brains it has learnt from. It first looks at the whole scan, coarsely right, to find
the brain, then again at a window like those of its training (docs/decisions/0004-instance-norm.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from synthseg.inference.config import InferenceConfig
from synthseg.inference.postprocess import largest_component
from synthseg.inference.prepare import Prepared, scaled_window
from synthseg.volumes import Window, bounding_box

FOREGROUND = 0.5  # posterior of all structures together from which a voxel counts as brain
MARGIN_MM = 8.0  # kept around the brain as first seen, which may fall short of its rim
LEAST_BRAIN_ML = 30.0  # less was not found: a fetal brain of 20 weeks has some 50 ml


def needs_focus(prepared: Prepared, field_of_view_mm: tuple[float, float, float] | None) -> bool:
    """Whether the prepared image reaches beyond the field of view the network was trained on."""
    if field_of_view_mm is None:
        return False
    extent = np.asarray(prepared.padded.shape) * prepared.padded.spacing_mm
    return bool((extent > np.asarray(field_of_view_mm) + 1e-3).any())


def focus(
    prepared: Prepared,
    background: np.ndarray,
    field_of_view_mm: tuple[float, float, float],
    *,
    multiple: int,
    config: InferenceConfig,
) -> Prepared:
    """The same scan through a window around the brain, its intensities rescaled within the window.

    Args:
        background: [X, Y, Z] posterior of background on ``prepared.padded``, from a first look; in robust mode that of
            the tissue groups' background, which holds the CSF too.
        field_of_view_mm: sides of the images the network was trained on; the window is larger where the brain is.
        multiple: the window's sides are multiples of this many voxels.
    Returns: ``prepared`` itself, with a note, when less than 30 ml of brain were seen.
    """
    brain = largest_component(background < 1 - FOREGROUND)
    if brain.sum() * prepared.padded.voxel_volume_mm3 < 1000 * LEAST_BRAIN_ML:
        note = "no brain was seen at a first look: the whole field of view was segmented at once"
        return replace(prepared, notes=(*prepared.notes, note))
    window = _window(bounding_box(brain), prepared, field_of_view_mm, multiple)
    return scaled_window(prepared, window, config)


def _window(box: Window, prepared: Prepared, field_of_view_mm: tuple[float, float, float], multiple: int) -> Window:
    """Centred on the box; no side longer than the whole image's."""
    spacing = prepared.padded.spacing_mm
    wanted = np.maximum(np.asarray(field_of_view_mm), np.asarray(box.shape) * spacing + 2 * MARGIN_MM) / spacing
    sides = np.minimum(np.ceil(wanted / multiple - 1e-3).astype(int) * multiple, prepared.padded.shape)
    center = np.asarray(box.start) + np.asarray(box.shape) / 2
    start = np.clip(np.rint(center - sides / 2).astype(int), 0, np.asarray(prepared.padded.shape) - sides)
    full = prepared.padded.shape
    return Window((int(start[0]), int(start[1]), int(start[2])), (int(sides[0]), int(sides[1]), int(sides[2])), full)
