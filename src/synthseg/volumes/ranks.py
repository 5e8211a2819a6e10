"""Exact percentiles of many values, in a fraction of the time and memory of sorting or partitioning them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthseg.volumes.volume import in_memory_order

_SAMPLE = 2**15  # values that say roughly where a percentile lies
_SURE = 6.0  # standard deviations of the sample's rank: missed about once in 10^9 times, and then found the slow way


def percentiles_of(data: np.ndarray, percentiles: Sequence[float]) -> list[float]:
    """Percentiles (0 to 100) of all values, interpolated between neighbouring ranks, as ``np.percentile`` has them.

    A sample tells a bracket around the two ranks that are wanted; counting what is below it and looking at what is
    inside gives them exactly. With not-a-number among the values every percentile is that.
    """
    values = in_memory_order(data)[0].reshape(-1)
    with np.errstate(invalid="ignore"):
        if np.isnan(values.min()):
            return [float("nan")] * len(percentiles)
    sample = np.sort(values[:: max(1, values.size // _SAMPLE)])
    found = []
    for percentile in percentiles:
        rank = percentile / 100 * (values.size - 1)
        low, high = _ranked(values, sample, int(rank), min(int(rank) + 1, values.size - 1))
        found.append(low + (high - low) * (rank - int(rank)))
    return found


def _ranked(values: np.ndarray, sample: np.ndarray, first: int, last: int) -> tuple[float, float]:
    """The values of rank ``first`` and ``last`` (0 = smallest; at most one apart)."""
    share = first / max(values.size - 1, 1)
    at = share * (len(sample) - 1)
    room = _SURE * float(np.sqrt(len(sample) * share * (1 - share))) + 2
    bottom, top = sample[max(0, int(at - room))], sample[min(len(sample) - 1, int(at + room) + 1)]
    inside = values[(values >= bottom) & (values <= top)] if bottom < top else None
    below = int(np.count_nonzero(values < bottom))
    count = np.count_nonzero(values == bottom) if inside is None else inside.size
    if below > first or below + count <= last:  # the sample misled: voxels are not drawn at random
        inside, below = values, 0
    if inside is None:  # so many voxels of one intensity (air) that both ranks have it
        return float(bottom), float(bottom)
    found = np.partition(inside, (first - below, last - below))
    return float(found[first - below]), float(found[last - below])
