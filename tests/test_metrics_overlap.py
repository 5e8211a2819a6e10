"""Dice and volume similarity against counting voxel by voxel, and at the edges of their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from synthseg.errors import LabelError, ShapeError
from synthseg.metrics import dice, overlap, volume_similarity

VALUES = [41, 2, 7, 3]  # not sorted: results follow the order asked for
SHAPE = (4, 3, 5)
LABELS = st.sampled_from([0, 2, 3, 7, 41, 99, 255])


def maps() -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.int32, SHAPE, elements=LABELS)


def counted(predicted: np.ndarray, truth: np.ndarray, value: int, ignored: int | None) -> tuple[int, int, int]:
    """Voxels in both, in the prediction and in the truth, one voxel at a time."""
    both = ours = theirs = 0
    for p, t in zip(predicted.flat, truth.flat, strict=True):
        if t == ignored:
            continue
        both += int(p == value and t == value)
        ours += int(p == value)
        theirs += int(t == value)
    return both, ours, theirs


@given(predicted=maps(), truth=maps(), ignored=st.sampled_from([None, 255, 3]))
def test_overlap_dice_and_volume_similarity_agree_with_counting(
    predicted: np.ndarray, truth: np.ndarray, ignored: int | None
) -> None:
    counts = overlap(predicted, truth, VALUES, ignore_value=ignored)
    scores = dice(predicted, truth, VALUES, ignore_value=ignored)
    similarity = volume_similarity(predicted, truth, VALUES, ignore_value=ignored)
    assert scores.dtype == np.float64
    for i, value in enumerate(VALUES):
        both, ours, theirs = counted(predicted, truth, value, ignored)
        assert (counts.both[i], counts.predicted[i], counts.truth[i]) == (both, ours, theirs)
        if ours + theirs == 0:
            assert np.isnan(scores[i])
            assert np.isnan(similarity[i])
        else:
            assert scores[i] == 2 * both / (ours + theirs)
            assert similarity[i] == pytest.approx(1 - abs(ours - theirs) / (ours + theirs), abs=1e-15)


@given(predicted=maps(), truth=maps())
def test_dice_is_symmetric_and_does_not_mind_the_axes(predicted: np.ndarray, truth: np.ndarray) -> None:
    forth = dice(predicted, truth, VALUES)
    np.testing.assert_array_equal(forth, dice(truth, predicted, VALUES))
    np.testing.assert_array_equal(forth, dice(predicted.T, truth.T, VALUES))
    np.testing.assert_array_equal(forth[::-1], dice(predicted, truth, VALUES[::-1]))


@given(label_map=maps())
def test_a_map_agrees_perfectly_with_itself(label_map: np.ndarray) -> None:
    scores = dice(label_map, label_map, VALUES)
    np.testing.assert_array_equal(scores == 1, np.isin(VALUES, label_map))
    np.testing.assert_array_equal(np.isnan(scores), ~np.isin(VALUES, label_map))


def test_absent_from_both_is_nan_and_from_one_is_zero() -> None:
    predicted, truth = np.array([[[0, 1, 0]]]), np.array([[[0, 0, 2]]])
    np.testing.assert_array_equal(dice(predicted, truth, [1, 2, 3]), [0, 0, np.nan])
    np.testing.assert_array_equal(volume_similarity(predicted, truth, [1, 2, 3]), [0, 0, np.nan])


def test_ignored_voxels_leave_both_maps() -> None:
    truth = np.array([1, 1, 255, 255])
    predicted = np.array([1, 1, 1, 2])
    assert dice(predicted, truth, [1])[0] == 2 * 2 / 5
    np.testing.assert_array_equal(dice(predicted, truth, [1, 2], ignore_value=255), [1, np.nan])


def test_inputs_stay_as_they_were() -> None:
    truth = np.array([1, 255])
    predicted = np.array([1, 1])
    dice(predicted, truth, [1], ignore_value=255)
    np.testing.assert_array_equal(truth, [1, 255])
    np.testing.assert_array_equal(predicted, [1, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int64, np.uint64])
def test_small_and_unsigned_types_do_not_overflow(dtype: type) -> None:
    low = 0 if np.iinfo(dtype).min == 0 else -100
    label_map = np.array([low, 100, 100, 0]).astype(dtype)
    np.testing.assert_array_equal(dice(label_map, label_map, [100, 1]), [1, np.nan])


def test_many_labels_and_widely_spread_values_are_counted_too() -> None:
    generator = np.random.default_rng(0)
    values = np.unique(generator.integers(-(2**40), 2**40, 400))
    predicted, truth = generator.choice(values, (2, 5000))
    scores = dice(predicted, truth, values)
    expected = [
        2 * np.sum((predicted == v) & (truth == v)) / (np.sum(predicted == v) + np.sum(truth == v)) for v in values
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-14)


def test_booleans_are_label_maps_of_one_label() -> None:
    assert dice(np.array([True, True]), np.array([True, False]), [1])[0] == 2 / 3


def test_what_cannot_be_compared_is_told() -> None:
    ints = np.zeros((2, 3), int)
    with pytest.raises(ShapeError, match=r"shapes \(2, 3\) and \(3, 2\).*reslice"):
        dice(ints, ints.T, [1])
    with pytest.raises(LabelError, match="predicted label map: found an array of float32"):
        dice(ints.astype(np.float32), ints, [1])
    with pytest.raises(LabelError, match=r"\[1, 1\].*list each value once"):
        dice(ints, ints, [1, 1])
