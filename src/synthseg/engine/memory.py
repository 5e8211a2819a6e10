"""Memory as a budget: how thick slabs may be, what the process holds, what the machine has."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from synthseg.engine.estimate import Sizes, peak_bytes, relative_work
from synthseg.errors import SynthsegError, UsageError
from synthseg.networks.unet import UNetConfig

# One slab's tensor of level 0: 16 planes of 192 x 192 voxels took the same processor time as 32, halo included, and
# peaked 0.6 GB lower. Images of at most twice that run whole.
_SLAB_BYTES = 64 * 2**20
_THINNEST = 8  # voxels
MOST_MORE_WORK = 0.2  # of all of a network's, for staying within the soft limit
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Plan:
    """How a pass is cut.

    Attributes:
        slab: voxels along X at a time; None is all at once.
        recompute: whether level 0's features are computed twice instead of kept.
        bytes: estimate of what all passes take at their peak, beyond what the process holds before the first.
    """

    slab: int | None
    recompute: bool
    bytes: int


def plan(
    config: UNetConfig,
    shape: tuple[int, int, int],
    *,
    passes: int,
    budget_bytes: int | None,
    soft_bytes: int | None = None,
) -> Plan:
    """The cheapest way of running a network's passes within a budget.

    Args:
        shape: [X, Y, Z] of the input, multiples of ``config.multiple``.
        passes: how many are held side by side (2 with mirror averaging).
        budget_bytes: for the passes alone; None sets no limit: slabs are then as thick as is fast.
        soft_bytes: what the passes had better stay within: the cheapest way that does is taken if it costs at most
            :data:`MOST_MORE_WORK` more than the cheapest of all.
    Raises: SynthsegError if not even the thinnest slabs fit.
    """
    ways = sorted(_ways(config, shape, passes), key=lambda way: (way[0], way[1].bytes))
    fitting = [(work, way) for work, way in ways if budget_bytes is None or way.bytes <= budget_bytes]
    if fitting:
        cheapest, first = fitting[0]
        most = cheapest + MOST_MORE_WORK * (cheapest + _work_below(config))
        lean = (way for work, way in fitting if soft_bytes is not None and way.bytes <= soft_bytes and work <= most)
        return next(lean, first)
    least = min(way.bytes for _, way in ways)
    raise SynthsegError(
        "memory",
        found=f"a budget of {format_size(budget_bytes or 0)} for the network, which needs {format_size(least)}",
        fix="allow more memory, crop the image, or use a smaller network",
    )


def thinnest(config: UNetConfig, shape: tuple[int, int, int], *, passes: int) -> Plan:
    """The way that takes the least memory."""
    return min((way for _, way in _ways(config, shape, passes)), key=lambda way: way.bytes)


def _work_below(config: UNetConfig) -> float:
    """Multiplications of all levels but level 0, in the unit of ``relative_work``: these are never done twice."""

    def convolutions(level: int) -> tuple[float, float]:
        """Of the encoder's and the decoder's half of a level, a voxel of level 0."""
        k, wide = config.kernel**3, config.features * 2**level
        into = wide // 2 if level else config.in_channels * config.patch**3
        down = k * wide * (into + (config.convs_per_level - 1) * wide)
        up = k * wide * wide * config.convs_per_level + (config.kernel + 1) ** 3 / 8 * 2 * wide * wide
        return down / 8**level, up / 8**level

    below = [convolutions(level) for level in range(1, config.levels)]
    return (sum(map(sum, below)) - below[-1][1] if below else 0.0) / sum(convolutions(0))


def _ways(config: UNetConfig, shape: tuple[int, int, int], passes: int) -> list[tuple[float, Plan]]:
    """Slabs up to the usual thickness, features kept or not: relative work and plan."""
    step = 2 * config.patch
    width = shape[0]
    one = Sizes(config, shape, width // config.patch, False)
    thin = min(width, -(-_THINNEST // step) * step)
    pieces = 1 if one.level(0) <= 2 * _SLAB_BYTES else math.ceil(one.level(0) / _SLAB_BYTES)
    thick = max(thin, math.ceil(width / pieces / step) * step)  # of one thickness, as far as that goes
    ways = []
    for slab in {thick, *range(thin, thick, step)}:
        for recompute in (False, True):
            sizes = Sizes(config, shape, slab // config.patch, recompute)
            way = Plan(None if slab == width else slab, recompute, peak_bytes(sizes, passes))
            ways.append((relative_work(sizes), way))
    return ways


def parse_size(text: str | int) -> int:
    """Bytes of "4G", "512M", "4GiB", "1.5g" or a plain number; units are powers of 1024.

    Raises: UsageError for anything else, and for less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(?:i?b)?\s*", str(text), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < 1:
        raise UsageError("memory", found=repr(text), fix="give a size like 4G, 512M or a number of bytes")
    return size


def format_size(size: int) -> str:
    """Bytes as "1.5 GiB" or "300 MiB"."""
    return f"{size / 2**30:.1f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.0f} MiB"


def available_bytes() -> int:
    """Main memory this process can still take: what the system says is free to use, within its container's limit."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(found[1]) * 1024 if found else _physical_bytes()
    except OSError:  # no Linux
        free = _physical_bytes()
    with suppress(OSError, ValueError):  # no limit to be read is no limit
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    return max(0, free)


def resident_bytes() -> int:
    """Main memory this process holds, without what its allocator keeps for reuse after it was freed.

    The second part matters after :func:`synthseg.allocator.keep_freed_memory`. Where the system does not say, it is
    the largest size there has been.
    """
    try:
        mapped = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    except OSError:
        return _largest_resident_bytes()
    total = heap = 0
    for entry in mapped:
        found = re.search(r"^Rss:\s+(\d+) kB", entry, re.MULTILINE)
        size = int(found[1]) * 1024 if found else 0
        total += size
        heap += size if "[heap]" in entry else 0
    return total - heap + min(heap, _bytes_in_use(heap))


class _MallInfo2(ctypes.Structure):
    """glibc's struct mallinfo2 (mallinfo(3), since 2.33)."""

    _fields_ = (("sizes", ctypes.c_size_t * 10),)


_IN_USE = 7  # uordblks: bytes in allocations that live


def _bytes_in_use(otherwise: int) -> int:
    """Of the heap, as glibc counts them; ``otherwise`` for another library."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return otherwise
    mallinfo2.restype = _MallInfo2
    return int(mallinfo2().sizes[_IN_USE])


def _largest_resident_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2**63 - 1
