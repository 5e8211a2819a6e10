"""Slice thickness and spacing, and the small matrices they are made of (Billot et al. 2023, Eqs. 20-26)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d, map_coordinates

from generation_helpers import seeded
from synthseg.generation import original
from synthseg.generation.acquisition import AcquisitionDraw, apply_acquisition, blur_sigma_vox
from synthseg.generation.config import AcquisitionPrior, GridPrior
from synthseg.generation.separable import apply_separable, centered_positions, gaussian_matrix, interpolation_matrix

GRID = GridPrior()


def slices(spacing_mm: float, thickness_mm: float, axis: int, *, jitter: float = 1.0) -> AcquisitionDraw:
    """One element whose ``axis`` is coarse."""
    spacing, thickness = torch.ones(1, 3), torch.ones(1, 3)
    spacing[0, axis], thickness[0, axis] = spacing_mm, thickness_mm
    return AcquisitionDraw(spacing, thickness, torch.full((1, 3), jitter))


# Blur


def test_the_blur_of_equation_23() -> None:
    prior = AcquisitionPrior()
    sigma = blur_sigma_vox(slices(6.0, 4.0, 1, jitter=1.02), prior, GridPrior(spacing_mm=1.0))
    torch.testing.assert_close(sigma, torch.tensor([[0, 2 * 1.02 * math.log(10) / (2 * math.pi) * 4.0, 0]]))
    half = blur_sigma_vox(slices(6.0, 4.0, 1), prior, GridPrior(spacing_mm=0.5))
    assert half[0, 1] == pytest.approx(math.log(10) / math.pi * 8.0)


def test_the_originals_blur_has_its_factor_and_half_a_voxel_on_fine_axes() -> None:
    sigma = blur_sigma_vox(slices(3.0, 3.0, 2), original().acquisition, GRID)
    torch.testing.assert_close(sigma, torch.tensor([[0.5, 0.5, 2.25]]))  # reference 2.5: data (1, 1, 3) mm


@pytest.mark.parametrize("thickness_mm", [2.0, 4.0, 6.0])
def test_slice_thickness_attenuates_sinusoids_as_equation_23_predicts(thickness_mm: float) -> None:
    # Eq. 23 is a Gaussian of sigma = log(10) / pi * r: the amplitude of a sinusoid of f cycles per mm falls to
    # exp(-2 pi^2 sigma^2 f^2). At f = 1 / (2 r), the highest frequency slices of r mm can show, that is
    # exp(-log(10)^2 / 2) = 0.071. The paper says that the power falls to a tenth at the cut-off frequency: with this
    # sigma that happens at f = 1 / (2 r sqrt(log 10)), two thirds of it. Both are tested; we follow the equation.
    n, step = 240, int(thickness_mm)
    x = torch.arange(n, dtype=torch.float64)
    sigma = math.log(10) / math.pi * thickness_mm
    nyquist = 1 / (2 * thickness_mm)
    draw = slices(thickness_mm, thickness_mm, 0)
    for frequency in (0.25 * nyquist, nyquist / math.sqrt(math.log(10)), nyquist):
        wave = torch.cos(2 * math.pi * frequency * x + 0.3)
        blurred = apply_acquisition(wave.view(1, 1, n, 1, 1), draw, AcquisitionPrior(), GRID).flatten()
        at_slices = slice(60, 180, step)  # where nothing is interpolated; 60 divides into 2, 4 and 6
        kept = float((blurred * wave)[at_slices].sum() / wave[at_slices].square().sum())
        assert kept == pytest.approx(math.exp(-2 * (math.pi * sigma * frequency) ** 2), abs=1e-4)
    assert math.exp(-2 * (math.pi * sigma * nyquist) ** 2) == pytest.approx(math.exp(-(math.log(10) ** 2) / 2))
    tenth = nyquist / math.sqrt(math.log(10))
    assert math.exp(-2 * (math.pi * sigma * tenth) ** 2) ** 2 == pytest.approx(0.1)


@given(sigma=st.floats(0.4, 6.0), seed=st.integers(0, 999))
@settings(max_examples=25)
def test_the_blur_matrix_equals_scipys_filter(sigma: float, seed: int) -> None:
    n = 40
    line = np.random.default_rng(seed).standard_normal(n)
    ours = gaussian_matrix(torch.tensor([sigma], dtype=torch.float64), n)[0].numpy() @ line
    np.testing.assert_allclose(ours, gaussian_filter1d(line, sigma, mode="nearest", truncate=12.0), atol=1e-9)


def test_the_blur_matrix_is_close_on_an_axis_of_four_sigmas() -> None:
    line = np.random.default_rng(0).standard_normal(24)
    ours = gaussian_matrix(torch.tensor([6.0], dtype=torch.float64), 24)[0].numpy() @ line
    np.testing.assert_allclose(ours, gaussian_filter1d(line, 6.0, mode="nearest", truncate=30.0), atol=2e-4)


def test_the_blur_keeps_constants_and_has_no_truncated_tail() -> None:
    matrices = gaussian_matrix(torch.tensor([0.0, 0.5, 2.0, 6.0]), 64)
    torch.testing.assert_close(matrices.sum(-1), torch.ones(4, 64))
    assert torch.equal(matrices[0], torch.eye(64))
    # Effective deviation, which the original's 15 taps cut from 6 to 3.89 (reference 11.4). The default grid is wide.
    wide = gaussian_matrix(torch.tensor(6.0), 160)
    offsets = torch.arange(160) - 80.0
    assert float((wide[80] * offsets**2).sum().sqrt()) == pytest.approx(6.0, abs=0.01)


# Slices


def test_the_originals_slices_are_repeated() -> None:
    # Reference 11.3: 16 voxels, spacing 3 mm, values i^2, nearest down-sampling to 5 slices, no blur.
    prior = AcquisitionPrior(sigma_factor=0.0, native_sigma_vox=0.0, downsampling="nearest")
    line = (torch.arange(16.0) ** 2).view(1, 1, 16, 1, 1).expand(1, 1, 16, 3, 3)
    result = apply_acquisition(line, slices(3.0, 3.0, 0), prior, GRID)
    expected = [
        0,
        2.8125,
        5.625,
        8.4375,
        15.75,
        24.1875,
        32.625,
        48,
        68,
        88,
        108.625,
        130.1875,
        151.75,
        172.5,
        190,
        207.5,
    ]
    torch.testing.assert_close(result[0, 0, :13, 1, 1], torch.tensor(expected[:13]))
    # Beyond the last slice the original drifts towards the last voxel, which no slice has seen; we repeat the slice.
    assert result[0, 0, 13:, 1, 1].tolist() == [13.0**2] * 3


@given(
    spacing=st.floats(1.05, 8.0),
    axis=st.integers(0, 2),
    mode=st.sampled_from(["linear", "nearest"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_slices_are_sampled_and_interpolated_like_scipy_does(spacing: float, axis: int, mode: str, seed: int) -> None:
    shape = (17, 20, 23)
    image = torch.rand(1, 1, *shape, generator=seeded(seed), dtype=torch.float64)
    prior = AcquisitionPrior(sigma_factor=0.0, downsampling=mode)  # type: ignore[arg-type]
    ours = apply_acquisition(image, slices(spacing, 1.0, axis), prior, GRID)[0, 0].numpy()
    n = shape[axis]
    assume(n / spacing % 1 < 0.999)  # ours takes 9.9999 slices for ten, against float32's rounding
    count = int(n / spacing)
    down = np.arange(count) * (n / count)
    lines = np.moveaxis(image[0, 0].numpy(), axis, -1)
    for place in ((0, 0), (3, 5), (9, 7)):
        order = 1 if mode == "linear" else 0
        assume(order == 1 or np.all(np.abs(down % 1 - 0.5) > 1e-4))  # a tie is decided by the last bit
        low = map_coordinates(lines[place], [down], order=order, mode="nearest")
        expected = map_coordinates(low, [np.arange(n) * (count / n)], order=1, mode="nearest")
        np.testing.assert_allclose(np.moveaxis(ours, axis, -1)[place], expected, atol=2e-5)


def test_image_and_labels_stay_registered_through_coarse_slices() -> None:
    # A ramp comes back as itself up to the last slice: no half-voxel shift anywhere.
    ramp = torch.arange(40.0).view(1, 1, 40, 1, 1).expand(1, 1, 40, 2, 2)
    for spacing in (2.0, 3.3, 5.0, 8.0):
        back = apply_acquisition(ramp, slices(spacing, 1.0, 0), AcquisitionPrior(sigma_factor=0.0), GRID)
        last = int(40 - 40 / int(40 / spacing))
        torch.testing.assert_close(back[0, 0, : last + 1, 0, 0], torch.arange(last + 1.0), rtol=0, atol=1e-3)


def test_a_native_acquisition_is_the_identity() -> None:
    image = torch.randn(2, 1, 9, 10, 11, generator=seeded(0))
    native = AcquisitionDraw(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3))
    assert torch.equal(apply_acquisition(image, native, AcquisitionPrior(), GRID), image)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15)
def test_each_element_gets_its_own_resolution_and_a_constant_stays(seed: int) -> None:
    # The original divides by the number of elements per axis: 0.125 for a batch of two (reference 11.6).
    rng = seeded(seed)
    spacing = 1 + 7 * torch.rand(3, 3, generator=rng)
    draw = AcquisitionDraw(spacing, 1 + (spacing - 1) * torch.rand(3, 3, generator=rng), torch.ones(3, 3))
    image = torch.rand(3, 1, 10, 11, 12, generator=rng)
    together = apply_acquisition(image, draw, original().acquisition, GRID)
    for i in range(3):
        alone = AcquisitionDraw(*(tensor[i : i + 1] for tensor in draw))
        single = apply_acquisition(image[i : i + 1], alone, original().acquisition, GRID)
        torch.testing.assert_close(together[i : i + 1], single)
    constant = apply_acquisition(torch.ones(3, 1, 10, 11, 12), draw, original().acquisition, GRID)
    torch.testing.assert_close(constant, torch.ones(3, 1, 10, 11, 12))
    assert together.min() >= image.amin() - 1e-6
    assert together.max() <= image.amax() + 1e-6


def test_an_axis_shorter_than_the_spacing_becomes_one_slice() -> None:
    image = torch.rand(1, 1, 8, 8, 8, generator=seeded(1))
    flat = apply_acquisition(image, slices(20.0, 1.0, 2), AcquisitionPrior(sigma_factor=0.0), GRID)
    torch.testing.assert_close(flat, image[..., :1].expand_as(image))


# Matrices


@given(seed=st.integers(0, 2**31), n_in=st.integers(1, 12), n_out=st.integers(1, 12))
def test_interpolation_matrices_equal_numpys_interp(seed: int, n_in: int, n_out: int) -> None:
    rng = np.random.default_rng(seed)
    positions, line = rng.uniform(-2, n_in + 1, n_out), rng.standard_normal(n_in)
    matrix = interpolation_matrix(torch.from_numpy(positions), n_in)
    np.testing.assert_allclose(matrix.sum(-1), np.ones(n_out))
    np.testing.assert_allclose(matrix.numpy() @ line, np.interp(positions, np.arange(n_in), line), atol=1e-12)


def test_separable_products_apply_each_matrix_along_its_own_axis() -> None:
    # Unequal sides and a batch catch swapped axes.
    rng = seeded(2)
    data = torch.randn(2, 3, 4, 5, 6, generator=rng, dtype=torch.float64)
    x, y, z = (
        torch.randn(b, m, n, generator=rng, dtype=torch.float64) for b, m, n in ((2, 7, 4), (1, 8, 5), (2, 3, 6))
    )
    expected = torch.einsum("bix,bjy,bkz,bcxyz->bcijk", x, y.expand(2, -1, -1), z, data)
    torch.testing.assert_close(apply_separable(data, (x, y, z)), expected)


def test_centred_positions_put_both_centres_in_the_same_place() -> None:
    positions = centered_positions(5, 2.0, 4, 3.0, device=torch.device("cpu"))
    # Samples at -4 .. 4 mm, nodes at -4.5, -1.5, 1.5, 4.5 mm.
    torch.testing.assert_close(positions, (torch.tensor([-4.0, -2, 0, 2, 4]) + 4.5) / 3)
