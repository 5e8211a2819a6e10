"""Merging what several networks say of a voxel, and of a whole scan kept sparse."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posterior_helpers import as_sparse, dense_on_grid, plain, random_posteriors
from synthseg.errors import ShapeError
from synthseg.inference import merging
from synthseg.inference.grids import Grid
from synthseg.inference.merging import majority, merge_cleaned, most_confident
from synthseg.inference.sparse import Piece, SparsePosteriors, labels_in_box

GRID = Grid((14, 12, 13), np.eye(4))
VALUES = np.array([0, 10, 20, 30, 40])


def voxel(*posteriors: tuple[float, ...]) -> np.ndarray:
    """[N, C, 1] of one voxel from every network's posteriors."""
    return np.array(posteriors, dtype=np.float32)[:, :, None]


def plain_max(members: np.ndarray) -> np.ndarray:
    """The rule of reference A.8 in loops: of equally sure networks the first, of two the second."""
    merged = np.zeros(members.shape[1:], dtype=members.dtype)
    for n in range(members.shape[2]):
        best = 0
        for other in range(1, len(members)):
            mine, theirs = members[best, :, n].max(), members[other, :, n].max()
            if theirs > mine or (theirs == mine and len(members) == 2):
                best = other
        merged[:, n] = members[best, :, n]
    return merged


def random_members(seed: int, count: int, *, coarse: bool) -> np.ndarray:
    """[N, 5, 200] posteriors; coarse ones are multiples of 1/4, so that many are equal."""
    rng = np.random.default_rng(seed)
    if coarse:
        return (rng.multinomial(4, [0.2] * 5, size=(count, 200)) / 4).transpose(0, 2, 1).astype(np.float32)
    return rng.dirichlet([0.5] * 5, size=(count, 200)).transpose(0, 2, 1).astype(np.float32)


# -- one voxel, by hand (reference G.5)


def test_the_surer_network_gives_the_label_and_all_its_posteriors():
    merged = most_confident(voxel((0.1, 0.6, 0.3), (0.05, 0.2, 0.75), (0.4, 0.35, 0.25)))
    assert merged[:, 0].tolist() == pytest.approx([0.05, 0.2, 0.75])


def test_a_network_that_is_surest_of_background_wins_too():
    merged = most_confident(voxel((0.1, 0.8, 0.1), (0.9, 0.05, 0.05)))
    assert merged[:, 0].argmax() == 0


def test_of_equally_sure_networks_the_first_wins_and_of_two_the_second():
    first, second, third = (0.25, 0.75, 0.0), (0.0, 0.25, 0.75), (0.75, 0.0, 0.25)
    assert most_confident(voxel(first, second))[:, 0].tolist() == list(second)
    assert most_confident(voxel(first, second, third))[:, 0].tolist() == list(first)
    assert most_confident(voxel((0.5, 0.5, 0), second, third))[:, 0].tolist() == list(second)


def test_two_votes_outweigh_a_surer_third():
    members = voxel((0.45, 0.55, 0.0), (0.45, 0.55, 0.0), (0.0, 0.0, 1.0))
    assert majority(members)[:, 0].argmax() == 1
    assert most_confident(members)[:, 0].argmax() == 2


def test_a_draw_goes_to_the_label_with_the_larger_mean():
    assert majority(voxel((0.4, 0.6, 0.0), (0.05, 0.15, 0.8)))[:, 0].argmax() == 2
    assert majority(voxel((0.05, 0.15, 0.8), (0.4, 0.6, 0.0)))[:, 0].argmax() == 2
    assert majority(voxel((0.4, 0.6, 0.0), (0.1, 0.35, 0.55)))[:, 0].argmax() == 1


# -- many voxels, against other ways of saying the same


@given(seed=st.integers(0, 999), count=st.integers(1, 5), coarse=st.booleans())
def test_the_surest_is_found_as_by_the_plain_loop(seed, count, coarse):
    members = random_members(seed, count, coarse=coarse)
    np.testing.assert_array_equal(most_confident(members), plain_max(members))


@given(seed=st.integers(0, 999), count=st.integers(1, 5))
def test_without_ties_its_label_is_the_argmax_of_all_posteriors_grouped_by_class(seed, count):
    members = random_members(seed, count, coarse=False)
    grouped = members.max(axis=0)  # the largest posterior that any network gives each class
    np.testing.assert_array_equal(most_confident(members).argmax(0), grouped.argmax(0))


