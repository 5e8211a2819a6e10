"""The spatial deformation against closed forms, the original's numbers and a float64 re-implementation (Eqs. 1-10)."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor

from generation_helpers import PROTOCOL, seeded, small_bank, still, values_of
from synthseg.generation import GenerationConfig, GenerativeModel, PairDraw
from synthseg.generation.config import AnatomyPrior, DeformationPrior, GridPrior
from synthseg.generation.deformation import (
    DeformationDraw,
    compose_affine,
    displacement_field,
    draw_deformation,
    integrate_velocity,
)

HEAD = GridPrior(shape=(48, 52, 56), spacing_mm=2.0)


def strongest(seed: int, prior: DeformationPrior, grid: GridPrior = HEAD) -> DeformationDraw:
    """A draw whose velocity has the largest sigma the prior allows."""
    drawn = draw_deformation(prior, grid, 1, rng=seeded(seed))
    return drawn._replace(
        velocity_mm=prior.svf_max_std_mm * torch.randn(drawn.velocity_mm.shape, generator=seeded(seed))
    )


def jacobian_determinants(displacement: Tensor, spacing_mm: float) -> Tensor:
    """Of id + displacement [1, 3, X, Y, Z], by forward differences: one a cell."""
    cells = tuple(slice(0, n - 1) for n in displacement.shape[2:])
    columns = [displacement.diff(dim=axis)[(..., *cells)] / spacing_mm for axis in (2, 3, 4)]
    return torch.linalg.det(torch.stack(columns, -1).permute(0, 2, 3, 4, 1, 5) + torch.eye(3))


# Affine


def test_rotation_and_shear_match_the_originals_vectors() -> None:
    # Reference 11.5.
    none, ones = torch.zeros(1, 6), torch.ones(1, 3)
    turned = compose_affine(ones, none, torch.tensor([[10.0, 20.0, 30.0]]))[0]
    expected = [[0.8138, -0.46985, 0.34202], [0.54384, 0.82317, -0.16318], [-0.20487, 0.3188, 0.92542]]
    torch.testing.assert_close(turned, torch.tensor(expected), rtol=0, atol=1e-5)
    sheared = compose_affine(ones, torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]), torch.zeros(1, 3))[0]
    torch.testing.assert_close(sheared, torch.tensor([[1, 0.1, 0.2], [0.3, 1, 0.4], [0.5, 0.6, 1]]))


@given(seed=st.integers(0, 2**31))
def test_an_affine_is_scale_times_shear_times_rotation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scaling, shearing = rng.uniform(0.8, 1.2, 3), rng.uniform(-0.1, 0.1, 6)
    degrees = rng.uniform(-45, 45, 3)
    shear = np.eye(3)
    shear[~np.eye(3, dtype=bool)] = shearing  # row by row
    expected = np.diag(scaling) @ shear @ Rotation.from_euler("XYZ", degrees, degrees=True).as_matrix()
    ours = compose_affine(*(torch.from_numpy(values)[None] for values in (scaling, shearing, degrees)))[0]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


# Integration


def test_a_constant_velocity_moves_by_itself() -> None:
    velocity = torch.full((1, 3, 6, 7, 8), 2.0)
    torch.testing.assert_close(integrate_velocity(velocity, squarings=7), velocity)


def test_a_linear_velocity_integrates_to_the_originals_numbers_and_the_exponential() -> None:
    # Reference 11.5: 0.1 (x - 7.5) on 16 voxels, 7 squarings; borders are clamped, so the ends fall short.
    x = torch.arange(16, dtype=torch.float64)
    velocity = torch.zeros(1, 3, 16, 2, 2, dtype=torch.float64)
    velocity[0, 0] = 0.1 * (x - 7.5)[:, None, None]
    moved = integrate_velocity(velocity, squarings=7)[0]
    assert moved[1:].abs().max() == 0
    assert (moved[0] == moved[0, :, :1, :1]).all()
    measured = torch.tensor([-0.75, -0.67938, -0.57805, -0.47307, -0.05256], dtype=torch.float64)
    torch.testing.assert_close(moved[0, [0, 1, 2, 3, 7], 0, 0], measured, rtol=0, atol=1e-5)
    exact = (x - 7.5) * np.expm1(0.1)
    torch.testing.assert_close(moved[0, 3:13, 0, 0], exact[3:13], rtol=0, atol=4e-4)


def test_a_three_dimensional_linear_velocity_integrates_to_the_matrix_exponential() -> None:
    # Flowing inwards, so that no border is met. Not symmetric: swapped components would show.
    matrix = np.array([[-0.3, 0.1, 0.0], [-0.05, -0.25, 0.08], [0.02, -0.1, -0.2]])
    shape = (9, 10, 11)
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    velocity = torch.einsum("ij,jxyz->ixyz", torch.from_numpy(matrix), place)[None]
    exact = torch.einsum("ij,jxyz->ixyz", torch.from_numpy(expm(matrix) - np.eye(3)), place)[None]
    moved = integrate_velocity(velocity, squarings=7)
    torch.testing.assert_close(moved, exact, rtol=0, atol=5e-3)
    power = np.linalg.matrix_power(np.eye(3) + matrix / 128, 128) - np.eye(3)  # what 7 squarings are, without error
    torch.testing.assert_close(
        moved, torch.einsum("ij,jxyz->ixyz", torch.from_numpy(power), place)[None], rtol=0, atol=1e-10
    )


def test_the_gain_composes_as_if_displacements_were_that_much_longer() -> None:
    velocity = 0.5 * torch.randn(1, 3, 8, 9, 10, generator=seeded(0), dtype=torch.float64)
    doubled = integrate_velocity(velocity, squarings=6, gain=2.0)
    torch.testing.assert_close(2 * doubled, integrate_velocity(2 * velocity, squarings=6))


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
@pytest.mark.parametrize("variant", [{}, {"svf_step_mm": 2.0}, {"svf_step_mm": 2.0, "svf_gain": 2.0}])
def test_the_strongest_default_deformation_folds_nowhere(variant: dict[str, float], spacing_mm: float) -> None:
    prior = DeformationPrior(**variant)  # type: ignore[arg-type]
    grid = dataclasses.replace(HEAD, spacing_mm=spacing_mm)
    for seed in range(3):
        field = displacement_field(strongest(seed, prior, grid), prior, grid)
        assert jacobian_determinants(field, spacing_mm).min() > 0.1  # measured over 6 seeds: 0.30 to 0.61


def test_the_opposite_velocity_undoes_a_deformation() -> None:
    prior = DeformationPrior()
    for seed in range(2):
        drawn = strongest(seed, prior)
        there = displacement_field(drawn, prior, HEAD)[0].numpy()
        back = displacement_field(drawn._replace(velocity_mm=-drawn.velocity_mm), prior, HEAD)[0].numpy()
        where = np.indices(HEAD.shape) + there / HEAD.spacing_mm
        left = there + np.stack([map_coordinates(b, where, order=1, mode="nearest") for b in back])
        inside = np.linalg.norm(left, axis=0)[8:-8, 8:-8, 8:-8]  # 16 mm from the border, where fields are cut off
        # Displacements here are up to 11 mm, 3.6 mm on average. Measured: 0.07 mm root mean square, 0.57 mm at worst.
        assert np.sqrt((inside**2).mean()) < 0.1
        assert inside.max() < 0.8


def test_a_4_mm_integration_grid_stays_close_to_finer_ones() -> None:
    # What the default step costs. A 4 mm grid misses the tips of the piecewise linear velocity at its nodes. Measured
    # at full strength: 0.20 mm root mean square and 1.9 mm at worst, of displacements of 3.6 mm; 1 mm against 2 mm:
    # 0.03 and 0.4.
    for seed in range(2):
        drawn = strongest(seed, DeformationPrior())
        fields = [displacement_field(drawn, DeformationPrior(svf_step_mm=step), HEAD) for step in (1.0, 2.0, 4.0)]
        fine, coarse = ((a - b).norm(dim=1) for a, b in itertools.pairwise(fields))
        assert coarse.square().mean().sqrt() < 0.3
        assert coarse.max() < 2.5
        assert fine.square().mean().sqrt() < 0.06


def test_the_originals_strength_is_repeated() -> None:
    # Reference 11.5, one draw of sigma 4: standard deviation 2.27 of the velocity and 2.18 of the displacement.
    prior = DeformationPrior(svf_step_mm=2.0, svf_gain=2.0)
    deviations = [displacement_field(strongest(seed, prior), prior, HEAD).std() for seed in range(5)]
    assert 1.9 < torch.stack(deviations).mean() < 2.4


# Pull-back


def reference_labels(model: GenerativeModel, draw: PairDraw) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 10 and the edits of section 4.2 in float64 numpy and scipy: (label values, voxels no rounding can change)."""
    grid, prior, anatomy = model.config.grid, model.config.deformation, draw.anatomy
    step = prior.svf_step_mm
    shape = np.array(grid.shape)

    def upsample(field: np.ndarray, n_out: np.ndarray, step_out: float, step_in: float) -> np.ndarray:
        lines = [
            (np.arange(n) - (n - 1) / 2) * step_out / step_in + (m - 1) / 2
            for n, m in zip(n_out, field.shape[1:], strict=True)
        ]
        where = np.meshgrid(*lines, indexing="ij")
        return np.stack([map_coordinates(part, where, order=1, mode="nearest") for part in field])

    coarse = np.ceil(shape * grid.spacing_mm / step).astype(int)
    velocity = upsample(draw.deformation.velocity_mm[0].double().numpy() / step, coarse, step, prior.svf_node_mm)
    moved = velocity / 2**prior.squarings
    for _ in range(prior.squarings):
        where = np.indices(moved.shape[1:]) + prior.svf_gain * moved
        moved = moved + np.stack([map_coordinates(part, where, order=1, mode="nearest") for part in moved])
    displacement = upsample(moved, shape, grid.spacing_mm, step) * step
    start = anatomy.corner_mm[0].double().numpy()[:, None, None, None] + np.indices(grid.shape) * grid.spacing_mm
    place = np.einsum("ij,jxyz->ixyz", draw.deformation.affine[0].double().numpy(), start + displacement)
    place += draw.deformation.translation_mm[0].double().numpy()[:, None, None, None]

    def look_up(index: int) -> tuple[np.ndarray, np.ndarray]:
        values = values_of(model.bank.label_map(index))
        spacing = model.bank.spacing_mm[index].double().numpy()[:, None, None, None]
        center = (np.array(values.shape)[:, None, None, None] - 1) / 2
        voxel = place / spacing + center
        sure = (np.abs(voxel - np.floor(voxel) - 0.5) > 1e-3).all(0)
        return map_coordinates(values, voxel, order=0, mode="nearest"), sure

    own, sure = look_up(int(anatomy.map_index))
    donor, sure_donor = look_up(int(anatomy.donor_index))
    if anatomy.lesions:
        pasted = np.isin(donor, (25, 57)) & bool(anatomy.paste)
        own = np.where(pasted & (own == 2), 25, np.where(pasted & (own == 41), 57, own))
    else:
        own = np.where(own == 25, 2, np.where(own == 57, 41, own))
    if anatomy.strip:
        own = np.where(own >= 500, 0, own)
        own = np.where((own == 24) & bool(anatomy.strip_csf), 0, own)
    if anatomy.flip:
        partner = dict(zip(PROTOCOL.values.tolist(), PROTOCOL.values[PROTOCOL.partner_index].tolist(), strict=True))
        own, sure, sure_donor = own[::-1], sure[::-1], sure_donor[::-1]
        own = np.vectorize(partner.get)(own)
    return own, sure & sure_donor


