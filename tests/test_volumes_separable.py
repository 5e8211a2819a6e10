"""Resampling as products with small matrices, and exact percentiles: against SciPy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from synthseg.errors import VolumeError
from synthseg.volumes.ranks import percentiles_of
from synthseg.volumes.separable import apply_along_axes, resampled_count, spacing_matrix
from synthseg.volumes.standard import rescale
from synthseg.volumes.volume import in_memory_order

SIZES = st.integers(1, 70)  # more than the rows that are multiplied at a time


def view(data: np.ndarray, axes: tuple[int, ...], flips: tuple[bool, ...]) -> np.ndarray:
    return data.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


@given(n=SIZES, factor=st.floats(0.2, 4))
def test_a_spacing_matrix_blurs_as_scipy_does_and_interpolates_as_numpy_does(n: int, factor: float) -> None:
    line = np.random.default_rng(n).random(n)
    blurred = gaussian_filter1d(line, 0.25 / factor, mode="reflect") if factor <= 1 else line
    places = (np.arange(resampled_count(n, factor)) + 0.5) / factor - 0.5
    np.testing.assert_allclose(spacing_matrix(n, factor) @ line, np.interp(places, np.arange(n), blurred), atol=1e-12)


@given(
    shape=st.tuples(SIZES, st.integers(1, 9), SIZES),
    counts=st.tuples(SIZES, st.integers(1, 40), SIZES),
    axes=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    dtype=st.sampled_from([np.float32, np.float64, np.int16]),
)
def test_matrices_are_applied_along_the_axes_of_any_view(shape, counts, axes, flips, dtype) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(sum(shape))
    data = view((100 * rng.random(shape)).astype(dtype), axes, flips)
    before = data.copy()
    matrices = [
        rng.random((count, n)) * (rng.random((count, n)) < 0.3) for count, n in zip(counts, data.shape, strict=True)
    ]
    result = apply_along_axes(data, matrices)
    expected = np.einsum("xyz,ax,by,cz->abc", data.astype(np.float64), *matrices, optimize=True)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max()))
    np.testing.assert_array_equal(data, before)


@given(shape=st.tuples(*[st.integers(1, 6)] * 3), axes=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3))
def test_memory_order_undoes_flips_and_permutations_without_a_copy(shape, axes, flips) -> None:  # type: ignore[no-untyped-def]
    data = np.arange(np.prod(shape)).reshape(shape)
    block, _ = in_memory_order(view(data, axes, flips))
    assert np.shares_memory(block, data)
    assert np.array_equal(block.ravel(), data.ravel())


@given(
    data=st.sampled_from(["normal", "air", "two values", "sorted", "constant"]),
    size=st.integers(1, 3000),
    percentiles=st.lists(st.one_of(st.floats(0, 100), st.sampled_from([0.0, 1.0, 50.0, 99.0, 100.0])), min_size=1),
)
def test_percentiles_are_those_of_numpy(data: str, size: int, percentiles: list[float]) -> None:
    rng = np.random.default_rng(size)
    values = {
        "normal": rng.normal(100, 30, size),
        "air": np.maximum(rng.normal(0, 30, size), 0),
        "two values": rng.integers(0, 2, size),
        "sorted": np.arange(size),
        "constant": np.full(size, 7.0),
    }[data].astype(np.float32)
    expected = np.percentile(values.astype(np.float64), percentiles)
    np.testing.assert_allclose(percentiles_of(values, percentiles), expected, rtol=1e-6, atol=1e-6)


def test_percentiles_of_large_arrays_are_exact_also_where_a_sample_misleads() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(60, 70, 80)).astype(np.float32)
    striped = np.zeros(2**18, np.float32)
    striped[::8] = 1000 + np.arange(2**15)  # every eighth voxel is all that a sample of 2 ** 15 sees
    for values in (honest, honest.transpose(2, 0, 1)[::-1], striped, np.round(honest)):
        expected = np.percentile(values.astype(np.float64), (0.5, 1, 99, 99.5))
        np.testing.assert_allclose(percentiles_of(values, (0.5, 1, 99, 99.5)), expected, rtol=1e-6)


def test_a_voxel_that_is_not_a_number_leaves_no_percentile_and_no_contrast() -> None:
    data = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    data[1, 2, 3] = np.nan
    assert np.isnan(percentiles_of(data, (1, 99))).all()
    with pytest.raises(VolumeError, match="scan: found no contrast"):
        rescale(data, subject="scan")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_rescaling_maps_as_the_formula_says_and_leaves_the_scan_alone(dtype: type) -> None:
    data = np.random.default_rng(0).normal(500, 200, (20, 21, 22)).astype(dtype)[::-1]
    before = data.copy()
    low, high = np.percentile(data.astype(np.float64), (1, 99))
    scaled = rescale(data, subject="scan")
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, np.clip((data - low) / (high - low), 0, 1), atol=1e-5)
    np.testing.assert_array_equal(data, before)