@given(seed=st.integers(0, 999), count=st.integers(1, 6), coarse=st.booleans())
def test_votes_are_counted_and_draws_broken_by_the_mean(seed, count, coarse):
    members = random_members(seed, count, coarse=coarse)
    merged = majority(members)
    np.testing.assert_allclose(merged.sum(0), 1, atol=1e-5)
    for n in range(members.shape[2]):
        votes = np.bincount(members[:, :, n].argmax(1), minlength=5)
        winners = np.flatnonzero(votes == votes.max())
        mean = members[:, :, n].mean(0)
        assert mean[winners].max() - mean[merged[:, n].argmax()] < 1e-6
        assert merged[:, n].argmax() in winners


# -- whole scans, sparse


def member(rng: np.random.Generator) -> SparsePosteriors:
    """Cleaned posteriors of five channels in a random box of the grid; sometimes nothing at all."""
    if rng.random() < 0.15:
        nowhere = Piece((0,), np.zeros(0, np.int32), np.zeros((1, 0), np.float32))
        return SparsePosteriors(5, (nowhere,), (0, 0, 0), (1, 1, 1), GRID)
    sides = [int(rng.integers(1, n - 3)) for n in GRID.shape]
    start = [int(rng.integers(0, n - side + 1)) for n, side in zip(GRID.shape, sides, strict=True)]
    p = random_posteriors(rng, 5, (sides[0], sides[1], sides[2]))
    p[1:] *= p[1:] > 0.2
    plain.normalise(p)
    return as_sparse(plain.Posteriors(p, (start[0], start[1], start[2]), GRID))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 4), rule=st.sampled_from(["max", "vote"]))
def test_sparse_posteriors_merge_as_dense_ones(seed, count, rule):
    rng = np.random.default_rng(seed)
    members = [member(rng) for _ in range(count)]
    dense = np.stack([dense_on_grid(one).reshape(5, -1) for one in members])
    expected = (plain_max if rule == "max" else majority)(dense).reshape(5, *GRID.shape)
    before = merging.CHUNK_VOXELS
    try:
        merging.CHUNK_VOXELS = 50
        merged = merge_cleaned(members, rule)
    finally:
        merging.CHUNK_VOXELS = before
    np.testing.assert_allclose(dense_on_grid(merged), expected, atol=1e-6)
    labels = np.zeros(GRID.shape, np.int32)
    labels[merged.slices] = labels_in_box(merged, VALUES)
    np.testing.assert_array_equal(labels, VALUES[dense_on_grid(merged).argmax(0)])
    np.testing.assert_allclose(merged.voxels[1:], expected[1:].reshape(4, -1).sum(1), rtol=1e-4, atol=1e-4)
    assert merged.foreground_mm3 == pytest.approx(merged.voxels[1:].sum(), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("rule", ["max", "vote"])
def test_many_channels_are_merged_without_ever_being_dense_all_at_once(rule, monkeypatch):
    monkeypatch.setattr(merging, "CHUNK_VOXELS", 1 << 10)
    side, count = 40, 64
    label = np.random.default_rng(0).integers(1, count, side**3)
    everywhere = [(0, np.arange(side**3)), *((c, np.flatnonzero(label == c)) for c in range(1, count))]
    pieces = tuple(
        Piece((c,), index.astype(np.int32), np.full((1, len(index)), 0.9 if c else 0.1, np.float32))
        for c, index in everywhere
    )
    one = SparsePosteriors(count, pieces, (0, 0, 0), (side,) * 3, Grid((side,) * 3, np.eye(4)))
    tracemalloc.start()
    merged = merge_cleaned([one, one], rule)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(merged.pieces) == count
    assert peak < 0.5 * 4 * count * side**3  # half of all channels of one network


def test_nothing_merged_with_nothing_is_nothing():
    nowhere = Piece((0,), np.zeros(0, np.int32), np.zeros((1, 0), np.float32))
    empty = SparsePosteriors(5, (nowhere,), (0, 0, 0), (1, 1, 1), GRID)
    for rule in ("max", "vote"):
        merged = merge_cleaned([empty, empty], rule)
        assert merged.foreground_mm3 == 0
        assert set(np.unique(dense_on_grid(merged)[1:])) == {0}


def test_other_grids_and_other_channels_are_refused():
    rng = np.random.default_rng(1)
    one = member(rng)
    moved = SparsePosteriors(5, one.pieces, one.start, one.shape, Grid(GRID.shape, np.diag([2.0, 1, 1, 1])))
    fewer = SparsePosteriors(4, one.pieces, one.start, one.shape, GRID)
    for other in (moved, fewer):
        with pytest.raises(ShapeError, match=r"posteriors: found .*one protocol, on one grid"):
            merge_cleaned([one, other], "max")
