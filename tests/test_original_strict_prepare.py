"""The original's reading and preparation of a scan, against the vectors of the reference and scipy."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import gaussian_filter

from synthseg.errors import UsageError, VolumeError
from synthseg.inference.original.prepare import (
    crop_sizes,
    crop_window,
    into_ras,
    needs_resampling,
    padded_window,
    positions,
    prepare_as_original,
    ras_orientation,
    resample,
    rescaled,
)
from synthseg.inference.original.scan import Scan, read_scan
from synthseg.volumes import Volume, from_ras
from volume_files import save, set_pixdim


def diagonal(*sizes: float) -> np.ndarray:
    return np.diag([*sizes, 1.0])


def scan_of(data: np.ndarray, affine: np.ndarray, *sizes: float) -> Scan:
    return Scan(np.asarray(data, np.float64), affine, np.array(sizes, np.float32))


def ramp(size: int, others: int = 4) -> np.ndarray:
    return np.broadcast_to(np.arange(size, dtype=np.float64)[:, None, None], (size, others, others)).copy()


def test_a_ramp_at_2_mm_becomes_12_samples_and_the_origin_moves_half_a_millimetre() -> None:
    data, affine = resample(ramp(6), diagonal(2, 1, 1))
    assert data.shape == (12, 4, 4)
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.25, 4.75, 5]
    np.testing.assert_allclose(data[:, 1, 2], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(affine, [[1, 0, 0, -0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-12)


def test_a_ramp_at_0_7_mm_is_blurred_and_becomes_7_samples() -> None:
    data, affine = resample(ramp(10), diagonal(0.7, 1, 1))
    expected = [0.22928, 1.64286, 3.07143, 4.5, 5.92857, 7.35714, 8.77072]
    np.testing.assert_allclose(data[:, 0, 0], expected, atol=5e-6)
    assert affine[0, 3] == pytest.approx(0.15)


def test_rounding_makes_one_sample_more_of_181_voxels_of_0_7_mm() -> None:
    assert len(positions(181, 0.7)) == 128  # 126.7 voxels: 127 would hold them
    assert positions(181, 0.7)[-1] == 180  # held inside the grid
    assert len(positions(181, float(np.float32(0.7)))) == 127  # as most NIfTI headers have it
    assert resample(np.zeros((181, 4, 4)), diagonal(0.7, 0.7, 0.7))[0].shape[0] == 128


def test_axes_of_exactly_1_mm_are_blurred_where_another_axis_is_resampled() -> None:
    data = np.zeros((6, 9, 9))
    data[:, 4, 4] = 1
    weights = np.array([3.352e-4, 0.99933, 3.352e-4])
    moved, _ = resample(data, diagonal(2, 1, 1))
    np.testing.assert_allclose(moved[5, 3:6, 3:6], np.outer(weights, weights), rtol=5e-4)


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(*[st.integers(4, 9)] * 3),
    st.tuples(*[st.floats(0.4, 2.5)] * 3),
    st.integers(0, 2**31),
)
def test_resampling_is_scipys_blur_and_trilinear_interpolation(
    shape: tuple[int, ...], sizes: tuple[float, ...], seed: int
) -> None:
    data = np.random.default_rng(seed).normal(100, 30, shape)
    factor = np.sqrt(np.square(sizes))
    blurred = gaussian_filter(data, np.where(factor > 1, 0, 0.25 / factor))
    axes = [positions(n, f) for n, f in zip(shape, factor, strict=True)]
    expected = RegularGridInterpolator([np.arange(n) for n in shape], blurred)(
        tuple(np.meshgrid(*axes, indexing="ij", sparse=True))
    )
    np.testing.assert_allclose(resample(data, diagonal(*sizes))[0], expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "wanted"), [(1.04, False), (0.96, False), (1.06, True), (0.94, True), (1.05, False), (0.95, True)]
)
def test_a_size_beyond_5_percent_of_a_millimetre_is_resampled(size: float, wanted: bool) -> None:
    # 1.05 and 0.95 in single precision, as headers have them, are both a little less.
    assert needs_resampling(np.array([1, size, 1], np.float32)) is wanted


def test_the_header_decides_whether_and_the_affine_how() -> None:
    data = np.random.default_rng(0).normal(size=(20, 20, 20))
    kept = prepare_as_original(scan_of(data, diagonal(2, 2, 2), 1.0, 1.0, 1.02), keep_resampled=True)
    assert kept.resampled is None
    assert kept.shape == (20, 20, 20)
    assert kept.voxel_mm3.dtype == np.float32
    assert kept.voxel_mm3 == np.float32(1.02)
    moved = prepare_as_original(scan_of(data, diagonal(1, 1, 1), 2.0, 1.0, 1.0), keep_resampled=True)
    assert moved.resampled is not None
    assert moved.shape == (20, 20, 20)  # resampled from 1 mm to 1 mm: blurred, no more
    np.testing.assert_allclose(moved.resampled, gaussian_filter(data, 0.25), atol=1e-12)
    assert moved.voxel_mm3 == 1


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_any_order_and_direction_of_the_axes_becomes_ras_and_comes_back(axes: tuple[int, int, int]) -> None:
    data = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    for signs in product((1, -1), repeat=3):
        # axis axes[w] runs along world axis w
        linear = np.zeros((3, 3))
        for world, axis in enumerate(axes):
            linear[world, axis] = signs[world] * (1 + 0.3 * world)
        linear += 0.05 * np.random.default_rng(1).normal(size=(3, 3))  # a little oblique
        affine = np.eye(4)
        affine[:3, :3] = linear
        orientation = ras_orientation(affine)
        assert orientation.axes == axes
        assert orientation.flips == tuple(sign < 0 for sign in signs)
        assert orientation.code == "".join(nib.aff2axcodes(affine))
        aligned = into_ras(data, orientation)
        flipped = np.transpose(data, axes)[tuple(slice(None, None, sign) for sign in signs)]
        np.testing.assert_array_equal(aligned, flipped)
        np.testing.assert_array_equal(from_ras(aligned, orientation), data)


def test_an_axis_that_two_directions_want_goes_to_the_first_and_the_missing_one_to_the_last() -> None:
    # Entries of the inverse affine, voxel axes down, world axes across: axis 0 is the largest for right and for up.
    inverse = np.array([[0.9, 0.1, 0.8], [0.2, 0.9, 0.3], [0.5, 0.2, 0.6]])
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.inv(inverse)
    assert ras_orientation(affine).axes == (0, 1, 2)
    # For right and front: the last of them is given the axis that is left over.
    affine[:3, :3] = np.linalg.inv(np.array([[0.9, 0.8, 0.1], [0.3, 0.7, 0.2], [0.1, 0.2, 0.9]]))
    assert ras_orientation(affine).axes == (0, 1, 2)
    # For all three: the last gets axis 1, then the last of the two that still share axis 0 gets axis 2.
    affine[:3, :3] = np.linalg.inv(np.array([[0.9, 0.8, 0.8], [0.3, -0.7, 0.2], [0.1, 0.2, -0.6]]))
    assert ras_orientation(affine).axes == (0, 2, 1)


def test_crop_and_padding_go_where_the_original_puts_them() -> None:
    crop = crop_window((181, 217, 181), (160, 192, 160))
    assert crop.start == (10, 12, 10)
    assert np.add(crop.start, crop.shape).tolist() == [170, 204, 170]
    padded = padded_window((181, 217, 181), (128, 128, 128))
    assert padded.shape == (192, 224, 192)
    assert tuple(-begin for begin in padded.start) == (5, 3, 5)
    assert padded_window((100, 129, 160), (128, 128, 128)).shape == (128, 160, 160)
    assert padded_window((100, 60, 20), (64, 64, 64)).shape == (128, 64, 64)  # with a crop, no less than it
    assert crop_window((40, 200, 90), (64, 64, 64)).shape == (40, 64, 64)


def test_crop_sizes_are_rounded_up_and_nonsense_is_refused() -> None:
    assert crop_sizes(None) is None
    assert crop_sizes(100) == (128, 128, 128)
    assert crop_sizes([192]) == (192, 192, 192)
    assert crop_sizes([1, 33, 64]) == (32, 64, 64)
    for wrong in ([10, 20], [], 0, [32, -1, 32]):
        with pytest.raises(UsageError, match="crop"):
            crop_sizes(wrong)


def test_intensities_are_those_between_the_percentiles_of_the_cropped_patch() -> None:
    data = np.random.default_rng(0).normal(50, 40, (30, 31, 32))
    image, notes = rescaled(data, ct=False)
    low, high = np.percentile(data, [0.5, 99.5])
    np.testing.assert_array_equal(image, ((np.clip(data, low, high) - low) / (high - low)).astype(np.float32))
    assert image.dtype == np.float32
    assert notes == []
    hounsfield, _ = rescaled(data, ct=True)
    clipped = np.clip(data, 0, 80)
    np.testing.assert_array_equal(hounsfield, (clipped / 80).astype(np.float32))  # both percentiles are the limits
    flat = np.zeros((30, 30, 30))
    flat[3, 3, 3] = 9
    image, notes = rescaled(flat, ct=False)
    assert not image.any()
    assert "No contrast" in notes[0]
    patch = prepare_as_original(scan_of(data, np.eye(4), 1, 1, 1), crop=(32, 32, 32))
    np.testing.assert_array_equal(patch.image.numpy()[0, 0][patch.inside], rescaled(data, ct=False)[0])
    assert patch.image.shape == (1, 1, 32, 32, 32)


def test_values_that_single_precision_rounds_are_read_in_double(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 4000, (12, 13, 14))
    whole = save(tmp_path / "short.nii.gz", stored.astype(np.int16), np.eye(4))
    np.testing.assert_array_equal(read_scan(whole).data, stored)
    exact = stored * (1 / 3) + 1e9
    for name, data in (("double.nii.gz", exact), ("double.npz", exact)):
        path = tmp_path / name
        if name.endswith("npz"):
            np.savez(path, vol_data=data)
        else:
            save(path, data, np.eye(4))
        read = read_scan(path)
        assert read.data.dtype == np.float64
        np.testing.assert_array_equal(read.data, data)
    scaled = nib.Nifti1Image(stored.astype(np.int16), np.eye(4))
    scaled.header.set_slope_inter(0.1, 3)
    scaled.to_filename(tmp_path / "scaled.nii")
    np.testing.assert_array_equal(
        read_scan(tmp_path / "scaled.nii").data, nib.load(tmp_path / "scaled.nii").get_fdata()
    )
    holed = exact.copy()
    holed[0, 0, 0] = np.nan
    read = read_scan(save(tmp_path / "holed.nii", holed, np.eye(4)))
    assert read.data[0, 0, 0] == 0
    assert "NaN" in read.notes[0]


def test_voxel_sizes_are_the_headers_and_disagreement_is_noted(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 900, (12, 13, 14)).astype(np.int16)
    path = save(tmp_path / "odd.nii", data, diagonal(1.2, 1.2, 1.2))
    set_pixdim(path, 1.0, 1.2, 0.9)
    read = read_scan(path)
    np.testing.assert_array_equal(read.sizes_mm, np.array([1, 1.2, 0.9], np.float32))
    np.testing.assert_allclose(np.diag(read.affine)[:3], 1.2, rtol=1e-6)
    assert "the affine's (1.2 x 1.2 x 1.2 mm)" in read.notes[-1]
    same = read_scan(save(tmp_path / "same.nii", data, diagonal(1.2, 1.2, 1.2)))
    assert same.sizes_mm.dtype == np.float32
    assert same.notes == ()
    nib.MGHImage(data, diagonal(1.2, 0.8, 1)).to_filename(tmp_path / "head.mgz")
    np.testing.assert_array_equal(read_scan(tmp_path / "head.mgz").sizes_mm, np.array([1.2, 0.8, 1], np.float32))


def test_the_first_of_a_few_channels_is_taken_and_many_frames_are_refused(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 900, (12, 13, 14, 3)).astype(np.int16)
    paths = [save(tmp_path / "colours.nii.gz", data), tmp_path / "colours.mgz", tmp_path / "colours.npz"]
    nib.MGHImage(data, np.eye(4)).to_filename(paths[1])
    np.savez(paths[2], vol_data=data)
    paths.append(save(tmp_path / "vectors.nii", data[..., None, :]))
    for path in paths:
        read = read_scan(path)
        np.testing.assert_array_equal(read.data, data[..., 0])
        assert any("first of its 3 channels" in note for note in read.notes)
    with pytest.raises(VolumeError, match="4D"):
        read_scan(save(tmp_path / "frames.nii.gz", np.repeat(data, 4, axis=3)))
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(paths[0].read_bytes()[:2000])
    with pytest.raises(VolumeError, match="damaged"):
        read_scan(damaged)
    flat = save(tmp_path / "flat.nii.gz", np.zeros_like(data))
    with pytest.raises(VolumeError, match="constant"):
        read_scan(flat)


def test_the_affine_of_an_npz_file_is_not_used(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(12, 13, 14))
    np.savez(tmp_path / "scan.npz", vol_data=data, affine=diagonal(2, 2, 2))
    read = read_scan(tmp_path / "scan.npz")
    np.testing.assert_array_equal(read.affine, np.eye(4))
    np.testing.assert_array_equal(read.sizes_mm, np.ones(3, np.float32))
    assert "was not used" in read.notes[-1]


def test_scans_from_memory_go_by_their_affine_and_are_checked() -> None:
    data = np.random.default_rng(0).normal(size=(12, 13, 14)).astype(np.float32)
    np.testing.assert_array_equal(
        read_scan(Volume(data, diagonal(1, 2, 1.5))).sizes_mm, np.array([1, 2, 1.5], np.float32)
    )
    with pytest.raises(VolumeError, match="constant"):
        read_scan(Volume(np.zeros((12, 13, 14), np.float32), np.eye(4)))


def test_a_thin_slab_is_segmented_with_a_note() -> None:
    data = np.random.default_rng(0).normal(size=(20, 20, 8))
    notes = prepare_as_original(scan_of(data, np.eye(4), 1, 1, 1)).notes
    assert "original fails" in notes[0]
    assert not prepare_as_original(scan_of(data.transpose(2, 0, 1), np.eye(4), 1, 1, 1)).notes
