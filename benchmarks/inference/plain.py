"""The plain way to segment a scan: the whole field of view, the network as it is, everything in memory at once.

    python -m benchmarks.inference.plain SCAN OUT --weights FILE --mode default --threads 2

What the fast path is measured against (:mod:`benchmarks.inference`). Reading, resampling and writing are the package's;
the rest is what any user of torch would write first, and gives the same labels: no cut to the head, the module called
on the whole image, softmax over the whole volume, mirror averaging and smoothing of all posteriors at once, and the
dense clean-up of :mod:`benchmarks.inference.plain_postprocess`.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.inference import plain_postprocess as dense
from benchmarks.inference.measure import tell, used_so_far
from torch import Tensor, nn

from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.inference.modes import mode_config
from synthseg.inference.structures import Channels, channels_of
from synthseg.volumes import Volume, center_window, from_ras, read_volume, resample_to_spacing, to_ras, write_volume
from synthseg.volumes.standard import close_to_spacing, rescale
from synthseg.weights import build_network, load_weights, protocol_of


def main() -> None:
    """Segment one scan, write its labels, tell the volumes and the times."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    times: dict[str, float] = {}
    weights = load_weights(given.weights)
    network = build_network(weights)
    if given.layout == "channels-last":
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    channels, config = channels_of(protocol_of(weights)), mode_config(given.mode)
    with clock(times, "read"):
        volume = read_volume(given.scan)
    with clock(times, "prepare"):
        spacing_mm = float(weights.card["spacing_mm"])
        scan, orientation = to_ras(volume)
        image, padded, fine = prepared(scan, spacing_mm, int(network.config.multiple), config)  # type: ignore[arg-type,union-attr]
        if given.layout == "channels-last":
            image = image.contiguous(memory_format=torch.channels_last_3d)
    with clock(times, "predict"):
        posteriors = predicted(network, image, channels.partners, config)
    with clock(times, "postprocess"):
        cleaned = dense.clean_posteriors(posteriors.numpy(), padded, fine, channels, config)
        del posteriors
    with clock(times, "results"):
        labels, volumes = results(cleaned, scan, channels)
        native = Volume(np.ascontiguousarray(from_ras(labels, orientation)), volume.affine, volume.path)
    with clock(times, "write"):
        write_volume(native, given.out, dtype=np.int32, header_like=volume.path)
    cpu, peak = used_so_far()
    tell(times_s=times, volumes_mm3=volumes, cpu_s=cpu, peak_gb=peak, shape=list(image.shape[2:]))


def prepared(scan: Volume, spacing_mm: float, multiple: int, config: InferenceConfig) -> tuple[Tensor, Grid, Grid]:
    """The whole scan as the network's input [1, 1, X, Y, Z], the grid it lies on, and the 1 mm grid of the results."""
    working = scan
    if not close_to_spacing(scan.spacing_mm, spacing_mm, config.spacing_tolerance):
        working = resample_to_spacing(scan, spacing_mm, order=1)
    scaled = rescale(working.data, config.percentiles, subject=str(scan.path))
    window = center_window(scaled.shape, [n + (-n) % multiple for n in scaled.shape])
    image = np.ascontiguousarray(window.crop(scaled))
    padded = grid_of(working).window(window.start, image.shape)
    return torch.from_numpy(image)[None, None], padded, fine_grid(scan, config)


def predicted(network: nn.Module, image: Tensor, partners: np.ndarray, config: InferenceConfig) -> Tensor:
    """Smoothed posteriors [C, X, Y, Z] of the whole image (reference 6.4)."""
    with torch.inference_mode():
        posteriors = torch.softmax(network(image)[0], dim=0).contiguous()
        if config.flip:
            mirrored = torch.softmax(network(image.flip(2))[0], dim=0).flip(1)
            for channel, partner in enumerate(partners.tolist()):
                posteriors[channel].add_(mirrored[partner]).mul_(0.5)
            del mirrored
        return smoothed(posteriors, config.smoothing_sigma_vox)


def smoothed(posteriors: Tensor, sigma_vox: float) -> Tensor:
    """[C, X, Y, Z] blurred along each axis by a normalised Gaussian of three taps, zeros outside; in place."""
    if sigma_vox == 0:
        return posteriors
    outer = math.exp(-0.5 / sigma_vox**2)
    outer, centre = outer / (1 + 2 * outer), 1 / (1 + 2 * outer)
    for channel in posteriors:
        for axis in range(3):
            moved = channel.movedim(axis, 0)
            result = moved * centre
            result[1:].add_(moved[:-1], alpha=outer)
            result[:-1].add_(moved[1:], alpha=outer)
            moved.copy_(result)
    return posteriors


def results(cleaned: Any, scan: Volume, channels: Channels) -> tuple[np.ndarray, dict[int, float]]:
    """Labels on the scan's own grid, in RAS order, and soft volumes in mm3 by value."""
    labels = channels.values.astype(np.int32)[dense.channels_on(cleaned, grid_of(scan))]
    sums = cleaned.data.reshape(len(channels), -1).sum(axis=1, dtype=np.float64) * cleaned.grid.voxel_volume_mm3
    return labels, {int(value): float(mm3) for value, mm3 in zip(channels.values[1:], sums[1:], strict=True)}


def grid_of(volume: Volume) -> Grid:
    x, y, z = volume.data.shape
    return Grid((x, y, z), np.asarray(volume.affine, dtype=np.float64))


def fine_grid(scan: Volume, config: InferenceConfig) -> Grid:
    """The scan's own grid when that is near 1 mm, else cubic voxels of 1 mm from the same edges (reference 6.3)."""
    grid = grid_of(scan)
    if close_to_spacing(grid.spacing_mm, 1.0, config.spacing_tolerance):
        return grid
    factor = grid.spacing_mm
    x, y, z = (max(1, math.ceil(n * f - 1e-4)) for n, f in zip(grid.shape, factor, strict=True))
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] / factor
    affine[:3, 3] = grid.affine[:3, 3] - affine[:3, :3] @ (0.5 * (factor - 1))
    return Grid((x, y, z), affine)


class clock:
    """Adds the seconds of a ``with`` block to a table."""

    def __init__(self, times: dict[str, float], stage: str) -> None:
        self.times, self.stage = times, stage

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.times[self.stage] = round(time.perf_counter() - self.began, 3)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("out", type=Path, help="label map to write")
    parser.add_argument("--weights", default="default", help="name or file")
    parser.add_argument("--mode", default="default", choices=("default", "fast"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layout", default="contiguous", choices=("contiguous", "channels-last"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
