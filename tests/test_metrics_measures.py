"""All metrics of all labels at once: against the functions for one, closed forms, other axes, and at the edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from synthseg.errors import ConfigError, ShapeError
from synthseg.metrics import (
    METRICS,
    dice,
    measure,
    separation,
    surface_dice,
    surface_distances,
    volume_similarity,
)
from synthseg.metrics.surface import boundary

SHAPE = (5, 4, 6)
SHEARED = np.array([[0.9, 0.3, 0.0], [0.0, 1.1, 0.4], [0.2, 0.0, 2.0]])  # columns: steps in mm, not perpendicular


def box(start: tuple[int, int, int], sides: tuple[int, int, int], room: int = 24) -> np.ndarray:
    mask = np.zeros((room,) * 3, np.int32)
    mask[tuple(slice(s, s + n) for s, n in zip(start, sides, strict=True))] = 1
    return mask


def ball(radius_mm: float, spacing: tuple[float, ...], shift_mm: float = 0.0) -> np.ndarray:
    """A ball in a box of 24 mm; the shift is along the first axis."""
    axes = np.ogrid[tuple(slice(round(24 / size)) for size in spacing)]
    places = [axis * size - 12 for axis, size in zip(axes, spacing, strict=True)]
    return ((places[0] - shift_mm) ** 2 + places[1] ** 2 + places[2] ** 2 <= radius_mm**2).astype(np.int32)


@given(
    predicted=arrays.arrays(np.int16, SHAPE, elements=st.sampled_from([0, 5, 9, 300])),
    truth=arrays.arrays(np.int16, SHAPE, elements=st.sampled_from([0, 5, 9, 255])),
    ignored=st.sampled_from([None, 255]),
)
def test_every_metric_is_that_of_its_own_function(
    predicted: np.ndarray, truth: np.ndarray, ignored: int | None
) -> None:
    values, spacing = [9, 5, 300, 7], (1.0, 3.0, 0.5)
    found = measure(predicted, truth, values, spacing, tolerance_mm=1.5, ignore_value=ignored)
    assert list(found) == list(METRICS)
    kept = truth != ignored
    pairs = [((predicted == v) & kept, (truth == v) & kept) for v in values]
    distances = [surface_distances(*pair, spacing) for pair in pairs]
    expected = {
        "dice": dice(predicted, truth, values, ignore_value=ignored),
        "volume_similarity": volume_similarity(predicted, truth, values, ignore_value=ignored),
        "sd95": [d.p95 for d in distances],
        "mean_distance": [d.mean for d in distances],
        "hausdorff": [d.hausdorff for d in distances],
        "surface_dice": [surface_dice(*pair, spacing, 1.5) for pair in pairs],
        "volume_predicted": [a.sum() * 1.5 for a, _ in pairs],
        "volume_truth": [b.sum() * 1.5 for _, b in pairs],
    }
    for name, values_of_one in expected.items():
        np.testing.assert_allclose(found[name], values_of_one, rtol=1e-12, err_msg=name)


@given(
    a=arrays.arrays(bool, SHAPE), b=arrays.arrays(bool, SHAPE), steps=st.sampled_from([SHEARED, SHEARED[:, [2, 0, 1]]])
)
def test_axes_that_are_not_perpendicular_are_measured_in_the_world(
    a: np.ndarray, b: np.ndarray, steps: np.ndarray
) -> None:
    a[2, 1, 3] = b[0, 3, 5] = True
    places = [np.argwhere(boundary(mask)) @ steps.T for mask in (a, b)]
    table = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
    apart = separation(a, b, steps)
    np.testing.assert_allclose(apart.forth, table.min(axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(apart.back, table.min(axis=0), rtol=1e-12, atol=1e-12)


def test_turned_axes_measure_as_straight_ones() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random((2, 9, 8, 7)) > 0.6
    spacing = np.array([0.8, 1.0, 2.5])
    turned, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    np.testing.assert_allclose(surface_distances(a, b, turned * spacing), surface_distances(a, b, spacing), rtol=1e-12)


@pytest.mark.parametrize(("axis", "spacing"), [*itertools.product(range(3), [(1.0, 1.0, 1.0), (0.5, 2.0, 5.0)])])
def test_shifted_boxes_in_closed_form(axis: int, spacing: tuple[float, ...]) -> None:
    sides, shift = (6, 5, 4), 2
    start = [8, 8, 8]
    start[axis] += shift
    found = measure(box(tuple(start), sides), box((8, 8, 8), sides), [1], spacing, tolerance_mm=shift * spacing[axis])  # type: ignore[arg-type]
    volume = math.prod(sides) * math.prod(spacing)
    assert found["dice"][0] == pytest.approx((sides[axis] - shift) / sides[axis])
    assert found["hausdorff"][0] == pytest.approx(shift * spacing[axis])
    assert found["surface_dice"][0] == 1
    assert found["volume_similarity"][0] == 1
    assert found["volume_predicted"][0] == found["volume_truth"][0] == pytest.approx(volume)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("growth_mm", [1.0, 3.0])
def test_concentric_balls_in_closed_form(growth_mm: float, spacing: tuple[float, ...]) -> None:
    # Between the exact surfaces every distance is the growth; voxel surfaces lie within a voxel's diagonal of them.
    small, large = ball(6, spacing), ball(6 + growth_mm, spacing)
    found = {name: float(value[0]) for name, value in measure(large, small, [1], spacing, tolerance_mm=0.1).items()}
    diagonal = math.hypot(*spacing)
    ratio = ((6 + growth_mm) / 6) ** 3
    assert found["dice"] == pytest.approx(2 / (1 + ratio), abs=0.02)
    assert found["volume_similarity"] == pytest.approx(1 - (ratio - 1) / (ratio + 1), abs=0.02)
    assert found["volume_truth"] == pytest.approx(4 / 3 * math.pi * 6**3, rel=0.03)
    for name in ("mean_distance", "sd95", "hausdorff"):
        assert found[name] == pytest.approx(growth_mm, abs=diagonal)
    assert found["mean_distance"] == pytest.approx(growth_mm, abs=diagonal / 3)


def test_a_shifted_ball_is_as_far_as_its_shift_whatever_the_voxels() -> None:
    for spacing in ((1.0, 1.0, 1.0), (0.5, 1.0, 2.0), (2.0, 1.0, 1.0)):
        found = measure(ball(7, spacing, 2), ball(7, spacing), [1], spacing, tolerance_mm=2.0)
        assert found["hausdorff"][0] == pytest.approx(2)
        assert found["surface_dice"][0] == 1


def test_surface_dice_rises_from_the_shared_surface_to_1() -> None:
    a, b = box((5, 5, 5), (8, 8, 8)) > 0, box((6, 5, 5), (8, 8, 8)) > 0
    apart = separation(a, b, (2, 1, 1))
    shared = ((apart.forth == 0).sum() + (apart.back == 0).sum()) / (len(apart.forth) + len(apart.back))
    scores = [surface_dice(a, b, (2, 1, 1), tolerance) for tolerance in (0, 0.5, 1, 1.9, 2, 50)]
    assert scores == sorted(scores)
    assert scores[0] == shared
    assert scores[4:] == [1, 1]
    assert scores[3] < 1


def test_a_distance_equal_to_the_tolerance_is_near_enough_in_headers_of_single_precision() -> None:
    a, b = box((5, 5, 5), (4, 4, 4)) > 0, box((7, 5, 5), (4, 4, 4)) > 0
    spacing = np.full(3, float(np.nextafter(np.float32(0.7), np.float32(1))))
    assert 2 * spacing[0] > 1.4
    assert surface_dice(a, b, spacing, 1.4) == 1
    assert surface_dice(a, b, spacing, 1.399) < 1


def test_absent_from_one_and_from_both() -> None:
    predicted, truth = box((2, 2, 2), (3, 3, 3)), 2 * box((9, 9, 9), (3, 3, 3))
    found = measure(predicted, truth, [1, 2, 3], (1, 1, 1))
    expected = {
        "dice": (0, 0, math.nan),
        "sd95": (math.inf, math.inf, math.nan),
        "mean_distance": (math.inf, math.inf, math.nan),
        "hausdorff": (math.inf, math.inf, math.nan),
        "surface_dice": (0, 0, math.nan),
        "volume_similarity": (0, 0, math.nan),
        "volume_predicted": (27, 0, 0),
        "volume_truth": (0, 27, 0),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_structures_at_the_border_measure_as_in_the_middle() -> None:
    at_border = [box((0, 0, 18), (6, 5, 6)), box((0, 2, 18), (6, 6, 6))]
    inside = [np.pad(mask, 3) for mask in at_border]
    there, here = measure(*at_border, [1], (1, 2, 3)), measure(*inside, [1], (1, 2, 3))
    for name in METRICS:
        np.testing.assert_array_equal(there[name], here[name], err_msg=name)


def test_single_voxels_are_measured_between_their_centres() -> None:
    found = measure(box((3, 3, 3), (1, 1, 1)), box((6, 7, 3), (1, 1, 1)), [1], (1, 1, 1), tolerance_mm=5)
    assert [found[name][0] for name in ("dice", "sd95", "mean_distance", "hausdorff")] == [0, 5, 5, 5]
    assert found["surface_dice"][0] == found["volume_similarity"][0] == 1


def test_the_rim_of_an_ignored_region_is_a_surface_of_both() -> None:
    truth, predicted = box((2, 2, 2), (10, 6, 6)), box((2, 2, 2), (16, 6, 6))
    truth[8:] = 255  # the truth does not say how far the structure goes
    found = measure(predicted, truth, [1], (1, 1, 1), ignore_value=255)
    assert found["dice"][0] == 1
    assert found["hausdorff"][0] == 0
    assert found["volume_predicted"][0] == 6**3


def test_more_labels_than_a_byte_holds() -> None:
    truth = np.arange(1, 1001, dtype=np.int32).reshape(10, 10, 10)
    found = measure(np.roll(truth, 1, 0), truth, list(range(1, 1001)), (2, 1, 1), metrics=["dice", "hausdorff"])
    assert set(found) == {"dice", "hausdorff"}
    np.testing.assert_array_equal(found["dice"], 0)
    np.testing.assert_array_equal(found["hausdorff"], np.repeat([2] * 9 + [18], 100))


def test_what_cannot_be_measured_is_told() -> None:
    mask = np.ones((2, 3, 4), int)
    with pytest.raises(ConfigError, match=r"found hd95\. Fix: choose from dice, sd95"):
        measure(mask, mask, [1], (1, 1, 1), metrics=["dice", "hd95"])
    with pytest.raises(ConfigError, match="each once"):
        measure(mask, mask, [1], (1, 1, 1), metrics=["dice", "dice"])
    with pytest.raises(ConfigError, match="found none"):
        measure(mask, mask, [1], (1, 1, 1), metrics=[])
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"tolerance: found .* mm. Fix: give millimetres, 0 or more"):
            measure(mask, mask, [1], (1, 1, 1), tolerance_mm=tolerance)
    with pytest.raises(ShapeError, match="3 positive voxel sizes"):
        measure(mask, mask, [1], np.zeros((3, 3)))
