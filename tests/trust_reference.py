"""The generative model again: one element at a time, float64, numpy and scipy only.

Written from the equations (Billot et al. 2023, section 3.1) and from what the docs say of the optional stages, with
other means than the package's: no matrices, no slabs, no tables. What the tests of numerical trust compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter1d, map_coordinates

from synthseg.generation.config import GenerationConfig
from synthseg.generation.draws import PairDraw

Array = np.ndarray
WIDE = 12.0  # standard deviations after which a Gaussian is cut off: beyond float64's last bit


def numbers(stage: Any) -> Any:
    """A batch-of-one stage's draw as float64 (or whole, or true or false) arrays without the batch's axis."""
    return type(stage)(*(t[0].double().numpy() if t.is_floating_point() else t[0].numpy() for t in stage))


def at_places(field: Array, places: Sequence[Array]) -> Array:
    """[C, x, y, z] at a grid of places, linear, the border's value beyond it."""
    where = np.meshgrid(*places, indexing="ij")
    return np.stack([map_coordinates(part, where, order=1, mode="nearest") for part in field])


def centred(n_out: int, step_out: float, n_in: int, step_in: float) -> Array:
    """Places on an axis of ``n_in`` nodes of ``n_out`` samples, the middles of both in one place."""
    return (np.arange(n_out) - (n_out - 1) / 2) * step_out / step_in + (n_in - 1) / 2


def over_the_grid(nodes: Array, shape: Sequence[int]) -> Array:
    """A field whose outermost nodes lie on the outermost voxels."""
    return at_places(nodes, [np.linspace(0, m - 1, n) for n, m in zip(shape, nodes.shape[1:], strict=True)])


# Eqs. 1-10


def integrate(velocity: Array, squarings: int, gain: float = 1.0) -> Array:
    """Scaling and squaring in voxels: [3, x, y, z]."""
    moved = velocity / 2**squarings
    for _ in range(squarings):
        where = np.indices(moved.shape[1:]) + gain * moved
        moved = moved + np.stack([map_coordinates(part, where, order=1, mode="nearest") for part in moved])
    return moved


def displacement(config: GenerationConfig, draw: PairDraw) -> Array:
    """[3, X, Y, Z] mm: the velocity's, integrated."""
    prior, grid = config.deformation, config.grid
    nodes, step = numbers(draw.deformation).velocity_mm, prior.svf_step_mm
    coarse = [max(int(np.ceil(n * grid.spacing_mm / step)), 2) for n in grid.shape]
    lines = [centred(n, step, m, prior.svf_node_mm) for n, m in zip(coarse, nodes.shape[1:], strict=True)]
    moved = integrate(at_places(nodes, lines) / step, prior.squarings, prior.svf_gain) * step
    return at_places(moved, [centred(n, grid.spacing_mm, m, step) for n, m in zip(grid.shape, coarse, strict=True)])


def positions(config: GenerationConfig, draw: PairDraw) -> Array:
    """[3, X, Y, Z] mm from the map's centre: where the voxels of the finished, perhaps mirrored, pair come from."""
    deformation, anatomy = numbers(draw.deformation), numbers(draw.anatomy)
    start = anatomy.corner_mm[:, None, None, None] + np.indices(config.grid.shape) * config.grid.spacing_mm
    affine = deformation.affine / (numbers(draw.morphology).size if "size" in draw.morphology._fields else 1.0)
    place = np.einsum("ij,jxyz->ixyz", affine, start + displacement(config, draw))
    place += deformation.translation_mm[:, None, None, None]
    return place[:, ::-1] if anatomy.flip else place


# Eqs. 11-19


def mixture(classes: Array, means: Array, stds: Array, noise: Array) -> Array:
    return means[classes] + stds[classes] * noise


def bias(image: Array, log_gain: Array) -> Array:
    return image * np.exp(over_the_grid(log_gain, image.shape)[0])


def gamma(image: Array, log_gamma: float, clip_max: float | None) -> Array:
    clipped = np.clip(image, 0, clip_max)
    span = clipped.max() - clipped.min()
    return ((clipped - clipped.min()) / span) ** np.exp(log_gamma) if span else np.zeros_like(image)


# Eqs. 20-26


def interpolated(image: Array, axis: int, places: Array) -> Array:
    """Linear along one axis, the border's value beyond it."""
    nodes = np.arange(image.shape[axis])
    return np.apply_along_axis(lambda line: np.interp(places, nodes, line), axis, image)


def resolution(config: GenerationConfig, spacing_mm: Array, n: int, axis: int) -> tuple[int, float]:
    """Slices on an axis of n voxels, and voxels from one to the next."""
    count = max(int(np.floor(n * config.grid.spacing_mm / spacing_mm[axis] + 1e-4)), 1)
    return count, n / count


