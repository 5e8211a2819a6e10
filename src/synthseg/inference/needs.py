"""What a scan takes beside its networks' passes: the one estimate that plans, limits and forecasts share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from synthseg.inference.bundle import main_of
from synthseg.inference.model import Model
from synthseg.inference.prepare import Prepared
from synthseg.inference.tissue_maps import TISSUES
from synthseg.inference.want import Want

BYTES_A_VOXEL = 90  # of the working grid, for what is gathered of posteriors and the clean-up; measured: 40 to 80
# Labels on the 1 mm grid and the scan's own, and what resampling holds meanwhile, per voxel of the larger grid: on the
# safe side. Seldom the peak: that is the networks'.
RESULT_BYTES_A_VOXEL = 32
_FLOAT, _INDEX, _SHORT = 4, 8, 2  # bytes


@dataclass(frozen=True)
class Needs:
    """Bytes that a scan takes besides what its networks' passes do.

    Attributes:
        gathered: main memory, while the networks run, for what is kept of their answers.
        beside: on their own device, at the same time: tissue groups, posteriors of all parcels.
        results: main memory, when the networks are done: labels, posteriors and maps on their grids.
        parcels: of ``beside`` and ``results``, what is due to the parcels.
        maps: of ``results``, what is due to posteriors and tissue maps.
    """

    gathered: int
    beside: int
    results: int
    parcels: int = 0
    maps: int = 0


def needs_of(prepared: Prepared, models: Mapping[str, Model], want: Want, *, on_cpu: bool) -> Needs:
    """What segmenting a scan through its window will take: an estimate.

    Args:
        on_cpu: whether the networks run there, so that what they leave on their device is in main memory.
    """
    seen = math.prod(prepared.padded.shape)
    fine, own = math.prod(prepared.fine.shape), prepared.scan.data.size
    gathered, beside, results = BYTES_A_VOXEL * seen, 0, RESULT_BYTES_A_VOXEL * max(fine, own)
    if "guided" in models:
        beside += 2 * _INDEX * seen  # groups, and what the denoiser makes of them
    parcels = 0
    if "parcels" in models:
        gathered += _SHORT * seen
        dense = _FLOAT * len(models["parcels"].channels) * seen
        beside += dense
        # one side's channels are copied to be sampled; the cortex's posteriors are its weights
        parcels = dense // 2 + (dense if on_cpu else 0) + 2 * _FLOAT * fine
        results += parcels
    if "quality" in models:  # sums by group, and their argmax one-hot
        gathered += ((2 * len(models["quality"].channels)) * _FLOAT + _INDEX + _SHORT) * seen
    maps = _map_bytes(models, want, fine if want.space == "1mm" else own)
    if want.resampled:
        results += 2 * _FLOAT * fine
    return Needs(gathered, beside, results + maps, parcels, maps)


def _map_bytes(models: Mapping[str, Model], want: Want, voxels: int) -> int:
    """Posteriors and tissue maps on the grid of the labels."""
    channels = 0
    if want.posteriors:
        channels += len(main_of(models).channels) * (2 if want.regrouped else 1)
    if want.tissue_maps:
        channels += 3 * len(TISSUES) + 2  # sums where the brain is, the maps with their background, and their copies
    return _FLOAT * channels * voxels
