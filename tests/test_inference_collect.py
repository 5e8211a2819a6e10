"""Collecting posteriors slab by slab equals cleaning them up in one dense array."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from inference_helpers import phantom_affine, small_protocol
from posterior_helpers import (
    collect,
    dense_on_grid,
    made_channels,
    near_a_threshold,
    plain,
    random_posteriors,
)
from synthseg.errors import ShapeError
from synthseg.inference.collect import Collector
from synthseg.inference.components import in_largest_component, largest_component
from synthseg.inference.config import InferenceConfig
from synthseg.inference.grids import Grid
from synthseg.inference.modes import MODES
from synthseg.inference.postprocess import clean_posteriors
from synthseg.inference.sparse import Piece, labels_in_box
from synthseg.inference.structures import channels_of
from synthseg.inference.survivors import normalise

DEFAULT, FAST = InferenceConfig(), MODES["fast"]
FACES = ndimage.generate_binary_structure(3, 1)
SIDES = st.tuples(*[st.integers(1, 9)] * 3)
TURNED = np.array([[0.0, -0.8, 0.6], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])  # a rotation: grids need not lie straight


def grid(shape: tuple[int, ...], spacing_mm: tuple[float, ...] = (1, 1, 1), turned: bool = False) -> Grid:
    x, y, z = shape
    return Grid((x, y, z), phantom_affine(spacing_mm, TURNED if turned else None))


def assert_equals_plain(p, padded, fine, channels, config, slab, atol=1e-6) -> None:
    expected = plain.clean_posteriors(p, padded, fine, channels, config)
    found = collect(p, padded, fine, channels, config, slab)
    assert found.start == expected.start
    assert (found.box.shape, found.slices) == (expected.box.shape, expected.slices)
    np.testing.assert_allclose(found.box.affine, expected.box.affine)
    np.testing.assert_allclose(found.dense(), expected.data, rtol=0, atol=atol)
    sums = expected.data.reshape(len(p), -1).sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(found.voxels, sums, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.foreground_mm3, expected.foreground_mm3, rtol=1e-5, atol=1e-4)
    highest = np.sort(expected.data, axis=0)
    clear = highest[-1] - highest[-2] > atol
    labels = labels_in_box(found, channels.values)
    np.testing.assert_array_equal(labels[clear], channels.values[plain.argmax_channels(expected.data)][clear])


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SIDES,
    margin=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 3),
    topology=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    config=st.sampled_from([DEFAULT, FAST, replace(DEFAULT, class_threshold=0.1)]),
    slab=st.integers(1, 20),
)
def test_where_voxels_coincide_the_result_is_the_dense_ones(seed, shape, margin, topology, config, slab):
    padded = grid(tuple(n + a + b for n, (a, b) in zip(shape, margin, strict=True)), turned=True)
    fine = padded.window([a for a, _ in margin], shape)
    p = random_posteriors(np.random.default_rng(seed), len(topology) + 1, padded.shape)
    assume(not near_a_threshold(p, padded, fine, config))
    assert_equals_plain(p, padded, fine, made_channels([0, *topology]), config, slab)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SIDES,
    fine_shape=st.tuples(*[st.integers(1, 20)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.4, 0.5, 0.7, 1.0, 1.3])] * 3),
    offset=st.tuples(*[st.floats(-4, 4)] * 3),
    topology=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    config=st.sampled_from([DEFAULT, FAST, replace(DEFAULT, class_threshold=0.1)]),
    slab=st.integers(1, 9),
)
def test_between_other_grids_the_result_is_the_dense_ones(
    seed, shape, fine_shape, spacing, offset, topology, config, slab
):
    """The fine grid may begin before the working grid, end beyond it, or miss it altogether."""
    padded = grid(shape, (2, 2, 2), turned=True)
    affine = padded.affine @ np.diag([*spacing, 1.0])
    affine[:3, 3] = (padded.affine @ [*offset, 1])[:3]
    fine = Grid(fine_shape, affine)
    p = random_posteriors(np.random.default_rng(seed), len(topology) + 1, shape)
    assume(not near_a_threshold(p, padded, fine, config))
    assert_equals_plain(p, padded, fine, made_channels([0, *topology]), config, slab)


def reference_clean(p: np.ndarray, topology: np.ndarray, config: InferenceConfig) -> np.ndarray:
    """Reference 6.5 word by word, with scipy's labelling, without any box."""
    p = p.astype(np.float64)

    def largest(mask: np.ndarray) -> np.ndarray:
        labelled, count = ndimage.label(mask, structure=FACES)
        return labelled == 1 + np.argmax(np.bincount(labelled.ravel())[1:]) if count else mask

    p[1:] *= largest(p[1:].sum(axis=0) > config.foreground_threshold)
    above = p > config.class_threshold
    if config.topology:
        for group in set(topology.tolist()) - {0}:
            members = topology == group
            p[members] *= largest(above[members].any(axis=0))
    else:
        p[1:] *= p[1:] > config.channel_threshold
    total = p.sum(axis=0)
    p[0][total == 0] = 1
    return p / p.sum(axis=0)


