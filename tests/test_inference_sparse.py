"""Posteriors without their zeros say on any grid what dense ones say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_helpers import phantom_affine
from posterior_helpers import as_sparse, collect, dense_on_grid, plain, random_posteriors
from synthseg.inference.grids import Grid
from synthseg.inference.postprocess import labels_on, posteriors_on
from synthseg.inference.sparse import Piece, SparsePosteriors, labels_in_box

BOX_AT = (3, 2, 4)


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def random_box(rng: np.random.Generator, shape: tuple[int, int, int]) -> plain.Posteriors:
    """Normalised posteriors in a box inside a larger grid: background, and four channels that are 0 in many voxels."""
    p = random_posteriors(rng, 5, shape)
    p[1:] *= p[1:] > 0.2
    p[:, *[n // 3 for n in shape]] = 0
    plain.normalise(p)
    x, y, z = (n + 8 for n in shape)
    whole = Grid((x, y, z), phantom_affine((1, 1, 1), rotation(25) if rng.random() < 0.5 else None))
    return plain.Posteriors(p, BOX_AT, whole)


def target_grid(
    whole: Grid, shape: tuple[int, int, int], spacing: tuple[float, ...], offset: tuple[float, ...], degrees: float
) -> Grid:
    """Voxels of any size that begin anywhere near the grid's first one, turned by an angle about its third axis."""
    affine = whole.affine.copy()
    affine[:3, :3] = whole.affine[:3, :3] @ rotation(degrees) @ np.diag(spacing)
    affine[:3, 3] = (whole.affine @ [*offset, 1])[:3]
    return Grid(shape, affine)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 8)] * 3),
    target_shape=st.tuples(*[st.integers(1, 14)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.6, 0.7, 1.0, 1.5, 3.0])] * 3),
    offset=st.tuples(*[st.floats(-3, 12)] * 3),
    degrees=st.sampled_from([0, 0, 0, 8.0, 90.0, 180.0]),
)
def test_on_any_grid_labels_and_posteriors_are_the_dense_ones(seed, shape, target_shape, spacing, offset, degrees):
    dense = random_box(np.random.default_rng(seed), shape)
    target = target_grid(dense.grid, target_shape, spacing, offset, degrees)
    expected = plain.posteriors_on(dense, target)
    sparse = as_sparse(dense)
    np.testing.assert_allclose(posteriors_on(sparse, target), expected, rtol=0, atol=1e-6)
    highest = np.sort(expected, axis=0)
    clear = highest[-1] - highest[-2] > 1e-5
    values = np.array([0, 11, 7, 300, 2])
    labels = labels_on(sparse, target, values)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels[clear], values[plain.channels_on(dense, target)][clear])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(*[st.integers(1, 8)] * 3))
def test_on_their_own_grid_they_are_the_dense_ones_to_the_bit(seed, shape):
    dense = random_box(np.random.default_rng(seed), shape)
    sparse = as_sparse(dense)
    np.testing.assert_array_equal(sparse.dense(), dense.data)
    np.testing.assert_array_equal(posteriors_on(sparse, dense.grid), plain.posteriors_on(dense, dense.grid))
    values = np.array([5, 11, 7, 300, 2])
    np.testing.assert_array_equal(labels_in_box(sparse, values), values[dense.data.argmax(axis=0)])
    np.testing.assert_array_equal(labels_on(sparse, dense.grid, values), values[plain.channels_on(dense, dense.grid)])
    np.testing.assert_allclose(sparse.voxels, dense.data.sum(axis=(1, 2, 3), dtype=np.float64), rtol=1e-12)


def test_ties_go_to_the_lowest_channel_whatever_the_order_of_the_pieces():
    index = np.arange(6, dtype=np.int32)

    def piece(*channels: int) -> Piece:
        return Piece(channels, index, np.full((len(channels), 6), 0.2, np.float32))

    nothing = Piece((0,), index, np.zeros((1, 6), np.float32))
    whole = Grid((1, 2, 3), np.eye(4))
    mixed = SparsePosteriors(6, (nothing, piece(2, 5), piece(1, 4), piece(3)), (0, 0, 0), (1, 2, 3), whole)
    assert (labels_in_box(mixed, np.arange(6)) == 1).all()
    finer = Grid((1, 3, 4), np.diag([1, 0.5, 0.5, 1]))
    assert (labels_on(mixed, finer, np.arange(6)) == 1).all()


def test_a_channel_that_is_nowhere_is_0_everywhere():
    nothing = Piece((0,), np.zeros(0, np.int32), np.zeros((1, 0), np.float32))
    empty = SparsePosteriors(3, (nothing,), (1, 0, 0), (1, 1, 1), Grid((2, 2, 2), np.eye(4)))
    assert empty.foreground_mm3 == 0
    for target in (empty.grid, Grid((3, 3, 3), np.diag([0.5, 0.5, 0.5, 1])), Grid((2, 2, 2), phantom_affine())):
        found = posteriors_on(empty, target)
        assert (found[0] == 1).all()
        assert not found[1:].any()
        assert (labels_on(empty, target, np.array([4, 5, 6])) == 4).all()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "fast"])
def test_of_a_real_head_labels_volumes_and_posteriors_are_the_dense_ones(shared, mode, monkeypatch):
    """The shipped network's posteriors of an average brain at 2 mm, on the 1 mm grid and on an anisotropic one."""
    from synthseg.inference import Segmenter, passes
    from synthseg.inference.collect import Collector

    seen: list[tuple[tuple, np.ndarray]] = []

    class Recording(Collector):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            seen.append((given, np.empty((len(given[2]), *given[0].shape), np.float32)))

        def add(self, start, slab) -> None:
            seen[-1][1][:, start : start + len(slab)] = slab.permute(3, 0, 1, 2).cpu().numpy()
            super().add(start, slab)

    monkeypatch.setattr(passes, "Collector", Recording)
    scan = shared / "data" / "validation" / "mni" / "mni152lin_2mm_t1.nii.gz"
    segmentation = Segmenter(mode=mode).segment(scan)
    (padded, fine, channels, config), p = seen[-1]
    expected = plain.clean_posteriors(p, padded, fine, channels, config)
    found = collect(p, padded, fine, channels, config, slab=16)
    # Rounding decides in a few of millions of voxels whether a posterior is above a threshold.
    apart = np.abs(dense_on_grid(found) - dense_on_grid(expected)).max(axis=0) > 1e-6
    assert apart.sum() <= 5
    labels = labels_in_box(found, channels.values)
    assert (labels != channels.values[plain.argmax_channels(expected.data)]).sum() <= 5
    for value, sum_ in zip(channels.values[1:], expected.data[1:].sum(axis=(1, 2, 3), dtype=np.float64), strict=True):
        assert segmentation.volumes_mm3[value] == pytest.approx(sum_ * fine.voxel_volume_mm3, rel=1e-5)
    native = replace(fine, shape=(120, 200, 60), affine=fine.affine @ np.diag([1.3, 0.8, 3, 1]))
    differ = labels_on(found, native, channels.values) != channels.values[plain.channels_on(expected, native)]
    assert differ.sum() <= 5
