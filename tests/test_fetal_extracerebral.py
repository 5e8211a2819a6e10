"""Extra-cerebral labels from images, and centring (reference A.3, G.6); the merge of dHCP's labels (A.1.3, G.4)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import find_objects

from fetal_helpers import fetal_head
from synthseg.anatomies.dhcp import dhcp_to_feta
from synthseg.anatomies.extracerebral import centred, extracerebral_from_image, split_extracerebral
from synthseg.errors import ConfigError, LabelError, ShapeError, VolumeError
from synthseg.generation.config import AnatomyPrior
from synthseg.generation.roles import stripped_values, tissue_values
from synthseg.labels.protocol import load_protocol

DHCP_TO_FETA = {0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 5: 4, 6: 5, 7: 6, 8: 7, 9: 2}  # reference A.1.3


def scan_of(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """An image of a head: tissues by value, four kinds of body around it, air in one corner."""
    rng = np.random.default_rng(seed)
    body = np.array([50.0, 120.0, 200.0, 320.0])[(np.indices(labels.shape) // 8).sum(0) % 4]
    image = np.where(labels > 0, 400.0 + 10 * labels, body) + rng.uniform(-3, 3, labels.shape)
    image[:6, :6, :6] = 0
    return image


# Label 10 from an image


def test_every_shown_background_voxel_becomes_label_ten_and_no_other() -> None:
    labels = fetal_head()
    image = scan_of(labels)
    found = extracerebral_from_image(labels, image)
    assert np.array_equal(found == 10, (labels == 0) & (image != 0))
    assert np.array_equal(found[labels > 0], labels[labels > 0])
    assert (found[:6, :6, :6] == 0).all()


@pytest.mark.parametrize(("value", "becomes"), [(-5e-5, 0), (5e-5, 10), (1e-12, 10), (0.0, 0)])
def test_negative_intensities_next_to_zero_count_as_zero(value: float, becomes: int) -> None:
    labels = np.zeros((3, 3, 3), dtype=np.int32)
    assert (extracerebral_from_image(labels, np.full((3, 3, 3), value)) == becomes).all()


@pytest.mark.parametrize("value", [-1e-4, -1.0, np.nan, np.inf])
def test_images_with_negative_or_missing_intensities_are_refused(value: float) -> None:
    image = np.ones((3, 3, 3))
    image[1, 1, 1] = value
    with pytest.raises(VolumeError, match="sub-01"):
        extracerebral_from_image(np.zeros((3, 3, 3), dtype=int), image, subject="sub-01")


def test_an_image_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match="resample"):
        extracerebral_from_image(np.zeros((3, 3, 3), dtype=int), np.ones((3, 3, 4)))


# The split into 10 to 13


def test_the_split_finds_the_four_intensities_and_stays_inside_label_ten() -> None:
    pytest.importorskip("sklearn")
    labels = fetal_head()
    image = scan_of(labels)
    whole = extracerebral_from_image(labels, image)
    split = split_extracerebral(whole, image)
    outside = whole == 10
    assert np.array_equal(split[~outside], whole[~outside])
    assert set(np.unique(split[outside])) == {10, 11, 12, 13}
    truth = np.digitize(image[outside], [85, 160, 260])  # between the four kinds of body
    pairs = {(a, b) for a, b in zip(truth.tolist(), split[outside].tolist(), strict=True)}
    assert len(pairs) == 4  # each kind has one label


def test_the_split_is_the_same_every_time_and_does_not_depend_on_the_units() -> None:
    pytest.importorskip("sklearn")
    labels = fetal_head()
    image = scan_of(labels)
    whole = extracerebral_from_image(labels, image)
    first = split_extracerebral(whole, image)
    assert np.array_equal(first, split_extracerebral(whole, image))
    assert np.array_equal(first, split_extracerebral(whole, image * 8))


def test_the_split_copes_with_few_intensities_and_no_label_ten() -> None:
    pytest.importorskip("sklearn")
    labels = np.full((4, 4, 4), 10, dtype=np.int32)
    image = np.ones((4, 4, 4))
    assert np.array_equal(split_extracerebral(labels, image), labels)
    image[2:] = 7
    assert len(np.unique(split_extracerebral(labels, image))) == 2
    nothing = np.full((4, 4, 4), 3, dtype=np.int32)
    assert np.array_equal(split_extracerebral(nothing, image), nothing)
    with pytest.raises(ConfigError, match="1 to 4"):
        split_extracerebral(labels, image, parts=5)


# Centring


@given(arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.sampled_from([0, 0, 0, 1, 5])))
def test_centring_loses_no_label_and_leaves_equal_margins(labels: np.ndarray) -> None:
    if not labels.any():
        with pytest.raises(LabelError, match="without labels"):
            centred(labels, side=8)
        return
    cube, start = centred(labels, side=8)
    (box,) = find_objects((labels > 0).astype(int))  # scipy's bounding box
    (there,) = find_objects((cube > 0).astype(int))
    assert np.array_equal(cube[there], labels[box])
    assert np.count_nonzero(cube) == np.count_nonzero(labels)
    for axis in range(3):
        after = 8 - there[axis].stop
        assert after - there[axis].start in (0, 1)  # odd remainders on the high side
        assert box[axis].start - start[axis] == there[axis].start


@given(arrays(np.uint8, st.tuples(*[st.integers(2, 7)] * 3), elements=st.integers(1, 5)))
def test_the_compatibility_switch_loses_the_last_slab_of_each_axis(labels: np.ndarray) -> None:
    cube, _ = centred(labels, side=8, drop_last_slab=True)
    (there,) = find_objects((cube > 0).astype(int))
    assert np.array_equal(cube[there], labels[:-1, :-1, :-1])


def test_labels_longer_than_the_cube_are_refused_or_cut_evenly() -> None:
    labels = np.arange(1, 11, dtype=np.int32).reshape(10, 1, 1) * np.ones((1, 2, 3), dtype=np.int32)
    with pytest.raises(ShapeError, match="for a cube of 6"):
        centred(labels, side=6)
    cube, start = centred(labels, side=6, huge=True)
    assert cube[:, 2, 1].tolist() == [3, 4, 5, 6, 7, 8]
    assert start[0] == 2


# Protocols


def test_dhcp_labels_merge_to_fetas() -> None:
    values = np.arange(10).reshape(1, 2, 5)
    assert dhcp_to_feta(values).ravel().tolist() == [DHCP_TO_FETA[value] for value in range(10)]


@pytest.mark.parametrize("value", [10, 87, -1])
def test_values_that_dhcp_does_not_have_are_refused_by_name(value: int) -> None:
    with pytest.raises(LabelError, match=str(value)):
        dhcp_to_feta(np.full((2, 2, 2), value), subject="sub-02")


def test_a_mask_of_ventricles_is_united_and_larger_labels_stay() -> None:
    values = np.arange(10).reshape(1, 2, 5)
    found = dhcp_to_feta(values, ventricles=np.ones(values.shape, dtype=bool))
    assert found.ravel().tolist() == [max(DHCP_TO_FETA[value], 4) for value in range(10)]
    with pytest.raises(ShapeError, match="mask"):
        dhcp_to_feta(values, ventricles=np.ones((2, 2, 2), dtype=bool))


def test_the_generation_table_predicts_fetas_tissues_and_strips_what_is_around() -> None:
    feta, generation = load_protocol("feta"), load_protocol("feta-generation")
    assert generation.target_values.tolist() == feta.target_values.tolist() == list(range(8))
    extra = [label for label in generation.labels if label.value not in feta.values]
    assert [label.value for label in extra] == [10, 11, 12, 13]
    assert {label.target for label in extra} == {0}
    assert sorted(generation.generation_classes.tolist()) == list(range(12))  # each its own Gaussian
    assert stripped_values(AnatomyPrior(), generation) == (10, 11, 12, 13)
    assert tissue_values(generation) == {"ventricle": (4,), "csf": (1,), "brain": (2, 3, 5, 6, 7)}
    assert set(generation.sides) == {"neutral"}


def test_dhcp_maps_train_a_network_of_fetas_tissues() -> None:
    dhcp = load_protocol("dhcp")
    assert dhcp.target_values.tolist() == list(range(8))
    assert {label.value: label.target for label in dhcp.labels} == DHCP_TO_FETA
