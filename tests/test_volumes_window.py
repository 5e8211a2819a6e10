"""Windows: crops, pads and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthseg.errors import ShapeError
from synthseg.volumes import Window, bounding_box, center_window, crop_pad, uncrop_pad

starts = st.tuples(*[st.integers(-8, 12)] * 3)
sizes = st.tuples(*[st.integers(1, 12)] * 3)


def test_centre_windows_reproduce_the_reference_vectors() -> None:
    # reference 11.2
    assert center_window((181, 217, 181), (160, 192, 160)).start == (10, 12, 10)
    assert center_window((181, 217, 181), (192, 224, 192)).start == (-5, -3, -5)


@given(start=starts, size=sizes, full=sizes)
def test_a_crop_reads_what_a_padded_array_holds(
    start: tuple[int, int, int], size: tuple[int, int, int], full: tuple[int, int, int]
) -> None:
    array = np.arange(1, 1 + np.prod(full), dtype=np.int32).reshape(full)
    far = 40
    padded = np.pad(array, far, constant_values=-7)
    expected = padded[tuple(slice(far + b, far + b + n) for b, n in zip(start, size, strict=True))]
    cropped = crop_pad(array, start, size, fill=-7)
    assert cropped.dtype == array.dtype
    assert np.array_equal(cropped, expected)


@given(start=starts, size=sizes, full=sizes)
def test_uncropping_restores_what_the_window_saw(
    start: tuple[int, int, int], size: tuple[int, int, int], full: tuple[int, int, int]
) -> None:
    array = np.random.default_rng(0).random((2, *full))
    back = uncrop_pad(crop_pad(array, start, size), start, full, fill=-1)
    seen = uncrop_pad(np.ones(size), start, full) == 1
    assert back.shape == array.shape
    assert np.array_equal(back[:, seen], array[:, seen])
    assert (back[:, ~seen] == -1).all()


@given(shape=sizes, target=sizes)
def test_a_centre_window_leaves_equal_margins(shape: tuple[int, int, int], target: tuple[int, int, int]) -> None:
    window = center_window(shape, target)
    for start, n, t in zip(window.start, shape, target, strict=True):
        after = n - t - start
        assert abs(after) - abs(start) in (0, 1)
        assert start * after >= 0
    array = np.random.default_rng(1).random(shape)
    restored = window.uncrop(window.crop(array))
    kept = window.uncrop(np.ones(target)) == 1
    assert np.array_equal(restored[kept], array[kept])


def test_a_windows_affine_keeps_voxels_in_place() -> None:
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    window = Window((2, -3, 1), (4, 4, 4), (9, 9, 9))
    np.testing.assert_allclose(window.affine(affine) @ [1, 1, 1, 1], affine @ [3, -2, 2, 1])
    assert affine[0, 3] == 5  # untouched


def test_a_bounding_box_holds_the_mask_and_stays_inside() -> None:
    mask = np.zeros((20, 21, 22), bool)
    mask[10:20, 3, 5:7] = True
    assert bounding_box(mask) == Window((10, 3, 5), (10, 1, 2), (20, 21, 22))
    assert bounding_box(mask, margin=4) == Window((6, 0, 1), (14, 8, 10), (20, 21, 22))
    assert bounding_box(np.zeros((3, 4, 5), bool)) == Window((0, 0, 0), (3, 4, 5), (3, 4, 5))


def test_misfits_are_named() -> None:
    window = center_window((8, 8, 8), (4, 4, 4))
    with pytest.raises(ShapeError, match=r"found an array of \(7, 8, 8\).*\(8, 8, 8\)"):
        window.crop(np.zeros((7, 8, 8)))
    with pytest.raises(ShapeError, match=r"found an array of \(8, 8, 8\).*\(4, 4, 4\)"):
        window.uncrop(np.zeros((8, 8, 8)))
    with pytest.raises(ShapeError, match="three sizes"):
        crop_pad(np.zeros((8, 8, 8)), (0, 0, 0), (4, 0, 4))
