"""A scan stored, placed or scaled otherwise is the same scan: the same labels in the same places.

What holds exactly is tested on random networks, whose answers change with every bit of their input; what training has
taught on a real scan with the shipped weights.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from inference_helpers import small_protocol
from synthseg.inference import Segmenter, Want
from synthseg.labels import load_protocol
from synthseg.volumes import Volume, read_volume
from trust_helpers import (
    ORDERS,
    at,
    blobs,
    labels_of,
    partner_values,
    random_model,
    reordered,
    segmenter,
    share_changed,
    stored,
    volume_gap,
)

OBLIQUE = Rotation.from_euler("xyz", [4, -7, 9], degrees=True).as_matrix()
SCANS = {
    "as the network wants it": at(blobs((32, 35, 33)), (2.0, 2.0, 2.0)),
    "finer": at(blobs((62, 67, 24)), (1.0, 1.0, 1.0)),
    "thick slices, oblique": at(blobs((36, 40, 12)), (1.9, 1.73, 5.5), OBLIQUE),
}

# Orientation of the storage


@pytest.mark.parametrize("kind", SCANS)
def test_all_48_orientations_of_the_storage_prepare_to_the_same_bits(kind: str) -> None:
    scan, made_by = SCANS[kind], segmenter(random_model())
    expected = made_by.prepare(scan)
    for order in ORDERS:
        found = made_by.prepare(stored(scan, order))
        assert found.image.equal(expected.image), order
        np.testing.assert_allclose(found.padded.affine, expected.padded.affine, atol=1e-9)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_orientations_of_the_storage_give_the_same_labels_in_the_same_places(norm: str) -> None:
    scan = SCANS["thick slices, oblique"]
    made_by = segmenter(random_model(norm))
    expected = made_by.segment(scan, Want(space="both"))
    assert expected.native is not None
    assert expected.fine is not None
    assert len(np.unique(expected.native.data)) >= 5
    for order in ORDERS[1::6]:  # of all 48 the prepared images are the same bits: see above
        found = made_by.segment(stored(scan, order), Want(space="both"))
        assert found.native is not None
        assert found.fine is not None
        np.testing.assert_array_equal(found.native.data, reordered(expected.native.data, order))
        np.testing.assert_array_equal(found.fine.data, expected.fine.data)
        assert volume_gap(found, expected) < 1e-9


# Integer translations


def moved(data: np.ndarray, by: tuple[int, int, int]) -> np.ndarray:
    """Every voxel ``by`` voxels further."""
    return np.roll(data, by, axis=(0, 1, 2))


def away_from_the_border(labels: np.ndarray, reach: int) -> np.ndarray:
    """What a network whose view reaches so far cannot know the border from."""
    return labels[reach:-reach, reach:-reach, reach:-reach]


@pytest.mark.parametrize("by", [(1, 0, 0), (-3, 2, 1), (2, -1, -3)])
def test_labels_move_with_the_voxels_by_any_whole_number_where_nothing_is_pooled(by: tuple[int, int, int]) -> None:
    made_by = segmenter(random_model("batch", levels=1))
    scan = at(blobs((36, 38, 24), margin=7), (2.0, 2.0, 2.0))
    found = labels_of(made_by, Volume(moved(scan.data, by), scan.affine))
    expected = moved(labels_of(made_by, scan), by)
    assert len(np.unique(away_from_the_border(expected, 8))) >= 5
    np.testing.assert_array_equal(away_from_the_border(found, 8), away_from_the_border(expected, 8))


@pytest.mark.parametrize("by", [(-4, 4, -4)])
@pytest.mark.parametrize(
    ("norm", "most"), [("batch", 0.0), ("instance", 0.03)]
)  # statistics of all voxels: what the border adds
def test_labels_move_with_the_voxels_by_multiples_of_what_is_pooled(
    norm: str, most: float, by: tuple[int, int, int]
) -> None:
    made_by = segmenter(random_model(norm))
    scan = at(blobs((52, 52, 48), margin=16), (2.0, 2.0, 2.0))
    found = labels_of(made_by, Volume(moved(scan.data, by), scan.affine))
    expected = moved(labels_of(made_by, scan), by)
    assert share_changed(away_from_the_border(found, 18), away_from_the_border(expected, 18)) <= most


@pytest.mark.parametrize("before", [(8, 0, 12)])
def test_a_wider_field_of_view_full_of_background_changes_nothing(before: tuple[int, int, int]) -> None:
    # The extremes, which more background leaves where they are; percentiles of all voxels it does not.
    made_by = segmenter(random_model("batch"), percentiles=(0.0, 100.0))
    scan = at(blobs((48, 52, 40), margin=16), (2.0, 2.0, 2.0))
    pads = [(n, 8) for n in before]
    affine = scan.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array(before)
    found = labels_of(made_by, Volume(np.pad(scan.data, pads), affine))
    inside = tuple(slice(n, n + size) for n, size in zip(before, scan.data.shape, strict=True))
    expected = labels_of(made_by, scan)
    np.testing.assert_array_equal(away_from_the_border(found[inside], 14), away_from_the_border(expected, 14))


# Intensities


@settings(max_examples=10)
@given(exponent=st.integers(-20, 20))
def test_powers_of_two_change_no_bit(exponent: int) -> None:
    scan, made_by = SCANS["thick slices, oblique"], segmenter(random_model())
    expected = made_by.prepare(scan).image
    assert made_by.prepare(Volume(scan.data * np.float32(2.0**exponent), scan.affine)).image.equal(expected)


@settings(max_examples=30)
@given(scale=st.floats(1e-4, 1e4), shift=st.floats(-2, 2))
def test_the_network_sees_the_same_image_whatever_the_units(scale: float, shift: float) -> None:
    """``shift`` counts in widths of the scan's own range: float32 holds 24 bits of the larger of the two."""
    scan, made_by = SCANS["thick slices, oblique"], segmenter(random_model(), ct=False)
    other = (scan.data.astype(np.float64) * scale + shift * scale * 1000).astype(np.float32)
    found = made_by.prepare(Volume(other, scan.affine)).image
    assert float((found - made_by.prepare(scan).image).abs().max()) < 3e-6