@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_labels_equal_a_float64_reimplementation(gain: float) -> None:
    bank = small_bank(shapes=((30, 34, 26), (25, 40, 33)), spacings_mm=((1.0, 1.0, 1.0), (1.2, 0.8, 1.1)))
    config = GenerationConfig(
        grid=GridPrior(shape=(20, 24, 28)),
        deformation=DeformationPrior(svf_node_mm=9.0, svf_step_mm=3.0, svf_gain=gain, translation_mm=3.0),
        anatomy=AnatomyPrior(strip_csf_probability=0.5),
    )
    model = GenerativeModel(config, bank)
    draw = model.draw(12, rng=seeded(20))
    assert all(0 < int(coin.sum()) < 12 for coin in (draw.anatomy.flip, draw.anatomy.strip, draw.anatomy.lesions))
    labels = values_of(model.labels(draw))
    for i in range(12):
        expected, sure = reference_labels(model, draw.element(i))
        assert sure.mean() > 0.98
        np.testing.assert_array_equal(labels[i][sure], expected[sure])


def test_a_scale_above_one_shrinks_the_anatomy() -> None:
    # A pull-back: reference 2.3 step 1.
    model = GenerativeModel(still((24, 24, 24)), small_bank(((24, 24, 24),), ((1.0, 1.0, 1.0),)))
    draw = model.draw(1, rng=seeded(0))
    larger = draw._replace(deformation=draw.deformation._replace(affine=1.2 * torch.eye(3)[None]))
    assert (model.labels(larger) != 0).sum() < 0.7 * (model.labels(draw) != 0).sum()


def test_displacement_comes_before_the_affine() -> None:
    # Eq. 10: A (x + u), not A x + u. u = 3 mm along x, A turns x into y: the map is read 3 mm along y.
    bank = small_bank(((20, 20, 20),), ((1.0, 1.0, 1.0),))
    model = GenerativeModel(still((20, 20, 20)), bank)
    draw = model.draw(1, rng=seeded(0))
    velocity = torch.zeros_like(draw.deformation.velocity_mm)
    velocity[:, 0] = 3.0
    turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    moved = model.labels(draw._replace(deformation=draw.deformation._replace(affine=turn, velocity_mm=velocity)))[0]
    original = bank.label_map(0).long()
    # Output (i, j) reads map (19 - j, i + 3).
    expected = original.flip(0).transpose(0, 1)[3:]
    assert torch.equal(moved[:17], expected)
