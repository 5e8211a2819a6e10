"""What a scan will need before it is segmented: grids, slabs, memory, time. All of it estimates but the grids."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from synthseg.engine.memory import resident_bytes
from synthseg.inference.ensemble import joint_plan, members_of
from synthseg.inference.model import Model
from synthseg.inference.needs import Needs
from synthseg.inference.passes import room_for
from synthseg.inference.placement import APART, passes_of
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.want import Want
from synthseg.volumes import read_volume

PROBE_VOXELS = 48**3  # of the trial run: a fraction of a second on two cores
RUNS = 3
# Cleaning up, measuring and writing: roughly, as seen on two cores (3e-7 with both of them taken five times over). What
# comes before the networks is not estimated, but done.
SECONDS_A_FINE_VOXEL = 1.5e-7

Speed = dict[str, float]  # role -> seconds a voxel of its grid, from a short trial run


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one scan will need.

    Attributes:
        shape, spacing_mm: of the file's own grid.
        whole: [X, Y, Z] voxels of the network's grid for the whole field of view; window: of the part around the brain
            that is segmented, as the brain was found.
        fine: [X, Y, Z] of the 1 mm grid on which volumes are measured.
        slab: planes that the network works on at a time; None without slabs.
        memory_bytes: peak of the process on the CPU, with the network's share there; device_bytes: of a GPU's memory.
            None for a network whose needs are not known (backend plain).
        seconds: for the whole scan; network_seconds: of it, for the networks.
        notes: what was odd about the file.
    """

    path: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    network_spacing_mm: float
    whole: tuple[int, int, int]
    window: tuple[int, int, int]
    fine: tuple[int, int, int]
    slab: int | None
    recompute: bool
    memory_bytes: int | None
    device_bytes: int | None
    seconds: float
    network_seconds: float
    notes: tuple[str, ...]


def measure_speed(segmenter: Segmenter) -> Speed:
    """Run every network that sees the window on a small volume of noise, and time it.

    Raises: whatever running it raises: then segmenting would not work either.
    """
    return {role: _seconds_a_voxel(model) for role, model in segmenter.models.items() if role not in APART}


def forecast(segmenter: Segmenter, path: Path, speed: Speed, want: Want | None = None) -> Forecast:
    """Read and prepare a scan, find the brain in it, and say what segmenting it will need.

    Raises: VolumeError if the scan cannot be read or used, SynthsegError if the segmenter's memory limit is too low.
    """
    start = time.perf_counter()
    scan = read_volume(path)
    model, config = segmenter.model, segmenter.config
    whole = segmenter.prepare(scan)
    prepared, _ = segmenter.focused(whole)
    begun = time.perf_counter() - start
    window = prepared.padded.shape
    placement = segmenter.placement
    needs = room_for(placement, prepared, want or Want(), config)
    plans = [
        (one, placement.plan_of(one, window, passes=count, needs=needs))
        for one, count in passes_of(segmenter.models, flip=config.flip, merge=config.merge)
    ]
    together = list(members_of(segmenter.models).values()) if config.merge == "mean" else [model]
    plan = joint_plan([(one, found) for one, found in plans if any(one is member for member in together)])
    network_bytes = None if plan is None else max(found.bytes for _, found in plans if found is not None) + needs.beside
    on_cpu = placement.on_cpu
    network_seconds = _network_seconds(segmenter, speed, math.prod(window))
    x, y, z = (float(side) for side in scan.spacing_mm)
    return Forecast(
        path=str(path),
        shape=scan.shape,
        spacing_mm=(x, y, z),
        network_spacing_mm=model.spacing_mm,
        whole=whole.padded.shape,
        window=window,
        fine=prepared.fine.shape,
        slab=None if plan is None else plan.slab,
        recompute=plan is not None and plan.recompute,
        memory_bytes=None if network_bytes is None and on_cpu else _peak_bytes(needs, (network_bytes or 0) * on_cpu),
        device_bytes=None if on_cpu else network_bytes,
        seconds=begun + network_seconds + SECONDS_A_FINE_VOXEL * math.prod(prepared.fine.shape),
        network_seconds=network_seconds,
        notes=prepared.notes,
    )


def _network_seconds(segmenter: Segmenter, speed: Speed, window: int) -> float:
    """All networks on the window, those of the structures twice with mirror averaging."""
    total, members = 0.0, members_of(segmenter.models)
    for role, seconds in speed.items():
        twice = segmenter.config.flip and role in members
        total += window * seconds * (2 if twice else 1)
    return total


def _peak_bytes(needs: Needs, network_bytes: int) -> int:
    """The process as it is, the scan read and prepared, and the larger of the networks' and the results' share."""
    return resident_bytes() + max(network_bytes + needs.gathered, needs.results)


def _seconds_a_voxel(model: Model) -> float:
    sides = _probe_shape(model.multiple)
    noise = torch.rand((1, model.in_channels, *sides), generator=torch.Generator().manual_seed(0))
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        model.runner.begin(noise).posteriors(0, sides[0]).sum().item()  # waits for a GPU
        taken.append(time.perf_counter() - start)
    return min(taken) / math.prod(sides)  # the first one prepares weights; others share the machine with who knows whom


def _probe_shape(multiple: int) -> tuple[int, int, int]:
    side = max(1, round(PROBE_VOXELS ** (1 / 3) / multiple)) * multiple
    return side, side, side