@pytest.mark.parametrize("config", [DEFAULT, FAST], ids=["default", "fast"])
@pytest.mark.parametrize("seed", range(6))
def test_clean_up_is_that_of_the_reference(config, seed):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(7, 24, 20, 22)), (0, 2, 2, 2))
    p = np.exp(60 * noise)
    p = (p / p.sum(axis=0)).astype(np.float32)
    p[:, 3, 3, 3] = 0  # where even background has vanished
    channels = channels_of(small_protocol())
    cleaned = clean_posteriors(p.copy(), grid((24, 20, 22)), grid((24, 20, 22)), channels, config)
    expected = reference_clean(p, channels.topology, config)
    np.testing.assert_allclose(dense_on_grid(cleaned), expected, atol=2e-6)
    np.testing.assert_array_equal(labels_in_box(cleaned, np.arange(7)), cleaned.dense().argmax(axis=0))


@settings(max_examples=150)
@given(mask=hnp.arrays(bool, st.tuples(*[st.integers(1, 7)] * 3)))
def test_largest_component_is_scipys(mask):
    labelled, count = ndimage.label(mask, structure=FACES)
    expected = np.zeros_like(mask)
    if count:
        expected = labelled == 1 + np.argmax(np.bincount(labelled.ravel())[1:])  # ties: first in scan order
    np.testing.assert_array_equal(largest_component(mask), expected)
    index = np.flatnonzero(mask).astype(np.int32)
    np.testing.assert_array_equal(in_largest_component(index, mask.shape), expected.reshape(-1)[index])


def test_of_equal_pieces_the_first_in_scan_order_is_kept():
    p = np.zeros((3, 20, 6, 6), np.float32)
    p[1], p[0] = 0.3, 0.7  # one foreground, so that only the group is in pieces
    p[2, 2:4, 2:4, 2:4] = p[2, 2:4, 2:4, 0] = 0.9
    p[2, 12:14, 1:3, 2:4] = p[2, 12:14, 1:3, 0] = 0.9
    found = collect(p, grid(p.shape[1:]), grid(p.shape[1:]), made_channels([0, 0, 1]), DEFAULT, 3)
    occupied = np.argwhere(dense_on_grid(found)[2] > 0)
    assert (occupied.min(axis=0).tolist(), occupied.max(axis=0).tolist()) == ([2, 2, 2], [3, 3, 3])


def test_topology_group_zero_keeps_all_its_pieces_and_a_group_its_largest():
    p = np.full((3, 9, 3, 3), 0.01, np.float32)
    p[1, :2], p[1, 5:] = 0.9, 0.9
    p[2, :2], p[2, 5:] = 0.9, 0.9
    p[0] = 0
    p[:, 2:5] = np.array([0.1, 0.2, 0.1])[:, None, None, None]  # foreground, below the threshold of both
    data = dense_on_grid(collect(p, grid(p.shape[1:]), grid(p.shape[1:]), made_channels([0, 0, 1]), DEFAULT))
    assert (data[1] > 0).all()
    assert (data[2] > 0).any(axis=(1, 2)).tolist() == [False] * 5 + [True] * 4


def test_members_of_a_group_are_cleaned_as_one_piece():
    p = np.zeros((4, 8, 3, 3), np.float32)
    p[3] = 0.1  # with what follows, all is foreground
    p[0] = 0.05
    p[1, :3], p[2, 3:5] = 0.9, 0.9  # touching: together the largest
    p[1, 6:] = 0.9
    p[3, 5] = 0.4
    p[2, 0] = 0.1  # below the threshold, but inside the component: kept
    found = dense_on_grid(collect(p, grid(p.shape[1:]), grid(p.shape[1:]), made_channels([0, 4, 4, 0]), DEFAULT))
    assert (found[1] > 0).any(axis=(1, 2)).tolist() == [True] * 3 + [False] * 5
    assert (found[2] > 0).any(axis=(1, 2)).tolist() == [True, False, False, True, True, False, False, False]
    assert (found[3] > 0).all()


