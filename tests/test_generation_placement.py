"""Positions as sums of small parts against Eq. 10 voxel by voxel in float64; nearest labels against plain indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from generation_helpers import seeded, small_bank
from synthseg.generation.anatomy import sample_labels
from synthseg.generation.config import DeformationPrior, GridPrior
from synthseg.generation.deformation import (
    DeformationDraw,
    coarse_displacement,
    displacement_field,
    draw_deformation,
    place,
    positions_mm,
)

GRID = GridPrior(shape=(20, 17, 28))
PRIOR = DeformationPrior(svf_node_mm=9.0, svf_step_mm=3.0, translation_mm=3.0)
CORNER = torch.tensor([[-11.0, -9.0, -12.0], [-130.0, 40.0, 3.5]])


def by_the_equation(draw: DeformationDraw, prior: DeformationPrior, grid: GridPrior) -> np.ndarray:
    """A (x + u(x)) + t in float64: [B, 3, X, Y, Z]."""
    coarse = coarse_displacement(draw, prior, grid).double().numpy()
    lines = [
        (np.arange(n) - (n - 1) / 2) * grid.spacing_mm / prior.svf_step_mm + (m - 1) / 2
        for n, m in zip(grid.shape, coarse.shape[2:], strict=True)
    ]
    where = np.meshgrid(*lines, indexing="ij")
    moved = np.stack([[map_coordinates(part, where, order=1, mode="nearest") for part in each] for each in coarse])
    moved += CORNER.double().numpy()[:, :, None, None, None] + np.indices(grid.shape) * grid.spacing_mm
    turned = np.einsum("bij,bjxyz->bixyz", draw.affine.double().numpy(), moved)
    return np.asarray(turned + draw.translation_mm.double().numpy()[:, :, None, None, None])


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    step_mm=st.sampled_from([2.0, 3.0, 4.0]),
    spacing_mm=st.sampled_from([1.0, 1.7]),
)
def test_positions_are_those_of_the_equation(seed: int, step_mm: float, spacing_mm: float) -> None:
    prior = DeformationPrior(svf_node_mm=9.0, svf_step_mm=step_mm, translation_mm=3.0)
    grid = GridPrior(shape=GRID.shape, spacing_mm=spacing_mm)
    draw = draw_deformation(prior, grid, 2, rng=seeded(seed))
    ours = positions_mm(place(draw, prior, CORNER, grid))
    np.testing.assert_allclose(ours.numpy(), by_the_equation(draw, prior, grid), rtol=0, atol=1e-4)


def test_a_mirrored_element_reads_its_planes_backwards() -> None:
    draw = draw_deformation(PRIOR, GRID, 2, rng=seeded(1))
    straight = positions_mm(place(draw, PRIOR, CORNER, GRID))
    turned = positions_mm(place(draw, PRIOR, CORNER, GRID, flip=torch.tensor([True, False])))
    torch.testing.assert_close(turned[0], straight[0].flip(1), rtol=0, atol=1e-4)
    torch.testing.assert_close(turned[1], straight[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("planes", [slice(0, 1), slice(5, 13), slice(19, 20), slice(None)])
def test_some_planes_are_those_of_the_whole(planes: slice) -> None:
    where = place(draw_deformation(PRIOR, GRID, 2, rng=seeded(2)), PRIOR, CORNER, GRID)
    torch.testing.assert_close(positions_mm(where, planes), positions_mm(where)[:, :, planes], rtol=0, atol=1e-4)


def test_precision_does_not_depend_on_the_surrounding_autocast() -> None:
    where = place(draw_deformation(PRIOR, GRID, 2, rng=seeded(3)), PRIOR, CORNER, GRID)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(positions_mm(where), positions_mm(where).float())
        inside = positions_mm(where)
    assert torch.equal(inside, positions_mm(where))


def test_without_an_affine_positions_are_the_displaced_grid() -> None:
    draw = draw_deformation(PRIOR, GRID, 2, rng=seeded(4))
    draw = draw._replace(affine=torch.eye(3).expand(2, 3, 3), translation_mm=torch.zeros(2, 3))
    grid = CORNER.view(2, 3, 1, 1, 1) + torch.from_numpy(np.indices(GRID.shape)).float()
    expected = grid + displacement_field(draw, PRIOR, GRID)
    torch.testing.assert_close(positions_mm(place(draw, PRIOR, CORNER, GRID)), expected, rtol=0, atol=1e-4)


# Nearest labels


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), far=st.booleans())
def test_nearest_labels_are_exactly_those_of_int64_indexing(seed: int, far: bool) -> None:
    bank = small_bank(shapes=((9, 14, 6), (5, 20, 13)), spacings_mm=((1.0, 1.0, 1.0), (1.2, 0.8, 1.1)))
    rng = seeded(seed)
    chosen = torch.randint(2, (3,), generator=rng)
    scale = 1e7 if far else 8.0
    where = [scale * torch.randn(3, 4, 5, 6, generator=rng) for _ in range(3)]
    where[0][:, 0] = where[0][:, 0].round() + 0.5  # ties: half to even
    center = 5 * torch.rand(3, 3, generator=rng).round()
    given = [mm.clone() for mm in where]
    ours = sample_labels(bank, chosen, where, center)
    for element, number in enumerate(chosen.tolist()):
        values, index = bank.label_map(number), []
        for axis, size in enumerate(values.shape):
            voxel = where[axis][element] / bank.spacing_mm[number, axis] + center[element, axis]
            index.append(voxel.double().round().clamp(0, size - 1).long())
        assert torch.equal(ours[element], values[tuple(index)])
    assert all(torch.equal(a, b) for a, b in zip(where, given, strict=True))  # inputs are not worked on in place
    assert ours.dtype == torch.uint8
