"""Quality control on the original's window (reference 6.4, "QC")."""

from __future__ import annotations

import numpy as np
import torch

from synthseg.inference.config import InferenceConfig
from synthseg.inference.model import Model
from synthseg.inference.original.networks import exact_products
from synthseg.inference.placement import Placement
from synthseg.inference.predict import require_finite, run_network
from synthseg.inference.structures import Channels
from synthseg.networks.hierarchy import one_hot
from synthseg.volumes.window import Window, crop_pad

SIDE = 224  # voxels
# Meant to be the label of CSF, but compared with channel indices: in 2.0 the right cerebellar cortex, in 1.0 the right
# thalamus. The released network's scores depend on it.
LEFT_OUT = (0, 24)


def original_window(winners: np.ndarray, sides: tuple[int, int, int] = (SIDE, SIDE, SIDE)) -> Window:
    """The window around all voxels whose channel is neither 0 nor 24; it may reach outside.

    Args:
        winners: [X, Y, Z] channel indices.
    An odd voxel goes before where the window is larger than its content, and at the end where it is smaller. Without
    any such voxel it begins where the grid does.

    Source: reference 6.4, "QC window"; 11.7.
    """
    brain = ~np.isin(winners, LEFT_OUT)
    start = [0, 0, 0]
    for axis, side in enumerate(sides):
        there = np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))
        if len(there):
            low, high = int(there[0]), int(there[-1]) + 1
            start[axis] = low - -(-(side - (high - low)) // 2)  # minus the half that is rounded up
    x, y, z = winners.shape
    return Window((start[0], start[1], start[2]), sides, (x, y, z))


def original_quality(placement: Placement, winners: np.ndarray, channels: Channels, subject: str) -> dict[str, float]:
    """The Dice that quality control predicts by group, clipped to [0, 1], not rounded.

    Args:
        winners: [X, Y, Z] channels of the structures, before any clean-up; ``channels`` says what they are.
    The window has 224 voxels a side, or those of the field of view that the network's card states.

    Raises: InvariantError for scores that are not numbers.
    """
    model = placement.models["quality"]
    window = original_window(winners, sides_of(model))
    place = {int(value): index for index, value in enumerate(model.channels.values)}
    group = np.array([place[int(value)] for value in channels.quality], dtype=np.int64)
    groups = torch.from_numpy(crop_pad(group[winners].astype(np.uint8), window.start, window.shape).astype(np.int64))
    with torch.inference_mode(), exact_products():
        image = one_hot(groups.to(model.device)[None], len(place))
        del groups
        scores = run_network(model.network, image, InferenceConfig(precision="float32"))[0]
        clipped = require_finite(scores, model.name, subject).clamp(0, 1).tolist()
    names = [structure.name for structure in model.channels.structures]
    return dict(zip(names[1:], clipped[1:], strict=True))


def sides_of(model: Model) -> tuple[int, int, int]:
    """Voxels of the window along each axis."""
    if model.field_of_view_mm is None:
        return SIDE, SIDE, SIDE
    x, y, z = (round(side / model.spacing_mm) for side in model.field_of_view_mm)
    return x, y, z
