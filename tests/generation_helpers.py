"""Small label maps and configs that the generation tests share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from synthseg.generation import GenerationConfig, LabelBank
from synthseg.generation.config import (
    AcquisitionPrior,
    AnatomyPrior,
    BiasPrior,
    DeformationPrior,
    GridPrior,
    IntensityPrior,
    MixturePrior,
)
from synthseg.generation.deformation import DeformationDraw
from synthseg.labels.protocol import LabelProtocol, load_protocol

PROTOCOL: LabelProtocol = load_protocol("synthseg-generation")
STRIPPED = (502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530)  # extra-cerebral labels, reference 1.2
LESIONS = {25: 2, 57: 41}  # lesion -> white matter of its side
_LEFT = {41: 2, 42: 3, 43: 4, 49: 10, 53: 17, 57: 25}


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def blobby_map(shape: Sequence[int], seed: int) -> np.ndarray:
    """[X, Y, Z] label values: an ellipsoid of blobs, left labels at low x, skin and bone around, air in the corners."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum((axis / 0.95) ** 2 for axis in axes))

    def choose(values: Sequence[int], sigma: float) -> np.ndarray:
        fields = [gaussian_filter(rng.standard_normal(shape), sigma) for _ in values]
        return np.array(values)[np.argmax(fields, axis=0)]

    brain = choose((41, 42, 43, 49, 53, 16), 1.5)
    brain = np.where((brain == 41) & (rng.random(shape) < 0.15), 57, brain)
    left = axes[0] < 0
    for right_value, left_value in _LEFT.items():
        brain[left & (brain == right_value)] = left_value
    head = np.where(radius < 0.65, brain, np.where(radius < 0.75, 24, choose((511, 515, 507, 514), 1.0)))
    return np.where(radius < 1, head, 0).astype(np.int32)


def small_bank(
    shapes: Sequence[Sequence[int]] = ((24, 26, 28), (30, 22, 25)),
    spacings_mm: Sequence[Sequence[float]] = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
) -> LabelBank:
    """A bank of :func:`blobby_map` maps."""
    maps = [blobby_map(shape, seed) for seed, shape in enumerate(shapes)]
    return LabelBank.from_maps(maps, spacings_mm, [f"map{n}" for n in range(len(maps))], PROTOCOL)


def still(shape: tuple[int, int, int] = (16, 18, 20), **stages: Any) -> GenerationConfig:
    """Every stage at zero strength, except those given."""
    config = GenerationConfig(
        grid=GridPrior(shape=shape),
        deformation=DeformationPrior(scaling=0, rotation_deg=0, shearing=0, translation_mm=0, svf_max_std_mm=0),
        anatomy=AnatomyPrior(flip_probability=0, strip_probability=0, lesion_probability=1, lesion_paste_probability=0),
        mixture=MixturePrior(std_range=(0, 0), background_zero_probability=0, background_dark_probability=0),
        bias=BiasPrior(max_std=0),
        intensity=IntensityPrior(gamma_std=0),
        acquisition=AcquisitionPrior(native_probability=1, jitter=0),
    )
    return dataclasses.replace(config, **stages)


def values_of(indices: torch.Tensor) -> np.ndarray:
    """Label values of label indices."""
    return PROTOCOL.values[indices.numpy()]


def pull_back(draw: DeformationDraw, displacement_mm: Tensor, corner_mm: Tensor, grid: GridPrior) -> list[Tensor]:
    """Where each voxel of the pair comes from: whole volumes of positions, one formula; what slabs are compared with.

    Args:
        draw: the affine part.
        displacement_mm: [B, 3, X, Y, Z], added first.
        corner_mm: [B, 3] position of voxel (0, 0, 0) relative to the map's centre, before deformation.
        grid: shape and spacing.
    Returns: three [B, X, Y, Z] tensors, in mm from the map's centre.
    Source: Eq. 10: displacement first, affine second; reference 2.3 step 1.
    """
    device = corner_mm.device
    steps = [torch.arange(n, device=device, dtype=torch.float32) * grid.spacing_mm for n in grid.shape]
    lines = [
        (corner_mm[:, axis, None] + step).reshape(len(corner_mm), *[len(step) if a == axis else 1 for a in range(3)])
        for axis, step in enumerate(steps)
    ]
    moved = [line + displacement_mm[:, axis] for axis, line in enumerate(lines)]
    matrix = draw.affine[..., None, None, None]
    shift = draw.translation_mm[..., None, None, None]
    return [
        shift[:, row] + matrix[:, row, 0] * moved[0] + matrix[:, row, 1] * moved[1] + matrix[:, row, 2] * moved[2]
        for row in range(3)
    ]
