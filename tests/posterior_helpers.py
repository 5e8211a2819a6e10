"""Random posteriors, their grids, and the dense clean-up that the sparse one must equal."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the installed package

from benchmarks.inference import plain_postprocess as plain  # noqa: E402

from synthseg.inference.collect import Collector  # noqa: E402
from synthseg.inference.config import InferenceConfig  # noqa: E402
from synthseg.inference.grids import Grid  # noqa: E402
from synthseg.inference.sparse import Piece, SparsePosteriors  # noqa: E402
from synthseg.inference.structures import Channels, Structure  # noqa: E402

__all__ = ["as_sparse", "collect", "dense_on_grid", "made_channels", "near_a_threshold", "plain", "random_posteriors"]


def made_channels(topology: list[int]) -> Channels:
    """Channels 0 to n - 1 whose values are 10 times their number, in the topology groups given."""
    n = len(topology)
    structures = tuple(Structure(10 * c, f"structure {c}", (c, c, c)) for c in range(n))
    zeros = np.zeros(n, dtype=np.int64)
    return Channels(structures, 10 * np.arange(n), np.arange(n), np.array(topology, dtype=np.int64), zeros)


def random_posteriors(rng: np.random.Generator, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """[count, X, Y, Z] float32 that change slowly and, like smoothed ones, sum to a little less than 1."""
    noise = ndimage.gaussian_filter(rng.normal(size=(count, *shape)), (0, 1.5, 1.5, 1.5))
    noise[0] += rng.uniform(-0.1, 0.1)  # from nearly no foreground to hardly anything else
    p = np.exp(rng.uniform(20, 60) * noise)
    p *= rng.uniform(0.9, 1, shape) / p.sum(axis=0)
    if rng.random() < 0.3:
        p[:, shape[0] // 2] = 0  # where even background has vanished
    return p.astype(np.float32)


def collect(
    p: np.ndarray, padded: Grid, fine: Grid, channels: Channels, config: InferenceConfig, slab: int = 1000
) -> SparsePosteriors:
    """Posteriors [C, X, Y, Z] through a collector, ``slab`` planes at a time, in memory that is used again."""
    collector = Collector(padded, fine, channels, config)
    last = torch.from_numpy(np.ascontiguousarray(p.transpose(1, 2, 3, 0)))
    memory = torch.empty(min(slab, len(last)), *last.shape[1:])
    for start in range(0, len(last), slab):
        part = memory[: len(last[start : start + slab])]
        part.copy_(last[start : start + slab])
        collector.add(start, part)
        memory.fill_(torch.nan)
    return collector.finish()


def dense_on_grid(posteriors: SparsePosteriors | plain.Posteriors) -> np.ndarray:
    """[C, X, Y, Z] on the whole grid, whatever box was kept."""
    data = posteriors.dense() if isinstance(posteriors, SparsePosteriors) else posteriors.data
    whole = np.zeros((len(data), *posteriors.grid.shape), dtype=np.float32)
    whole[0] = 1
    whole[(slice(None), *posteriors.slices)] = data
    return whole


def as_sparse(posteriors: plain.Posteriors) -> SparsePosteriors:
    """The same posteriors without their zeros."""
    flat = posteriors.data.reshape(len(posteriors.data), -1)
    foreground = np.flatnonzero((flat[0] != 1) | flat[1:].any(axis=0)).astype(np.int32)
    pieces = [Piece((0,), foreground, flat[:1, foreground])]
    for channel in range(1, len(flat)):
        index = np.flatnonzero(flat[channel]).astype(np.int32)
        pieces.append(Piece((channel,), index, flat[channel, index][None]))
    x, y, z = posteriors.data.shape[1:]
    return SparsePosteriors(len(flat), tuple(pieces), posteriors.start, (x, y, z), posteriors.grid)


def near_a_threshold(p: np.ndarray, padded: Grid, fine: Grid, config: InferenceConfig) -> bool:
    """Whether rounding may decide on which side of a threshold some voxel falls."""
    single = plain.bring_to(p[1:], padded, fine)
    limit = config.class_threshold if config.topology else config.channel_threshold
    total = plain.bring_to(p[1:].sum(axis=0, keepdims=True), padded, fine)
    return bool((np.abs(single - limit) < 1e-6).any() or (np.abs(total - config.foreground_threshold) < 1e-6).any())