@pytest.mark.parametrize(("scale", "shift"), [(3.7, 11.0), (0.001, 0.5), (40.0, -9000.0)])
def test_labels_of_a_random_network_hardly_depend_on_the_units(scale: float, shift: float) -> None:
    scan, made_by = SCANS["finer"], segmenter(random_model(), ct=False)
    other = Volume((scan.data * scale + shift).astype(np.float32), scan.affine)
    assert share_changed(labels_of(made_by, other), labels_of(made_by, scan)) < 1e-4


# Left and right


def mirrored(scan: Volume) -> Volume:
    return Volume(scan.data[::-1].copy(), scan.affine)


@pytest.mark.parametrize(
    ("shape", "spacing", "most"),
    [
        ((32, 35, 13), 2.0, 0.0),  # as many voxels on either side: exact
        ((64, 67, 22), 1.0, 1e-3),  # resampled from either end: the same grid, sums in another order
    ],
)
def test_a_mirrored_scan_has_left_and_right_exchanged(shape: tuple[int, int, int], spacing: float, most: float) -> None:
    scan = at(blobs(shape), (spacing, spacing, spacing))
    made_by, other_side = segmenter(random_model()), partner_values(small_protocol())
    expected = labels_of(made_by, scan)
    assert {2, 41, 17, 53} <= set(np.unique(expected).tolist())
    found = other_side[labels_of(made_by, mirrored(scan))[::-1]]
    assert share_changed(found, expected) <= most


def test_without_mirror_averaging_a_random_network_knows_no_symmetry() -> None:
    scan = at(blobs((32, 35, 13)), (2.0, 2.0, 2.0))
    made_by, other_side = segmenter(random_model(), flip=False), partner_values(small_protocol())
    found = other_side[labels_of(made_by, mirrored(scan))[::-1]]
    assert share_changed(found, labels_of(made_by, scan)) > 0.1


# A real scan


@pytest.mark.slow
def test_a_real_scan_with_the_shipped_weights(shared) -> None:  # type: ignore[no-untyped-def]
    whole = read_volume(shared / "data" / "validation" / "oasis" / "oasis_1110_t1.nii.gz")
    made_by = Segmenter("default", device="cpu")
    expected = made_by.segment(whole, Want(space="native"))
    assert expected.native is not None
    labels = expected.native.data

    order = ORDERS[29]
    assert share_changed(labels_of(made_by, stored(whole, order)), reordered(labels, order)) == 0
    assert share_changed(labels_of(made_by, Volume(whole.data * np.float32(3.7) + 11, whole.affine)), labels) < 1e-5

    for voxels, most in ((8, 1e-5), (3, 0.08)):  # whole voxels of the network's 2 mm; between them: measured 0.04
        affine = whole.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ np.full(3, voxels)
        wider = Volume(np.pad(whole.data, [(voxels, 0)] * 3), affine)
        assert share_changed(labels_of(made_by, wider)[voxels:, voxels:, voxels:], labels) < most, voxels

    left_right = int(np.abs(whole.affine[0, :3]).argmax())
    other = labels_of(made_by, Volume(np.flip(whole.data, left_right).copy(), whole.affine))
    swapped = partner_values(load_protocol("synthseg-2.0"))[np.flip(other, left_right)]
    assert share_changed(swapped, labels) < 1e-5
