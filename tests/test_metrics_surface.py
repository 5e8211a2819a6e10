"""Surface distances against all pairs of surface voxels, closed forms, and what the original got wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from synthseg.errors import ShapeError
from synthseg.metrics import SurfaceDistances, nearest_distance, sd95, surface_distances
from synthseg.metrics.surface import boundary, label_distances

SHAPE = (5, 4, 6)
MASKS = arrays.arrays(bool, SHAPE)
SPACINGS = st.tuples(*[st.sampled_from([0.5, 1.0, 1.3, 3.0])] * 3)


def brute_boundary(mask: np.ndarray) -> np.ndarray:
    """Indices [n, 3] of voxels inside that have a face neighbour outside, one voxel at a time."""
    points = []
    for place in itertools.product(*map(range, mask.shape)):
        neighbours = [np.add(place, step) for step in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])]
        inside = [all(0 <= i < n for i, n in zip(q, mask.shape, strict=True)) and mask[tuple(q)] for q in neighbours]
        if mask[place] and not all(inside):
            points.append(place)
    return np.array(points)


def brute_distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> SurfaceDistances:
    first, second = brute_boundary(a) * np.array(spacing), brute_boundary(b) * np.array(spacing)
    table = np.linalg.norm(first[:, None] - second[None], axis=-1)
    forth, back = table.min(axis=1), table.min(axis=0)
    pooled = np.concatenate([forth, back])
    return SurfaceDistances((forth.mean() + back.mean()) / 2, np.percentile(pooled, 95), pooled.max())


def sphere(radius: float, shift: tuple[int, int, int] = (0, 0, 0), side: int = 48) -> np.ndarray:
    axes = np.ogrid[:side, :side, :side]
    return sum((axis - side // 2 - move) ** 2 for axis, move in zip(axes, shift, strict=True)) <= radius**2


def cube(start: tuple[int, int, int], size: int, side: int = 40) -> np.ndarray:
    mask = np.zeros((side,) * 3, bool)
    mask[tuple(slice(s, s + size) for s in start)] = True
    return mask


@given(mask=MASKS)
def test_the_boundary_is_where_a_face_neighbour_is_outside(mask: np.ndarray) -> None:
    expected = np.zeros(SHAPE, bool)
    for place in brute_boundary(mask):
        expected[tuple(place)] = True
    np.testing.assert_array_equal(boundary(mask), expected)


@given(a=MASKS, b=MASKS, spacing=SPACINGS)
def test_distances_agree_with_all_pairs_of_surface_voxels(
    a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]
) -> None:
    a[1, 2, 3] = b[3, 1, 0] = True
    np.testing.assert_allclose(surface_distances(a, b, spacing), brute_distances(a, b, spacing), rtol=1e-12)


@given(a=MASKS, b=MASKS, pads=st.tuples(*[st.integers(1, 3)] * 3))
def test_distances_do_not_depend_on_the_room_around_or_on_the_order(
    a: np.ndarray, b: np.ndarray, pads: tuple[int, int, int]
) -> None:
    spacing = (1.0, 2.0, 0.7)
    a[0, 0, 0] = b[2, 2, 2] = True
    width = [(p, 4 - p) for p in pads]
    once = surface_distances(a, b, spacing)
    np.testing.assert_allclose(surface_distances(np.pad(a, width), np.pad(b, width), spacing), once, rtol=1e-12)
    np.testing.assert_allclose(surface_distances(b, a, spacing), once, rtol=1e-12)


@pytest.mark.parametrize(("shift", "hausdorff"), [((2, 0, 0), 2), ((0, 0, 5), 5), ((1, 2, 2), 3)])
def test_shifted_cubes_are_as_far_apart_as_the_shift(shift: tuple[int, int, int], hausdorff: float) -> None:
    # The original gave 7 for a shift of 2 (reference, section 7).
    a, b = cube((10, 10, 10), 10), cube(tuple(10 + s for s in shift), 10)  # type: ignore[arg-type]
    assert surface_distances(a, b, (1, 1, 1)).hausdorff == hausdorff


def test_the_original_lost_surfaces_at_the_edge_of_the_volume() -> None:
    a, b = cube((0, 0, 0), 10, side=12), cube((2, 0, 0), 10, side=12)  # both touch faces of the volume
    assert surface_distances(a, b, (1, 1, 1)).hausdorff == 2


@pytest.mark.parametrize(("shift", "p95", "mean", "original"), [(1, 1, 0.65, 5), (3, 3, 1.53, 5.385)])
def test_shifted_spheres(shift: int, p95: float, mean: float, original: float) -> None:
    # Reference 11.8: the 95th percentile and the mean are close to the original's, the maximum far below it.
    distances = surface_distances(sphere(15), sphere(15, (shift, 0, 0)), (1, 1, 1))
    assert distances.hausdorff == shift < original
    assert distances.p95 == pytest.approx(p95, abs=0.01)
    assert distances.mean == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("growth", [1, 4])
def test_concentric_spheres_are_apart_by_the_difference_of_their_radii(growth: int) -> None:
    distances = surface_distances(sphere(12), sphere(12 + growth), (1, 1, 1))
    assert distances.mean == pytest.approx(growth, abs=0.3)
    assert distances.p95 == pytest.approx(growth, abs=0.75)


def test_voxel_size_counts_along_its_own_axis() -> None:
    a, spacing = cube((10, 10, 10), 6), (1.0, 2.0, 5.0)
    for axis, size in enumerate(spacing):
        start = [10, 10, 10]
        start[axis] += 2
        assert surface_distances(a, cube(tuple(start), 6), spacing).hausdorff == 2 * size  # type: ignore[arg-type]


@given(scale=st.floats(0.1, 10))
def test_distances_scale_with_the_voxel_size(scale: float) -> None:
    a, b = cube((2, 3, 4), 5, 16), cube((4, 4, 4), 7, 16)
    once = np.array(surface_distances(a, b, (1, 1.5, 2)))
    np.testing.assert_allclose(surface_distances(a, b, np.array((1, 1.5, 2)) * scale), once * scale, rtol=1e-9)


def test_single_voxels_and_sheets_have_surfaces() -> None:
    # The original raised an exception for both.
    a, b = cube((3, 3, 3), 1, 12), cube((6, 7, 3), 1, 12)
    assert surface_distances(a, b, (1, 1, 1)) == (5, 5, 5)
    sheet = np.zeros((12, 12, 12), bool)
    sheet[4] = True
    assert surface_distances(sheet, np.roll(sheet, 3, 0), (2, 1, 1)) == (6, 6, 6)


def test_equal_masks_are_at_distance_zero() -> None:
    assert surface_distances(sphere(7), sphere(7), (1, 1, 1)) == (0, 0, 0)


def test_nothing_to_measure_is_nan_and_a_missing_structure_infinitely_far() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert all(math.isnan(value) for value in surface_distances(empty, empty, (1, 1, 1)))
    assert surface_distances(empty, full, (1, 1, 1)) == (math.inf,) * 3
    assert surface_distances(full, empty, (1, 1, 1)) == (math.inf,) * 3


@given(
    predicted=arrays.arrays(np.int16, SHAPE, elements=st.sampled_from([0, 5, 9, 300])),
    truth=arrays.arrays(np.int16, SHAPE, elements=st.sampled_from([0, 5, 9, 255])),
    ignored=st.sampled_from([None, 255]),
)
def test_all_labels_at_once_equal_each_mask_alone(
    predicted: np.ndarray, truth: np.ndarray, ignored: int | None
) -> None:
    values, spacing = [9, 5, 300, 7], (1.0, 3.0, 0.5)
    kept = truth != ignored
    expected = [surface_distances((predicted == v) & kept, (truth == v) & kept, spacing) for v in values]
    got = label_distances(predicted, truth, values, spacing, ignore_value=ignored)
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-12)
    p95 = sd95(predicted, truth, values, spacing, ignore_value=ignored)
    np.testing.assert_allclose(p95, [distances.p95 for distances in expected], rtol=1e-12)


def test_ignored_voxels_have_no_surface() -> None:
    truth, predicted = np.zeros((2, 8, 4, 4), np.int32)
    truth[1:3, 1:3, 1:3] = predicted[1:3, 1:3, 1:3] = 5
    predicted[6, 2, 2] = 5  # a stray voxel, in a place the truth does not judge
    truth[5:] = 255
    assert sd95(predicted, truth, [5], (1, 1, 1))[0] > 0
    assert sd95(predicted, truth, [5], (1, 1, 1), ignore_value=255)[0] == 0


def test_nearest_distance_is_zero_inside_and_measures_in_millimetres() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = True
    distances = nearest_distance(mask, (1, 2, 3))
    assert distances[0, 0, 0] == 0
    assert distances[3, 0, 0] == 3
    assert distances[0, 2, 1] == 5
    with pytest.raises(ShapeError, match="no voxel inside"):
        nearest_distance(np.zeros((2, 2, 2)), (1, 1, 1))


def test_what_cannot_be_measured_is_told() -> None:
    mask = np.ones((2, 3, 4), bool)
    with pytest.raises(ShapeError, match=r"shapes \(2, 3, 4\) and \(4, 3, 2\)"):
        surface_distances(mask, mask.T, (1, 1, 1))
    for spacing in ((1, 1), (1, 0, 1), (1, float("nan"), 1)):
        with pytest.raises(ShapeError, match="3 positive voxel sizes"):
            surface_distances(mask, mask, spacing)
