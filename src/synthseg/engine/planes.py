"""Planes along X: which ones a slab needs, and tensors kept in slabs until nothing needs them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from synthseg.engine.lasting import lasting_like
from synthseg.networks.unet import UNetConfig


def slabs(total: int, thickness: int) -> Iterator[tuple[int, int]]:
    """Start and stop of the slabs that ``total`` planes are cut into; the last one may be thinner."""
    for start in range(0, total, thickness):
        yield start, min(start + thickness, total)


def window(start: int, stop: int, *, total: int, halo: int, thickness: int = 0) -> tuple[int, int]:
    """The planes to compute so that start..stop - 1 are right: ``halo`` more on either side, but none outside.

    All slabs of up to ``thickness`` planes get windows of one length: at the volume's ends they reach further inside.
    With everything even, so is the window.
    """
    length = min(total, max(thickness, stop - start) + 2 * halo)
    first = min(max(start - halo, 0), total - length)
    return first, first + length


def halo_of(config: UNetConfig) -> int:
    """Planes of blocks beyond a slab that level 0's convolutions see; even, as pooling and upsampling take pairs."""
    reach = config.kernel // 2 * config.convs_per_level
    return reach + reach % 2


class Planes:
    """A tensor [1, C, X, Y, Z] in slabs, each of which is dropped when the last plane that needs it has been taken.

    Args:
        total: planes along X.
        halo: planes on either side that a plane needs.
    """

    def __init__(self, total: int, halo: int) -> None:
        self._halo = halo
        self._wanted = [True] * total
        self._chunks: dict[tuple[int, int], Tensor] = {}

    @property
    def held(self) -> int:
        """Number of planes in memory."""
        return sum(stop - start for start, stop in self._chunks)

    def put(self, start: int, chunk: Tensor) -> None:
        """Keep [1, C, S, Y, Z] as planes ``start`` and on; a part of a larger tensor is copied, to free the rest."""
        whole = chunk.untyped_storage().nbytes() == chunk.numel() * chunk.element_size()
        self._chunks[start, start + chunk.shape[2]] = chunk if whole else lasting_like(chunk).copy_(chunk)

    def get(self, start: int, stop: int) -> Tensor | None:
        """Planes start..stop - 1, without a copy where they are in one slab; None if some have been dropped."""
        parts: list[Tensor] = []
        reached = start
        for (first, last), chunk in sorted(self._chunks.items(), key=lambda item: item[0]):
            if first <= reached < last and reached < stop:
                parts.append(chunk[:, :, reached - first : min(stop, last) - first])
                reached = min(stop, last)
        if reached < stop:
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def taken(self, start: int, stop: int) -> None:
        """Planes start..stop - 1 have been computed: drop what only they needed."""
        self._wanted[start:stop] = [False] * (stop - start)
        for first, last in list(self._chunks):
            if not any(self._wanted[max(first - self._halo, 0) : last + self._halo]):
                del self._chunks[first, last]
