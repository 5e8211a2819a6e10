"""Memory that returns to the system when it is freed, whatever the C library keeps for reuse.

Tensors that outlive many others leave holes in a heap that is kept (:mod:`synthseg.allocator`), and their own place in
it is no use to anyone. Measured at 192^3, all posteriors held: 3.0 GB; 1.9 with what lasts in pages of its own.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys

import torch
from torch import Tensor


def lasting_like(x: Tensor) -> Tensor:
    """An uninitialised tensor of the shape [1, C, X, Y, Z], type and device of ``x``, channels last; for long use."""
    _, channels, *sides = x.shape
    shape = (1, *sides, channels)
    if x.device.type != "cpu":
        return torch.empty(shape, dtype=x.dtype, device=x.device).permute(0, 4, 1, 2, 3)
    pages = mmap.mmap(-1, math.prod(shape) * x.element_size())  # lives as long as the tensor does
    return torch.frombuffer(pages, dtype=x.dtype).view(shape).permute(0, 4, 1, 2, 3)


def give_back_freed_memory() -> None:
    """Return what has been freed to the system, where the C library is glibc; nothing happens elsewhere."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # musl has none
        return