def acquire(image: Array, config: GenerationConfig, draw: PairDraw) -> Array:
    """Blur, slices, interpolation; then ghosts; then the slices' own noise."""
    prior, grid, scan = config.acquisition, config.grid, numbers(draw.acquisition)
    for axis, n in enumerate(image.shape):
        thick = scan.spacing_mm[axis] > grid.spacing_mm * (1 + 1e-6)
        sigma = prior.sigma_factor * scan.thickness_mm[axis] / grid.spacing_mm if thick else prior.native_sigma_vox
        sigma *= scan.jitter[axis]
        if sigma > 0:
            image = gaussian_filter1d(image, sigma, axis=axis, mode="nearest", truncate=WIDE)
        count, step = resolution(config, scan.spacing_mm, n, axis)
        slices = np.arange(count) * step
        slices = np.round(slices) if prior.downsampling == "nearest" else slices
        image = interpolated(interpolated(image, axis, slices), axis, np.arange(n) / step)
    if "copies" in draw.ghosts._fields:
        ghosts = numbers(draw.ghosts)
        axis = int(ghosts.axis)
        shift = round(image.shape[axis] / int(ghosts.copies))
        both = np.roll(image, shift, axis) + np.roll(image, -shift, axis)
        image = (1 - ghosts.strength) * image + ghosts.strength / 2 * both
    if "noise" in draw.noise._fields:
        noise = numbers(draw.noise)
        added = noise.noise[0]
        for axis, n in enumerate(image.shape):
            count, step = resolution(config, scan.spacing_mm, n, axis)
            added = interpolated(added.take(np.arange(count), axis), axis, np.arange(n) / step)
        image = np.clip(image + noise.std * added, 0, 1)
    return image


# Optional stages


def nearest(volume: Array, spacing_mm: Array, center_vox: Array, place: Array) -> tuple[Array, Array]:
    """Nearest voxels at positions in mm from the centre, and where no rounding error can change them."""
    voxel = place / spacing_mm[:, None, None, None] + center_vox[:, None, None, None]
    sure = (np.abs(voxel - np.floor(voxel) - 0.5) > 1e-3).all(0)
    index = [np.clip(np.round(part), 0, n - 1).astype(int) for part, n in zip(voxel, volume.shape, strict=True)]
    return volume[tuple(index)], sure


def shifts_mm(config: GenerationConfig, draw: PairDraw) -> Array:
    """[P, 3] mm: positions within a voxel, in the map's frame."""
    offsets = numbers(draw.partial_volume).offsets_vox * config.grid.spacing_mm
    offsets = offsets * ((-1, 1, 1) if bool(draw.anatomy.flip) else (1, 1, 1))
    return offsets @ numbers(draw.deformation).affine.T


def regions(fields: Array, shape: Sequence[int]) -> tuple[Array, Array]:
    """Which of four regions each voxel lies in, and where no rounding error can change that."""
    first, second = over_the_grid(fields, shape)
    return (first > 0) + 2 * (second > 0), np.minimum(np.abs(first), np.abs(second)) > 1e-4


def seen(config: GenerationConfig, draw: PairDraw) -> Array:
    """Voxels in the scanner's field of view."""
    cut, inside = numbers(draw.field_of_view).cut, np.ones(config.grid.shape, dtype=bool)
    for axis, n in enumerate(config.grid.shape):
        share = (np.arange(n) + 0.5) / n
        kept = (share > cut[axis, 0]) & (share < 1 - cut[axis, 1])
        inside &= kept.reshape([-1 if a == axis else 1 for a in range(3)])
    return inside


def cut_depth(config: GenerationConfig, draw: PairDraw, center_mm: Array) -> Array:
    """How far each voxel of the pair lies beyond the plane of a cut, in mm."""
    plane, anatomy = numbers(draw.surroundings), numbers(draw.anatomy)
    place = anatomy.corner_mm[:, None, None, None] + np.indices(config.grid.shape) * config.grid.spacing_mm
    place = place[:, ::-1] if anatomy.flip else place
    return np.einsum("i,ixyz->xyz", plane.normal, place - center_mm[:, None, None, None]) - plane.distance_mm


def patched(values: Array, field: Array, level: float, towards: float) -> Array:
    """Values led over to another, softly, where a field exceeds a level."""
    share = 1 / (1 + np.exp(-np.clip((field - level) / 0.2, -700, 700)))
    return values + share * (towards - values)


def grown(mask: Array, edge: int) -> Array:
    """A mask grown by a cube; even edges reach one voxel further down."""
    if edge == 1:
        return np.zeros_like(mask)
    found = np.zeros_like(mask)
    down, up = edge // 2, (edge - 1) // 2
    cube = np.zeros((2 * down + 1,) * 3, dtype=bool)
    cube[: down + up + 1, : down + up + 1, : down + up + 1] = True  # of offsets -down..up
    found |= binary_dilation(mask, cube)
    return found


def flow(share: Array, amount_mm: float, sigma_mm: float, step_mm: float, stride: int) -> Array:
    """[3, ...] mm: the ventricles' flow at every ``stride``-th node."""
    smooth = share
    for axis in range(3):
        smooth = gaussian_filter1d(smooth, sigma_mm / step_mm, axis=axis, mode="nearest", truncate=WIDE)
    smooth = smooth[::stride, ::stride, ::stride]
    coarse = stride * step_mm
    slope = np.stack(np.gradient(smooth, coarse))  # a millimetre
    velocity = amount_mm * sigma_mm * np.sqrt(2 * np.pi) * slope / coarse  # voxels
    return integrate(velocity, 3) * coarse


def sulci(csf: Array, brain: Array, amount_mm: float, sigma_mm: float, step_mm: float) -> Array:
    """[3, ...] mm: the cortex moved away from the CSF, fading out where there is no brain."""
    for axis in range(3):
        csf, brain = (
            gaussian_filter1d(share, sigma_mm / step_mm, axis=axis, mode="nearest", truncate=WIDE)
            for share in (csf, brain)
        )
    slope = np.stack(np.gradient(csf, step_mm))
    return amount_mm * sigma_mm * np.sqrt(2 * np.pi) * slope * np.minimum(2 * brain, 1)
