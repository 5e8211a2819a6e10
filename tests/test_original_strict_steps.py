"""The original's smoothing, clean-up, sums, parcels and quality window, step by step on small arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from plus_helpers import PARCELS, STRUCTURES
from synthseg.inference.bundle import parcel_structures
from synthseg.inference.model import Model
from synthseg.inference.original.clean import clean, keep_channels, keep_foreground, keep_topology, normalise
from synthseg.inference.original.networks import smoothed
from synthseg.inference.original.parcels import divide_cortex
from synthseg.inference.original.quality import original_window
from synthseg.inference.original.sums import RunningSums, volume_table
from synthseg.inference.predict import smoothing_weights
from synthseg.inference.structures import channels_of
from synthseg.labels import load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.volumes.window import crop_pad

CHANNELS = channels_of(STRUCTURES)
CHANNEL = {int(value): channel for channel, value in enumerate(CHANNELS.values)}
WHOLE = (slice(None), slice(None), slice(None))


def background(*shape: int, channels: int = 33) -> np.ndarray:
    posteriors = np.zeros((*shape, channels), np.float32)
    posteriors[..., 0] = 1
    return posteriors


def random_posteriors(seed: int, shape: tuple[int, ...], channels: int = 33, sharpness: float = 6) -> np.ndarray:
    """Few channels at a time, in blobs: pieces of every size."""
    rng = np.random.default_rng(seed)
    logits = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 1.2) for _ in range(channels)], -1)
    exponents = np.exp(sharpness * logits / logits.std())
    return (exponents / exponents.sum(-1, keepdims=True)).astype(np.float32)


def originals_largest(mask: np.ndarray) -> np.ndarray:
    """Largest piece by 6 neighbours with scipy; of equals the first label."""
    pieces, count = ndimage.label(mask)
    return pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1 if count else mask


def test_smoothing_weights_are_the_originals() -> None:
    outer, centre = smoothing_weights(0.5)
    assert outer == pytest.approx(0.10650698, abs=5e-9)
    assert centre == pytest.approx(0.78698604, abs=5e-9)


def test_posteriors_are_smoothed_by_a_dense_kernel_with_zeros_beyond_the_image() -> None:
    posteriors = random_posteriors(0, (12, 9, 10), channels=3)
    network = UNet(UNetConfig(out_channels=33, features=2, levels=2))
    model = Model.from_network(network, STRUCTURES, spacing_mm=1.0)
    slabs = ((start, torch.from_numpy(posteriors[start : start + 4].copy())) for start in (0, 4, 8))
    got = torch.cat([slab for _, slab in smoothed(slabs, model, 0.5, "scan")]).numpy()
    one = np.exp(-0.5 * (np.array([-1.0, 0, 1]) / 0.5) ** 2)
    dense = np.einsum("i,j,k->ijk", one, one, one) / one.sum() ** 3
    for channel in range(3):
        expected = ndimage.correlate(posteriors[..., channel].astype(np.float64), dense, mode="constant")
        np.testing.assert_allclose(got[..., channel], expected, atol=2e-7)
    corner = ndimage.correlate(np.ones((3, 3, 3)), dense, mode="constant")[0, 0, 0]
    assert got[0, 0, 0].sum() == pytest.approx(corner, abs=1e-6)  # the rim loses mass
    assert corner < 0.72


def test_the_first_of_two_equal_pieces_stays() -> None:
    posteriors = background(9, 4, 4)
    for planes in (slice(1, 3), slice(5, 7)):
        posteriors[planes, 1:3, 1:3] = 0
        posteriors[planes, 1:3, 1:3, 13] = 1
    keep_foreground(posteriors)
    assert posteriors[..., 13].sum() == 8
    assert posteriors[1:3, 1:3, 1:3, 13].all()
    assert posteriors[5:7, 1:3, 1:3].sum() == 0  # background is left as it was


def test_the_foreground_exceeds_a_quarter_and_touches_by_faces() -> None:
    posteriors = background(6, 6, 6)
    posteriors[1:3, 1, 1] = 0
    posteriors[1, 1, 1, (0, 1, 2)] = 0.7, 0.125, 0.175
    posteriors[2, 1, 1, (0, 1, 2)] = 0.7, 0.25, 0.05
    posteriors[3, 1, 1, 1] = 0.25  # does not exceed it
    posteriors[2, 2, 2, 1] = 0.9  # touches by an edge only
    keep_foreground(posteriors)
    assert np.argwhere(posteriors[..., 1:].any(-1)).tolist() == [[1, 1, 1], [2, 1, 1]]
    assert posteriors[2, 2, 2, 0] == 1
    nothing = background(4, 4, 4)
    nothing[2, 2, 2, 5] = 0.2
    keep_foreground(nothing)
    assert not nothing[..., 1:].any()


def test_a_class_is_kept_where_any_member_exceeds_a_quarter_csf_everywhere() -> None:
    posteriors = background(10, 5, 5)
    cortex, white = CHANNEL[3], CHANNEL[2]
    posteriors[1:4, 2, 2, white] = 0.6
    posteriors[4, 2, 2, cortex] = 0.3  # one piece with the white matter, class 4
    posteriors[5, 2, 2, (cortex, white)] = 0.25, 0.25  # not exceeded by any, together they would be
    posteriors[7:9, 2, 2, cortex] = 0.9  # the smaller piece
    posteriors[:, :, :, CHANNEL[24]] = 0.1
    posteriors[8, 4, 4, CHANNEL[24]] = 0.9
    keep_topology(posteriors, CHANNELS)
    kept = posteriors[..., [cortex, white]].any(-1)
    assert np.argwhere(kept).tolist() == [[x, 2, 2] for x in (1, 2, 3, 4)]
    assert posteriors[..., CHANNEL[24]].sum() == pytest.approx(24.9 + 0.9, rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31))
def test_clean_up_agrees_with_scipys_labels_class_by_class(seed: int) -> None:
    posteriors = random_posteriors(seed, (12, 11, 10))
    expected = posteriors.copy()
    expected[..., 1:] *= originals_largest(expected[..., 1:].sum(-1) > 0.25)[..., None]
    masks = expected > 0.25
    for group in range(1, 24):
        members = np.flatnonzero(CHANNELS.topology == group)
        expected[..., members] *= originals_largest(masks[..., members].any(-1))[..., None]
    clean(posteriors, WHOLE, CHANNELS, topology=True)
    np.testing.assert_array_equal(posteriors, expected)


def test_without_topology_channels_exceed_a_fifth_and_the_padding_does_not_count() -> None:
    posteriors = random_posteriors(3, (12, 11, 10))
    inside = (slice(2, 10), slice(1, 11), slice(0, 9))
    expected = posteriors[inside].copy()
    expected[..., 1:] *= originals_largest(expected[..., 1:].sum(-1) > 0.25)[..., None]
    expected[..., 1:] *= expected[..., 1:] > 0.2
    clean(posteriors, inside, CHANNELS, topology=False)
    np.testing.assert_array_equal(posteriors[inside], expected)
    edge = background(4, 4, 4)
    edge[2, 2, 2, (1, 2, 0)] = np.float32(0.2), np.nextafter(np.float32(0.2), np.float32(1)), 0.1
    keep_channels(edge)
    assert edge[2, 2, 2, 1] == 0
    assert edge[2, 2, 2, 2] > 0
    assert edge[2, 2, 2, 0] == np.float32(0.1)  # background has no threshold


def test_a_voxel_with_nothing_left_becomes_background() -> None:
    posteriors = random_posteriors(0, (4, 5, 6))
    posteriors[1, 2, 3] = 0
    posteriors[0, 0, 0, :] = 0.01
    with np.errstate(invalid="ignore"):
        expected = posteriors / posteriors.sum(-1, keepdims=True)
    assert normalise(posteriors) == 1
    there = np.isfinite(expected).all(-1)
    np.testing.assert_array_equal(posteriors[there], expected[there])
    assert expected[1, 2, 3].argmax() == 0  # of NaN the first is the maximum: the label is the original's
    assert posteriors[1, 2, 3].tolist() == [1] + [0] * 32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 32, 68])
def test_sums_grow_by_one_voxel_after_the_other(channels: int, dtype: type) -> None:
    values = np.random.default_rng(channels).random((9, 50, 60, channels)).astype(np.float32)
    sums = RunningSums(channels, dtype)
    for plane in values:
        sums.add(plane)
    expected = np.add.accumulate(values.reshape(-1, channels).astype(dtype), axis=0)[-1]
    assert sums.sums.dtype == dtype
    np.testing.assert_array_equal(sums.sums, expected)
    # numpy itself adds up a dense [X, Y, Z, C] so: what the original does
    if channels > 1:
        np.testing.assert_array_equal(sums.sums, values.sum(axis=(0, 1, 2), dtype=dtype))
        # and so it does without the first channel and the padding, whatever the order of the axes
        padded = np.zeros((11, 54, 61, channels + 1), np.float32)
        padded[1:-1, 2:-2, 1:, 1:] = values
        turned = padded[1:-1, 2:-2, 1:].transpose(2, 0, 1, 3)
        np.testing.assert_array_equal(sums.sums, turned[..., 1:].sum(axis=(0, 1, 2), dtype=dtype))


def test_many_voxels_in_single_precision_sum_to_less() -> None:
    values = np.full((40, 250, 200, 2), 0.9999, np.float32)
    sums = RunningSums(2)
    for plane in values:
        sums.add(plane)
    exact = values[..., 0].sum(dtype=np.float64)
    assert 1e-6 < abs(sums.sums[0] / exact - 1) < 2e-2


def test_volumes_are_rounded_in_the_precision_of_their_sums() -> None:
    sums = np.random.default_rng(0).random(32).astype(np.float32) * 1e4
    size = np.multiply.reduce(np.array([1.02, 0.98, 1.01], np.float32))
    table = volume_table(sums, CHANNELS, size)
    assert list(table)[:3] == ["total intracranial", "left cerebral white matter", "left cerebral cortex"]
    assert list(table)[16:18] == ["csf", "left accumbens area"]
    assert list(table)[-1] == "right ventral DC"
    assert len(table) == 33
    assert all(isinstance(value, np.float32) for value in table.values())
    assert table["left cerebral cortex"] == np.around(sums[1] * size, 3)
    assert table["total intracranial"] == np.around(sums.sum() * size, 3)
    double = volume_table(sums.astype(np.float64), CHANNELS, size)
    assert all(type(value) is float for value in double.values())
    assert double["csf"] == round(float(sums[15]) * float(size), 3)


def test_the_first_release_has_no_total() -> None:
    channels = channels_of(load_protocol("synthseg-1.0"))
    table = volume_table(np.ones(31, np.float32), channels, np.float32(1))
    assert next(iter(table)) == "left cerebral white matter"
    assert len(table) == 31
    assert "csf" not in table


def test_parcels_add_up_to_the_cortex_of_both_sides_together() -> None:
    model = Model.from_network(
        UNet(UNetConfig(in_channels=3, out_channels=69, features=2, levels=2)), PARCELS, spacing_mm=1, role="parcels"
    )
    sums = np.zeros(32, np.float32)
    sums[CHANNEL[3] - 1], sums[CHANNEL[42] - 1] = 100, 300
    parcel_sums = np.zeros(68, np.float32)
    parcel_sums[[0, 40]] = 60, 20
    table = volume_table(sums, CHANNELS, np.float32(1), parcel_sums, parcel_structures(model))
    assert table["ctx-lh-bankssts"] == 300  # joint, so that the left gets what is cortex of the right
    assert sum(value for name, value in table.items() if name.startswith("ctx-")) == 400
    assert table["total intracranial"] == 400  # the parcels are no structures of their own
    assert len(table) == 33 + 68
    empty = volume_table(sums, CHANNELS, np.float32(1), np.zeros(68, np.float32), parcel_structures(model))
    assert empty["ctx-lh-bankssts"] == 0


def test_cortex_becomes_parcels_and_what_lies_outside_still_counts() -> None:
    rng = np.random.default_rng(0)
    shape, inside = (8, 8, 8), (slice(2, 7), slice(1, 7), slice(0, 8))
    posteriors = random_posteriors(1, shape, channels=69)
    values = channels_of(PARCELS).values
    labels = rng.choice([0, 2, 3, 42], (5, 6, 8)).astype(np.int32)
    cortex = np.isin(labels, (3, 42))
    expected = posteriors[inside].copy()
    expected[..., 0] = ~cortex
    expected /= expected.sum(-1, keepdims=True)
    wanted = labels.copy()
    wanted[cortex] = values[expected.argmax(-1)[cortex]]

    def slabs() -> Iterator[tuple[int, np.ndarray]]:
        for start, stop in ((0, 3), (3, 4), (4, 8)):
            yield start, posteriors[start:stop].copy()

    sums, empty = divide_cortex(labels, slabs(), inside, values, np.float32)
    np.testing.assert_array_equal(labels, wanted)
    np.testing.assert_array_equal(sums, np.add.accumulate(expected[..., 1:].reshape(-1, 68))[-1])
    assert expected[~cortex][..., 1:].sum() > 1  # leakage
    assert empty == 0
    assert set(np.unique(labels[cortex])) <= set(values[1:].tolist())


def window_of(*boxes: tuple[int, tuple[slice, slice, slice]], side: int = 16) -> np.ndarray:
    winners = np.zeros((32, 32, 32), np.uint8)
    for channel, box in boxes:
        winners[box] = channel
    window = original_window(winners, (side, side, side))
    return crop_pad(winners, window.start, window.shape)


def extent(mask: np.ndarray) -> list[tuple[int, int]]:
    return [
        (int(np.flatnonzero(mask.any(axis=other)).min()), int(np.flatnonzero(mask.any(axis=other)).max()))
        for other in ((1, 2), (0, 2), (0, 1))
    ]


def test_the_quality_window_leaves_channel_24_out_and_keeps_csf() -> None:
    low, high = (slice(4, 8),) * 3, (slice(20, 30),) * 3
    seen = window_of((16, low), (24, high))
    assert (seen == 16).sum() == 64
    assert (seen == 24).sum() == 0


def test_the_quality_window_puts_odd_voxels_where_the_original_does() -> None:
    seen = window_of((5, (slice(2, 9), slice(10, 20), slice(0, 32))))
    assert extent(seen > 0) == [(5, 11), (3, 12), (0, 15)]
    corner = window_of((5, (slice(0, 1),) * 3))
    assert np.argwhere(corner).tolist() == [[8, 8, 8]]


def test_the_quality_window_of_nothing_begins_where_the_image_does() -> None:
    winners = np.full((40, 20, 30), 24, np.uint8)
    winners[5] = 0
    window = original_window(winners, (32, 32, 32))
    assert window.start == (0, 0, 0)
    assert window.shape == (32, 32, 32)
