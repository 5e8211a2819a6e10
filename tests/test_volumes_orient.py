"""Orientation: 48 ways to store the same head, oblique or not, and exactly back."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from synthseg.errors import ShapeError
from synthseg.volumes import Volume, from_ras, to_ras

ORIENTATIONS = [
    np.column_stack([axes, signs])
    for axes in itertools.permutations(range(3))
    for signs in itertools.product([1, -1], repeat=3)
]
SHAPE = (4, 5, 6)


def world_of(volume: Volume) -> dict[float, np.ndarray]:
    """Where each (distinct) value lies in the world."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in volume.data.shape], indexing="ij"), -1).reshape(-1, 3)
    places = nib.affines.apply_affine(volume.affine, index)
    return dict(zip(volume.data.ravel().tolist(), places, strict=True))


def stored(orientation: np.ndarray, ras_affine: np.ndarray) -> Volume:
    """The same head as a RAS array under ``ras_affine``, stored in another axis order (nibabel's doing)."""
    head = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    return Volume(apply_orientation(head, orientation), ras_affine @ inv_ornt_aff(orientation, SHAPE))


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
def test_every_orientation_becomes_the_same_ras_array_and_goes_back(orientation: np.ndarray) -> None:
    ras_affine = nib.affines.from_matvec(np.diag([0.8, 1.0, 2.5]), [-10, 20, 3])
    volume = stored(orientation, ras_affine)
    ras, way_back = to_ras(volume)
    assert ras.data.shape == SHAPE
    assert np.array_equal(ras.data, np.arange(np.prod(SHAPE)).reshape(SHAPE))
    np.testing.assert_allclose(ras.affine, ras_affine, atol=1e-12)
    assert nib.aff2axcodes(ras.affine) == ("R", "A", "S")
    assert way_back.code == "".join(nib.aff2axcodes(volume.affine))
    assert np.array_equal(from_ras(ras.data, way_back), volume.data)
    assert np.shares_memory(ras.data, volume.data)


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    axis=st.sampled_from([(1, 0, 0), (0, 1, 0), (1, 1, 1), (1, -2, 0.5)]),
    degrees=st.floats(-44, 44),
    spacing=st.tuples(*[st.floats(0.3, 8)] * 3),
)
def test_every_voxel_keeps_its_place_in_the_world(
    orientation: np.ndarray, axis: tuple[float, float, float], degrees: float, spacing: tuple[float, float, float]
) -> None:
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.array(axis) / np.linalg.norm(axis)).as_matrix()
    volume = stored(orientation, nib.affines.from_matvec(turn @ np.diag(spacing), [5, -70, 31]))
    ras, way_back = to_ras(volume)
    before, after = world_of(volume), world_of(ras)
    for value, place in before.items():
        np.testing.assert_allclose(after[value], place, atol=1e-9)
    assert np.array_equal(from_ras(ras.data, way_back), volume.data)
    # nibabel agrees on what the closest RAS array is
    closest = nib.as_closest_canonical(nib.Nifti1Image(volume.data, volume.affine))
    assert np.array_equal(closest.get_fdata(), ras.data)
    np.testing.assert_allclose(closest.affine, ras.affine, atol=1e-9)


@given(orientation=st.sampled_from(ORIENTATIONS), channels=st.integers(0, 3))
def test_channels_go_back_like_single_maps(orientation: np.ndarray, channels: int) -> None:
    ras, way_back = to_ras(stored(orientation, np.eye(4)))
    stack = np.stack([ras.data + c for c in range(channels + 1)])
    back = from_ras(stack, way_back)
    for c in range(channels + 1):
        assert np.array_equal(back[c], from_ras(stack[c], way_back))


def test_two_axes_are_never_given_the_same_direction() -> None:
    # sheared so far that both of the first two axes lie closest to "right"
    affine = np.array([[1.0, 0.9, 0, 0], [0.1, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    ras, _ = to_ras(Volume(np.zeros(SHAPE, np.float32), affine))
    assert ras.data.shape == SHAPE
    np.testing.assert_allclose(ras.affine, affine)


def test_arrays_of_two_axes_are_refused() -> None:
    _, way_back = to_ras(stored(ORIENTATIONS[0], np.eye(4)))
    with pytest.raises(ShapeError, match=r"array: found shape \(3, 4\)"):
        from_ras(np.zeros((3, 4)), way_back)
