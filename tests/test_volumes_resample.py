"""Resampling against SciPy, closed forms and the reference's vectors (6.3 step 2, 11.3)."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from synthseg.errors import ShapeError
from synthseg.volumes import Volume, resample_to_spacing, reslice, to_ras
from synthseg.volumes.resample import blur_for_spacing


def ramp(count: int, spacing: float) -> Volume:
    data = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None], (count, 6, 5))
    return Volume(np.array(data), np.diag([spacing, 1, 1, 1.0]))


def turned(degrees: float, spacing: tuple[float, float, float], origin: tuple[float, float, float]) -> np.ndarray:
    matrix = Rotation.from_euler("xyz", [degrees, -degrees / 2, degrees / 3], degrees=True).as_matrix()
    return nib.affines.from_matvec(matrix @ np.diag(spacing), origin)


def test_a_2_mm_ramp_becomes_the_reference_vector() -> None:
    fine = resample_to_spacing(ramp(6, 2.0), 1.0, order=1)
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.25, 4.75, 5]
    np.testing.assert_allclose(fine.data[:, 3, 2], expected, atol=1e-5)
    np.testing.assert_allclose(fine.affine[:3, 3], [-0.5, 0, 0])


def test_a_0_7_mm_ramp_becomes_the_reference_vector() -> None:
    coarse = resample_to_spacing(ramp(10, 0.7), 1.0, order=1)
    expected = [0.22928, 1.64286, 3.07143, 4.5, 5.92857, 7.35714, 8.77072]
    np.testing.assert_allclose(coarse.data[:, 3, 2], expected, atol=1e-5)
    np.testing.assert_allclose(coarse.affine[:3, 3], [0.15, 0, 0], atol=1e-12)


def test_an_axis_that_keeps_its_size_gets_the_reference_kernel() -> None:
    data = np.zeros((9, 9, 9), np.float32)
    data[4, 4, 4] = 1
    fine = resample_to_spacing(Volume(data, np.diag([2.0, 1, 1, 1])), 1.0, order=1).data
    along = fine[:, :, :].sum(axis=(0, 2))
    np.testing.assert_allclose(along[3:6] / along.sum(), [3.352e-4, 0.99933, 3.352e-4], rtol=1e-3)


@given(spacing=st.tuples(*[st.floats(0.4, 3)] * 3), target=st.sampled_from([1.0, 2.0]))
def test_the_blur_before_resampling_is_that_of_scipy_on_axes_that_become_coarser(spacing, target) -> None:
    data = np.random.default_rng(0).random((9, 8, 7))
    blurred = blur_for_spacing(Volume(data, np.diag([*spacing, 1.0])), target)
    sigma = [0.25 * target / old if old <= target else 0 for old in spacing]
    np.testing.assert_allclose(blurred.data, gaussian_filter(data, sigma), rtol=1e-5)
    assert blurred.data.dtype == np.float32
    np.testing.assert_array_equal(blurred.affine, np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(("spacing", "count", "expected"), [(0.7, 181, 127), (0.7, 10, 7), (2, 91, 182), (1.1, 10, 11)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_there_is_never_an_extra_sample(spacing: float, count: int, expected: int, dtype: type) -> None:
    # float32 voxel sizes, as headers hold them, are a little off: the original had 128 for 181 voxels of 0.7 mm
    assert resample_to_spacing(ramp(count, float(dtype(spacing))), 1.0, order=1).data.shape[0] == expected


@given(
    shape=st.tuples(*[st.integers(4, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 3)] * 3),
    target=st.sampled_from([1.0, 2.0, 1.5]),
)
def test_resampling_agrees_with_scipy(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], target: float
) -> None:
    data = np.random.default_rng(sum(shape)).random(shape).astype(np.float32)
    volume = Volume(data, turned(20, spacing, (3, 4, 5)))
    result = resample_to_spacing(volume, target, order=1)
    factor = np.array(spacing) / target
    sigma = np.where(factor > 1, 0, 0.25 / factor)
    blurred = gaussian_filter(data.astype(np.float64), sigma)
    # the result's voxel centres, taken through both affines into the original grid
    index = np.stack(np.meshgrid(*[np.arange(n) for n in result.data.shape], indexing="ij"))
    places = nib.affines.apply_affine(np.linalg.inv(volume.affine) @ result.affine, np.moveaxis(index, 0, -1))
    expected = map_coordinates(blurred, np.moveaxis(places, -1, 0), order=1, mode="nearest")
    if np.abs(factor - 1).max() >= 1e-6:
        np.testing.assert_allclose(result.data, expected, atol=2e-5)
    np.testing.assert_allclose(result.spacing_mm, spacing if result is volume else target)
    # edges: the first corner is shared, and the last is covered
    corner = np.array([-0.5, -0.5, -0.5, 1])
    np.testing.assert_allclose(result.affine @ corner, volume.affine @ corner, atol=1e-9)
    assert (np.array(result.data.shape) * result.spacing_mm >= np.array(shape) * spacing - 1e-3).all()


def test_label_maps_keep_their_values_and_type() -> None:
    labels = np.random.default_rng(0).choice([0, 2, 41, 2035], size=(7, 8, 9)).astype(np.int32)
    fine = resample_to_spacing(Volume(labels, np.diag([2.0, 2, 2, 1])), 1.0, order=0)
    assert fine.data.dtype == np.int32
    assert np.array_equal(fine.data, labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    again = resample_to_spacing(fine, 2.0, order=0)
    assert np.array_equal(again.data, labels)
    np.testing.assert_allclose(again.affine, np.diag([2.0, 2, 2, 1]), atol=1e-12)


def test_a_volume_of_the_right_spacing_comes_back_as_it_is() -> None:
    volume = ramp(6, 1.0)
    assert resample_to_spacing(volume, 1.0, order=1) is volume
    assert resample_to_spacing(ramp(6, 2.0), (2.0, 1.0, 1.0), order=1).data.shape == (6, 6, 5)


@pytest.mark.parametrize("degrees", [0, 17])
def test_reslicing_agrees_with_nibabel(degrees: float) -> None:
    data = np.random.default_rng(0).random((11, 12, 13)).astype(np.float32)
    affine = np.diag([-2.0, 2, 2.5, 1])
    affine[:3, 3] = [12, -10, -14]
    to_shape, to_affine = (14, 15, 12), turned(degrees, (1.3, 1.1, 1.7), (-8, -7, -9))
    result = reslice(data, affine, to_shape, to_affine, order=1)
    expected = resample_from_to(nib.Nifti1Image(data, affine), (to_shape, to_affine), order=1, cval=-9).get_fdata()
    inside = expected != -9  # nibabel cuts off at the outermost voxel centres, we half a voxel later
    assert inside.mean() > 0.3
    np.testing.assert_allclose(result[inside], expected[inside], atol=1e-5)


@given(
    axes=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    spacing=st.tuples(*[st.sampled_from([0.6, 1.0, 2.0])] * 3),
    order=st.sampled_from([0, 1]),
)
def test_the_fast_way_equals_the_general_way(
    axes: list[int], flips: tuple[bool, ...], spacing: tuple[float, float, float], order: int
) -> None:
    import synthseg.volumes.resample as resample

    rng = np.random.default_rng(1)
    data = rng.integers(0, 60, (2, 5, 6, 7)).astype(np.int16 if order == 0 else np.float32)
    move = np.eye(4)
    move[:3, :3] = np.diag(np.where(flips, -1.0, 1.0) * spacing)[:, axes]
    move[:3, 3] = np.where(flips, 4.3, -0.8)
    frame = turned(25, (1.0, 1.5, 0.8), (3, 2, 1))
    result = reslice(data, frame, (9, 8, 7), frame @ move, order=order, outside=-3)
    general = resample._reslice_oblique(data, move, (9, 8, 7), order=order, outside=-3)
    assert result.dtype == data.dtype
    np.testing.assert_allclose(result, general, atol=1e-4)


def test_there_and_back_is_exact_for_labels_on_the_scans_own_grid() -> None:
    # what a segmentation at 1 mm goes through on its way to a thick-sliced, oblique LPS scan
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 50, (12, 10, 5)).astype(np.int32)
    scan = Volume(labels, turned(12, (-1.0, -2.0, 5.0), (30, 20, -10)))
    ras, _ = to_ras(scan)
    fine = resample_to_spacing(ras, 1.0, order=0)
    back = reslice(fine.data, fine.affine, scan.data.shape, scan.affine, order=0, outside=-1)
    assert np.array_equal(back, labels)


def test_posteriors_still_sum_to_one_everywhere_in_the_scan() -> None:
    posteriors = np.random.default_rng(3).dirichlet(np.ones(5), size=(9, 10, 11)).astype(np.float32)
    scan = Volume(np.zeros((14, 13, 12), np.float32), np.diag([0.7, 0.8, 0.9, 1]))
    fine = resample_to_spacing(scan, 1.0, order=1)
    assert fine.data.shape == (10, 11, 11)
    channels = np.moveaxis(np.pad(posteriors, [(0, 1), (0, 1), (0, 0), (0, 0)], mode="edge"), -1, 0)
    native = reslice(channels, fine.affine, scan.data.shape, scan.affine, order=1)
    assert native.shape == (5, 14, 13, 12)
    np.testing.assert_allclose(native.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("degrees", [0, 10])
@pytest.mark.parametrize("order", [0, 1])
def test_outside_begins_half_a_voxel_beyond_the_border(degrees: float, order: int) -> None:
    frame = turned(degrees, (1, 1, 1), (0, 0, 0))
    line = np.eye(4)
    line[0, 0] = 0.25
    line[:3, 3] = [-1, 2, 2]
    if degrees:
        line[1, 0] = 1e-3  # just enough to take the general way
    result = reslice(np.ones((4, 5, 5), np.float32), frame, (21, 1, 1), frame @ line, order=order, outside=7)
    expected = [7 if not -0.5 <= -1 + 0.25 * i <= 3.5 else 1 for i in range(21)]
    np.testing.assert_allclose(result[:, 0, 0], expected, atol=1e-5)


def test_views_with_negative_strides_are_taken() -> None:
    data = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)[::-1, :, ::-1]
    moved = np.eye(4)
    moved[0, 3] = 1
    np.testing.assert_allclose(reslice(data, np.eye(4), (5, 7, 8), moved, order=1), data[1:], atol=1e-6)


def test_misuse_is_named() -> None:
    with pytest.raises(ShapeError, match="order: found 3"):
        resample_to_spacing(ramp(6, 2.0), 1.0, order=3)
    with pytest.raises(ShapeError, match=r"spacing_mm: found 0\.0"):
        resample_to_spacing(ramp(6, 2.0), 0.0, order=1)
    with pytest.raises(ShapeError, match=r"reslice: found data of shape \(4, 4\)"):
        reslice(np.zeros((4, 4)), np.eye(4), (4, 4, 4), np.eye(4), order=1)


def test_a_real_head_survives_the_way_to_1_mm_and_back(shared) -> None:  # type: ignore[no-untyped-def]
    from synthseg.volumes import read_volume

    scan = read_volume(shared / "data" / "validation" / "oddities" / "colin27_2mm_t1_head.nii.gz")
    fine = resample_to_spacing(to_ras(scan)[0], 1.0, order=1)
    assert fine.data.shape == (182, 218, 182)
    back = reslice(fine.data, fine.affine, scan.data.shape, scan.affine, order=1, outside=-1)
    assert back.min() >= 0
    assert np.corrcoef(back.ravel(), scan.data.ravel())[0, 1] > 0.99