def test_normalising_nothing_gives_background():
    index = np.arange(4, dtype=np.int32)
    background = Piece((0,), index, np.array([[0, 0, 0.3, 0]], np.float32))
    others = [Piece((c,), index[:1], np.array([[0.4]], np.float32)) for c in (1, 2)]
    normalise([background, *others], (2, 2, 1))
    np.testing.assert_allclose(background.values, [[0, 1, 1, 1]])
    assert [piece.values.tolist() for piece in others] == [[[0.5]], [[0.5]]]


@pytest.mark.parametrize("config", [DEFAULT, FAST], ids=["default", "fast"])
@pytest.mark.parametrize("spacing_mm", [2.0, 1.0])
def test_without_foreground_all_is_background(config, spacing_mm):
    p = np.zeros((3, 4, 5, 6), np.float32)
    p[0], p[1] = 0.8, 0.2
    padded = grid((4, 5, 6), (spacing_mm,) * 3)
    found = collect(p, padded, grid((4, 5, 6)), made_channels([0, 0, 1]), config)
    assert (dense_on_grid(found)[0] == 1).all()
    assert found.foreground_mm3 == 0
    assert found.voxels.tolist() == [1, 0, 0]
    assert labels_in_box(found, np.array([7, 8, 9])).tolist() == [[[7]]]


def test_a_head_touching_the_border_of_its_grid_is_cleaned_like_any_other():
    p = np.zeros((7, 10, 10, 10), np.float32)
    p[5] = 1
    whole = Grid((10, 10, 10), np.eye(4))
    cleaned = clean_posteriors(p, whole, whole, channels_of(small_protocol()), DEFAULT)
    assert cleaned.shape == (10, 10, 10)
    assert (labels_in_box(cleaned, np.arange(7)) == 5).all()


def test_a_window_is_found_where_voxels_coincide_and_only_there():
    whole = grid((8, 9, 10), (1, 2, 3), turned=True)
    part = whole.window((1, 2, 3), (5, 4, 6))
    assert whole.start_of(part) == (1, 2, 3)
    assert whole.start_of(whole.window((1, 2, 3), (5, 4, 8))) is None  # reaches beyond
    assert whole.start_of(whole.window((-1, 2, 3), (5, 4, 6))) is None
    shifted = whole.affine @ np.array([[1, 0, 0, 1.01], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    assert whole.start_of(Grid(part.shape, shifted)) is None


def test_slabs_out_of_order_or_missing_are_refused():
    collector = Collector(grid((4, 3, 3)), grid((4, 3, 3)), made_channels([0, 1]), DEFAULT)
    collector.add(0, torch.zeros(2, 3, 3, 2))
    with pytest.raises(ShapeError, match="planes from 0 on after 2 planes"):
        collector.add(0, torch.zeros(2, 3, 3, 2))
    with pytest.raises(ShapeError, match="2 of 4 planes"):
        collector.finish()
    with pytest.raises(ShapeError, match=r"slab of shape \(2, 3, 3, 5\).*planes are \(3, 3, 2\)"):
        collector.add(2, torch.zeros(2, 3, 3, 5))


def test_grids_that_are_turned_against_each_other_are_refused():
    with pytest.raises(ShapeError, match="turned against each other"):
        Collector(grid((4, 3, 3)), grid((4, 3, 3), turned=True), made_channels([0, 1]), DEFAULT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spacing_mm", [2.0, 1.0])
def test_slabs_on_a_gpu_give_what_they_give_on_the_cpu(spacing_mm):
    p = random_posteriors(np.random.default_rng(3), 5, (9, 8, 7))
    given_ = grid((9, 8, 7), (spacing_mm,) * 3), grid((9, 8, 7)), made_channels([0, 1, 1, 0, 2]), DEFAULT
    collector = Collector(*given_)
    collector.add(0, torch.from_numpy(p).cuda().permute(1, 2, 3, 0))
    np.testing.assert_allclose(collector.finish().dense(), collect(p, *given_).dense(), rtol=0, atol=1e-6)
