"""Degraded scans against closed forms: slice profiles, intensity curves, turns of points whose place is known."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from synthseg.errors import UsageError, VolumeError
from synthseg.volumes import Volume, reslice
from synthseg.volumes.degrade import (
    CHANGES,
    DARKEST,
    SIGMA_PER_THICKNESS,
    degrade,
    draw_curve,
    generator_of,
    half_voxel_shift,
    move,
    recontrast,
    rotation,
    strip,
    thick_slices,
)

LIA = np.array([[-1.0, 0, 0, 40], [0, 0, 1, -20], [0, -1, 0, 30], [0, 0, 0, 1]])  # stored left, down, front
RAS = np.diag([1.0, 1.0, 1.0, 1.0])
ARRAY_AXIS = {"sagittal": 0, "coronal": 2, "axial": 1}  # of the LIA scan


def volume(data: np.ndarray, affine: np.ndarray = RAS) -> Volume:
    return Volume(np.asarray(data, dtype=np.float32), affine, Path("scan.nii.gz"))


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32) + 0.1


@pytest.mark.parametrize("spacing", [3, 5, 7])
@pytest.mark.parametrize("direction", ["sagittal", "coronal", "axial"])
def test_slices_are_thick_along_their_own_axis_and_blurred_samples_of_the_scan(direction: str, spacing: int):
    scan = volume(noise((42, 35, 21)), LIA)
    thick = thick_slices(scan, direction, spacing)
    axis = ARRAY_AXIS[direction]
    expected_spacing = np.ones(3)
    expected_spacing[axis] = spacing
    assert thick.spacing_mm == pytest.approx(expected_spacing)
    blurred = gaussian_filter1d(scan.data, math.log(10) / math.pi * spacing, axis=axis, mode="nearest", truncate=5)
    count = round(scan.shape[axis] / spacing)  # the last slice may reach half its thickness beyond the scan
    expected = blurred.take(np.arange(count) * spacing + spacing // 2, axis=axis)
    np.testing.assert_allclose(thick.data, expected, atol=1e-6)


def test_slices_stay_where_they_were_in_the_world():
    ramp = volume(np.arange(45.0)[None, :, None] * np.ones((4, 1, 4)), LIA)
    thick = thick_slices(ramp, "axial", 5)
    back = reslice(thick.data, thick.affine, ramp.shape, ramp.affine, order=1)
    # Blur keeps a ramp; what is interpolated between slice centres, away from the ends, is the ramp again.
    np.testing.assert_allclose(back[:, 20:25], ramp.data[:, 20:25], atol=1e-3)


@given(n=st.integers(8, 40), spacing=st.floats(1.1, 9))
def test_the_field_of_view_is_kept_to_half_a_slice(n: int, spacing: float):
    thick = thick_slices(volume(np.ones((3, 3, n))), "axial", spacing)
    assert abs(thick.shape[2] * spacing - n) <= spacing / 2 + 1e-6 or thick.shape[2] == 1
    assert thick.data == pytest.approx(1)  # a constant stays constant: nothing comes in from outside
    assert pytest.approx(0.7329, abs=1e-4) == SIGMA_PER_THICKNESS


def test_slices_cannot_be_thinned():
    thick = volume(np.ones((4, 4, 4)), np.diag([1.0, 1, 6.5, 1]))
    with pytest.raises(
        VolumeError, match=r"scan.nii.gz: found slices 6.5 mm apart. Fix: degrade it to more .* not to 5 mm"
    ):
        thick_slices(thick, "axial", 5)


def test_inversion_swaps_dark_and_bright_and_leaves_the_background():
    data = np.zeros((10, 10, 10))
    data[2:8, 2:8, 2:8] = np.linspace(100, 200, 216).reshape(6, 6, 6)
    inverted, _ = degrade(volume(data), None, "inverted", name="a")
    inside = data > 0
    assert (inverted.data[~inside] == 0).all()
    assert inverted.data[inside].min() > 0
    low, high = np.percentile(data[inside], (1, 99))
    assert inverted.data[inside] == pytest.approx(low + high - np.clip(data[inside], low, high), rel=1e-5)


def test_no_tissue_becomes_as_dark_as_the_background():
    data = np.zeros((10, 10, 10))
    data[2:8, 2:8, 2:8] = np.linspace(0.01, 200, 216).reshape(6, 6, 6)
    inverted = recontrast(volume(data), lambda level: 1 - level)
    high = np.percentile(data[data > 0], 99)
    assert inverted.data[data > 0].min() == pytest.approx(DARKEST * high, rel=1e-4)
    assert inverted.data.max() == pytest.approx(high, rel=1e-4)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), monotone=st.booleans())
def test_curves_cover_the_range_smoothly_and_monotone_ones_keep_the_order(seed: int, monotone: bool):
    curve = draw_curve(monotone=monotone, rng=generator_of(str(seed)))
    level = np.linspace(0, 1, 2001)
    values = curve(level)
    assert values.min() >= 0
    assert values.max() <= 1
    assert np.ptp(values) == pytest.approx(1, abs=0.01)
    steps = np.diff(values)
    assert np.abs(steps).max() < 0.02  # 2000 steps over 5 intervals: at most 3 x 1 / 400 each by PCHIP
    if monotone:
        assert (steps >= 0).all()
        assert (values[0], values[-1]) == pytest.approx((0, 1))


def test_smooth_curves_do_change_the_order_of_intensities():
    curves = [draw_curve(monotone=False, rng=generator_of(str(n))) for n in range(8)]
    turning = [bool((np.diff(curve(np.linspace(0, 1, 200))) < 0).any()) for curve in curves]
    assert all(turning)


def test_curves_belong_to_change_and_subject():
    scan = volume(noise((6, 6, 6)))
    keys = list(itertools.product(("monotone-1", "smooth-1", "smooth-2"), ("a", "b")))
    made = {key: degrade(scan, None, key[0], name=key[1])[0].data for key in keys}
    for one, other in itertools.combinations(keys, 2):
        assert not np.allclose(made[one], made[other])
    for change, name in keys:
        np.testing.assert_array_equal(degrade(scan, None, change, name=name)[0].data, made[change, name])


def test_a_flat_scan_has_no_contrast_to_change():
    with pytest.raises(VolumeError, match=r"scan.nii.gz: found one intensity only"):
        recontrast(volume(np.full((4, 4, 4), 7)), lambda level: level)
    with pytest.raises(VolumeError, match=r"scan.nii.gz: found one intensity only"):
        recontrast(volume(np.zeros((4, 4, 4))), lambda level: level)


def test_stripping_keeps_what_is_near_a_label_and_inside_it():
    labels = np.zeros((21, 21, 21), dtype=np.int32)
    labels[6:15, 6:15, 6:15] = 2
    labels[9:12, 9:12, 9:12] = 0  # a hole in the truth, such as unlabelled CSF
    scan = volume(noise(labels.shape), np.diag([2.0, 2, 2, 1]))
    stripped = strip(scan, Volume(labels, scan.affine), margin_mm=4)
    assert (stripped.data[9:12, 9:12, 9:12] == scan.data[9:12, 9:12, 9:12]).all()
    assert stripped.data[4, 10, 10] == scan.data[4, 10, 10]  # 4 mm from the label
    assert stripped.data[3, 10, 10] == 0
    assert stripped.data[4, 4, 10] == 0  # 5.7 mm over the corner


def test_stripping_goes_by_world_position():
    labels = np.zeros((9, 9, 9), dtype=np.int32)
    labels[1, 4, 4] = 3
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 8
    stripped = strip(volume(noise(labels.shape)), Volume(labels, flip), margin_mm=0)
    assert np.argwhere(stripped.data).tolist() == [[7, 4, 4]]


def test_stripping_needs_a_truth_that_lies_in_the_scan():
    scan = volume(noise((5, 5, 5)))
    with pytest.raises(VolumeError, match=r"found no label map to strip it with"):
        degrade(scan, None, "stripped", name="a")
    with pytest.raises(VolumeError, match=r"found no label inside scan.nii.gz"):
        strip(scan, Volume(np.zeros((5, 5, 5), np.int32), RAS))


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@given(degrees=st.floats(-20, 20))
def test_turns_are_right_handed_about_the_centre_of_the_field_of_view(axis: str, degrees: float):
    scan = volume(np.zeros((9, 13, 7)), LIA)
    motion = rotation(scan, axis, degrees)
    np.testing.assert_allclose(motion[:3, :3], Rotation.from_euler(axis, degrees, degrees=True).as_matrix(), atol=1e-12)
    centre = (LIA @ [4, 6, 3, 1])[:3]
    np.testing.assert_allclose(motion[:3, :3] @ centre + motion[:3, 3], centre, atol=1e-9)


def test_a_quarter_turn_moves_voxels_where_geometry_says():
    data = np.zeros((9, 9, 9))
    data[7, 4, 4] = 1  # right of the centre
    turned = move(volume(data), rotation(volume(data), "z", 90))
    assert np.unravel_index(turned.data.argmax(), data.shape) == (4, 7, 4)  # now in front of it
    assert turned.data.max() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("change", ["rotated-x-3", "rotated-y-3", "rotated-z-3", "shifted"])
def test_the_truth_moves_with_the_scan(change: str):
    # Centres of mass in the world: linear interpolation keeps them, and they are nowhere near the centre of the scan.
    x, y, z = np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij")
    blob = np.exp(-((x - 28) ** 2 + (y - 12) ** 2 + (z - 24) ** 2) / 60)
    blob[blob < 0.1] = 0
    truth = Volume((blob > 0).astype(np.int32), LIA)
    scan, moved = degrade(volume(blob, LIA), truth, change, name="a")
    assert moved is not None
    assert moved.data is truth.data
    before, after = centre_of(truth.data, LIA), centre_of(scan.data, scan.affine)
    np.testing.assert_allclose(centre_of(moved.data, moved.affine), after, atol=0.02)
    assert np.linalg.norm(after - before) > 0.3


def centre_of(weights: np.ndarray, affine: np.ndarray) -> np.ndarray:
    voxels = np.argwhere(weights > -1)
    return (np.average(voxels, axis=0, weights=weights.ravel()) @ affine[:3, :3].T) + affine[:3, 3]


def test_the_shift_is_half_a_voxel_along_every_axis():
    ramp = np.arange(6.0)[:, None, None] + 10 * np.arange(6.0)[:, None] + 100 * np.arange(6.0)
    scan = volume(ramp, np.diag([2.0, 1, 3, 1]))
    shifted = move(scan, half_voxel_shift(scan))
    np.testing.assert_allclose(shifted.data[1:, 1:, 1:], ramp[1:, 1:, 1:] - 55.5, rtol=1e-5)


def test_plain_is_the_scan_itself():
    scan = volume(noise((3, 3, 3)))
    assert degrade(scan, None, "plain", name="a") == (scan, None)


@pytest.mark.parametrize("change", ["axial", "axial-5", "oblique-5mm", "rotated-w-3", "smooth", ""])
def test_an_unknown_change_is_refused_with_the_names_there_are(change: str):
    with pytest.raises(UsageError, match=r"change of a scan: found .*axial-Nmm.*smooth-N") as caught:
        degrade(volume(noise((3, 3, 3))), None, change, name="a")
    assert CHANGES in str(caught.value)
