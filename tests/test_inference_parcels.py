"""Cortical parcels: on the cortex only, each on its own side, and of volumes that add up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from plus_helpers import (
    EXACT,
    PARCELS,
    VALUES,
    NoiseParcels,
    Slabs,
    hierarchy_models,
    painted,
    parcels_model,
    scan_of,
    structures_model,
)
from synthseg.errors import InvariantError
from synthseg.inference import InferenceConfig, Segmentation, Segmenter, Want
from synthseg.inference.bundle import parcel_structures
from synthseg.inference.grids import Grid
from synthseg.inference.parcels import CHUNK, Parcels, scaled_to_cortex
from synthseg.inference.segmentation import check_invariants, choose_structures, merge_sides
from synthseg.inference.structures import find_structures

STRUCTURES_OF = parcel_structures(parcels_model())
LEFT = np.array([s.value for s in STRUCTURES_OF if s.side == "left"])
RIGHT = np.array([s.value for s in STRUCTURES_OF if s.side == "right"])


def without_parcels(labels: np.ndarray) -> np.ndarray:
    return np.where(np.isin(labels, LEFT), 3, np.where(np.isin(labels, RIGHT), 42, labels))


def segmented(network: torch.nn.Module, want: Want | None = None, **config: object) -> Segmentation:
    segmenter = Segmenter(structures_model(), config=replace(EXACT, **config), parcels=parcels_model(network))
    return segmenter.segment(scan_of(painted()), want)


def random_parcels(seed: int, shape: tuple[int, int, int], affine: np.ndarray) -> Parcels:
    rng = torch.Generator().manual_seed(seed)
    return Parcels(torch.softmax(3 * torch.randn(69, *shape, generator=rng), 0), Grid(shape, affine), STRUCTURES_OF)


# -- dividing the cortex


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), spacing=st.sampled_from([0.7, 1.0, 1.6, 2.0]), shift=st.floats(-1, 1))
def test_every_cortical_voxel_takes_the_best_parcel_of_its_own_side(seed, spacing, shift):
    rng = np.random.default_rng(seed)
    working = np.diag([2.0, 2, 2, 1])
    working[:3, 3] = rng.uniform(-20, 20, 3)
    parcels = random_parcels(seed, (8, 9, 7), working)
    shape = tuple(int(n * 2 / spacing) for n in (8, 9, 7))
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = working[:3, 3] + shift
    labels = rng.choice([0, 2, 3, 24, 42], size=shape, p=[0.4, 0.2, 0.15, 0.1, 0.15])
    divided = labels.copy()
    weights = {3: rng.random(shape, np.float32), 42: rng.random(shape, np.float32)}
    sums = parcels.divide(divided, Grid(shape, affine), weights)

    np.testing.assert_array_equal(without_parcels(divided), labels)  # nothing but the cortex, and no side mixed up
    for cortex, members in ((3, LEFT), (42, RIGHT)):
        voxels = np.argwhere(labels == cortex)
        move = np.linalg.inv(working) @ affine
        places = (voxels @ move[:3, :3].T + move[:3, 3]).T
        first = 1 if cortex == 3 else 35
        own = parcels.posteriors.numpy()[first : first + 34]
        found = np.array([map_coordinates(channel, places, order=1, mode="nearest") for channel in own])
        best = members[found.argmax(0)]
        assert np.mean(best == divided[labels == cortex]) > 0.999  # rounding may decide between near equals
        shares = found / found.sum(0) * weights[cortex][labels == cortex]
        np.testing.assert_allclose([sums[value] for value in members], shares.sum(1), rtol=1e-4, atol=1e-5)
        assert sum(sums[value] for value in members) == pytest.approx(weights[cortex][labels == cortex].sum(), rel=1e-5)


def test_many_voxels_are_sampled_in_pieces_to_the_same_end(monkeypatch):
    labels = np.where(np.random.default_rng(0).random((20, 20, 20)) < 0.5, 3, 42)
    parcels = random_parcels(1, (10, 10, 10), np.diag([2.0, 2, 2, 1]))
    grid, weights = Grid(labels.shape, np.eye(4)), dict.fromkeys((3, 42), np.ones(labels.shape, np.float32))
    assert labels.size < CHUNK
    whole, pieces = labels.copy(), labels.copy()
    expected = parcels.divide(whole, grid, weights)
    monkeypatch.setattr("synthseg.inference.parcels.CHUNK", 100)
    assert parcels.divide(pieces, grid, weights) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(pieces, whole)


def test_where_no_parcel_of_the_side_was_seen_the_nearest_voxels_holds():
    posteriors = torch.zeros(69, 12, 4, 4)
    posteriors[0] = 1
    posteriors[:, 0, 0, 0], posteriors[:, 11, 0, 0] = 0, 0
    posteriors[5, 0, 0, 0], posteriors[9, 11, 0, 0] = 1, 1
    posteriors[:, 5, 0, 0], posteriors[40, 5, 0, 0] = 0, 1  # a right parcel does not count
    labels = np.zeros((12, 4, 4), np.int64)
    labels[:, 0, 0] = 3
    parcels = Parcels(posteriors, Grid((12, 4, 4), np.eye(4)), STRUCTURES_OF, "scan.nii")
    sums = parcels.divide(
        labels, Grid((12, 4, 4), np.eye(4)), dict.fromkeys((3, 42), np.ones(labels.shape, np.float32))
    )
    assert labels[:, 0, 0].tolist() == [LEFT[4]] * 6 + [LEFT[8]] * 6
    assert (sums[int(LEFT[4])], sums[int(LEFT[8])]) == (6, 6)
    posteriors[1:35] = 0
    labels[:, 0, 0] = 3
    with pytest.raises(InvariantError, match=r"scan\.nii: found no left parcel anywhere in the left cerebral cortex"):
        parcels.divide(labels, Grid((12, 4, 4), np.eye(4)))


def test_a_cortex_that_wins_no_voxel_still_shares_out_its_volume():
    parcels = random_parcels(0, (6, 6, 6), np.eye(4))
    labels = np.full((6, 6, 6), 2)
    faint = np.zeros((6, 6, 6), np.float32)
    faint[1, 2, 3] = 0.25
    sums = parcels.divide(labels, Grid((6, 6, 6), np.eye(4)), {3: faint, 42: np.zeros_like(faint)})
    assert (labels == 2).all()
    assert sum(sums[value] for value in LEFT.tolist()) == pytest.approx(0.25)
    assert sum(sums[value] for value in RIGHT.tolist()) == 0


# -- in the pipeline


def test_parcels_replace_the_cortex_and_nothing_else():
    labels = painted()
    network = Slabs()
    result = segmented(network)
    np.testing.assert_array_equal(without_parcels(result.labels.data), labels)
    slab = np.broadcast_to((np.arange(60) * 34 // 60)[None, :, None], labels.shape)
    np.testing.assert_array_equal(result.labels.data[labels == 3], LEFT[slab[labels == 3]])
    np.testing.assert_array_equal(result.labels.data[labels == 42], RIGHT[slab[labels == 42]])
    (seen,) = network.seen  # the image, not cortex, cortex: once, never mirrored
    assert torch.equal(seen[0, 2].bool(), torch.from_numpy(np.isin(labels, (3, 42))))
    assert torch.equal(seen[0, 1] + seen[0, 2], torch.ones(labels.shape))
    assert "parcels" in result.timings_s


def test_what_the_network_says_beyond_the_cortex_it_was_shown_counts_for_nothing():
    class Raving(Slabs):
        def forward(self, x):
            said = super().forward(x)
            noise = 40 * torch.randn(said.shape, generator=torch.Generator().manual_seed(0))
            return torch.where(x[:, 2:3] > 0, said, noise)

    scan = scan_of(painted((48, 48, 16)), np.diag([1.4, 1.4, 1.4, 1.0]))
    calm, raving = (
        Segmenter(
            structures_model(2.0),
            config=InferenceConfig(percentiles=(0, 100), flip=False),  # with which both hemispheres are shown
            parcels=parcels_model(network, spacing_mm=2.0),
        ).segment(scan)
        for network in (Slabs(), Raving())
    )
    assert np.isin(calm.labels.data, LEFT).any()
    assert np.isin(calm.labels.data, RIGHT).any()
    np.testing.assert_array_equal(raving.labels.data, calm.labels.data)
    assert raving.volumes_mm3 == pytest.approx(calm.volumes_mm3, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("split", [0.0, 0.3, 1.0])  # where the network takes the middle to be
def test_a_parcel_of_the_other_side_never_lies_in_a_hemisphere(split):
    result = segmented(Slabs(split))
    np.testing.assert_array_equal(without_parcels(result.labels.data), painted())
    if split == 0.3:  # the network calls the inner half of the left cortex right: its outer half knows better
        slab = (np.arange(60) * 34 // 60)[None, :, None]
        inner = np.zeros(painted().shape, bool)
        inner[20:31] = painted()[20:31] == 3
        error = np.abs(np.searchsorted(LEFT, result.labels.data) - slab)[inner]
        assert inner.sum() > 1000
        assert np.quantile(error, 0.9) <= 3


def test_volumes_of_parcels_add_up_to_the_cortex_and_the_total_counts_nothing_twice():
    alone = Segmenter(structures_model(), config=EXACT).segment(scan_of(painted()))
    for scaling in ("hemisphere", "joint"):
        result = segmented(NoiseParcels(), parcel_scaling=scaling)
        assert {value: result.volumes_mm3[value] for value in alone.volumes_mm3} == alone.volumes_mm3
        assert result.total_mm3 == alone.total_mm3
        left, right = (sum(result.volumes_mm3[v] for v in side.tolist()) for side in (LEFT, RIGHT))
        assert left + right == pytest.approx(alone.volumes_mm3[3] + alone.volumes_mm3[42], rel=1e-6)
        if scaling == "hemisphere":
            assert left == pytest.approx(alone.volumes_mm3[3], rel=1e-6)
            assert right == pytest.approx(alone.volumes_mm3[42], rel=1e-6)
        assert list(result.volumes_mm3) == [*VALUES[1:].tolist(), *PARCELS.target_values[1:].tolist()]
        assert list(result.volumes_by_name())[-1] == "ctx-rh-insula"


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1e4), min_size=68, max_size=68), st.floats(1, 1e6), st.floats(1, 1e6))
def test_scaling_keeps_proportions_within_a_hemisphere_or_over_both(amounts, left, right):
    sums = dict(zip((s.value for s in STRUCTURES_OF), amounts, strict=True))
    volumes = {3: left, 42: right}
    each = scaled_to_cortex(sums, STRUCTURES_OF, volumes)
    both = scaled_to_cortex(sums, STRUCTURES_OF, volumes, joint=True)
    for result, groups in ((each, [(LEFT, left), (RIGHT, right)]), (both, [([*LEFT, *RIGHT], left + right)])):
        for members, whole in groups:
            given_sum = sum(sums[int(v)] for v in members)
            if given_sum > 1e-6:
                assert sum(result[int(v)] for v in members) == pytest.approx(whole, rel=1e-9)
                assert result[int(members[0])] == pytest.approx(sums[int(members[0])] * whole / given_sum, rel=1e-9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 2.0), (0.9, 1.0, 1.0)])
def test_parcels_lie_on_cortex_and_side_on_every_grid_and_volumes_are_the_same(spacing):
    labels = painted((48, 48, 16))
    scan = scan_of(labels, np.diag([*np.array([1.5, 1.5, 1.5]) * spacing, 1.0]))
    segmenter = Segmenter(structures_model(2.0), "fast", parcels=parcels_model(NoiseParcels(), spacing_mm=2.0))
    plain = Segmenter(structures_model(2.0), "fast")
    results = [segmenter.segment(scan, Want(space=space)) for space in ("native", "1mm", "both")]
    assert results[0].volumes_mm3 == results[1].volumes_mm3 == results[2].volumes_mm3
    for result, space in zip(results, ("native", "1mm", "both"), strict=True):
        expected = plain.segment(scan, Want(space=space))
        for own, without in zip(result.label_maps, expected.label_maps, strict=True):
            np.testing.assert_array_equal(without_parcels(own.data), without.data)
    np.testing.assert_array_equal(results[2].native.data, results[0].native.data)
    np.testing.assert_array_equal(results[2].fine.data, results[1].fine.data)


def test_parcels_work_in_robust_mode_and_the_same_twice():
    segmenter = Segmenter(hierarchy_models(), "robust", config=EXACT, parcels=parcels_model(NoiseParcels()))
    first, second = (segmenter.segment(scan_of(painted())) for _ in range(2))
    np.testing.assert_array_equal(first.labels.data, second.labels.data)
    assert first.volumes_mm3 == second.volumes_mm3
    np.testing.assert_array_equal(np.isin(first.labels.data, [*LEFT, *RIGHT]), np.isin(painted(), (3, 42)))


def test_invariants_catch_parcels_that_do_not_add_up():
    good = segmented(NoiseParcels(), Want(posteriors=True))
    brain = float((1 - good.posteriors.data[0].astype(float)).sum())
    check_invariants(good, brain)
    volumes = {**good.volumes_mm3, 1001: good.volumes_mm3[1001] + 50}
    with pytest.raises(InvariantError, match="parcels that add up to"):
        check_invariants(replace(good, volumes_mm3=volumes), brain)
    moved = {**volumes, 2001: volumes[2001] - 50}
    check_invariants(replace(good, volumes_mm3=moved), brain, joint=True)
    with pytest.raises(InvariantError, match="parcels that add up to"):
        check_invariants(replace(good, volumes_mm3=moved), brain)


# -- choosing and merging


@pytest.mark.parametrize(
    ("wanted", "values"),
    [
        ("ctx-lh-cuneus", [1005]),
        ("cuneus", [1005, 2005]),
        ("ctx-cuneus", [1005, 2005]),
        ("rh-insula", [2035]),
        ("1005", [1005]),
        ("left cerebral cortex", [3]),
    ],
)
def test_parcels_are_found_by_name_and_value(wanted, values):
    structures = Segmenter(structures_model(), parcels=parcels_model()).structures
    assert [s.value for s in find_structures([wanted], structures)] == values


def test_a_chosen_cortex_keeps_the_parcels_that_were_not_chosen():
    whole = segmented(Slabs(), Want(posteriors=True))
    chosen = choose_structures(whole, ["left cerebral cortex", "ctx-lh-cuneus", "thalamus"])
    labels = painted()
    expected = np.where(np.isin(labels, (3, 10, 49)), labels, 0)
    expected[whole.labels.data == 1005] = 1005
    np.testing.assert_array_equal(chosen.labels.data, expected)
    assert chosen.total_mm3 == whole.total_mm3
    assert set(chosen.volumes_mm3) == {3, 10, 49, 1005}
    assert [s.value for s in chosen.posterior_structures] == [0, 3, 10, 49]
    np.testing.assert_allclose(chosen.posteriors.data.sum(axis=0), 1, atol=1e-5)
    missing = "of the chosen structures these have no posteriors, being parcels: ctx-lh-cuneus"
    assert chosen.notes == (*whole.notes, missing)  # all were found
    only = choose_structures(whole, ["cuneus"])
    assert only.notes == (*whole.notes, f"{missing}, ctx-rh-cuneus")
    assert choose_structures(whole, ["thalamus"]).notes == whole.notes
    assert choose_structures(replace(whole, posteriors=None), ["cuneus"]).notes == whole.notes
    assert set(np.unique(only.labels.data)) == {0, 1005, 2005}
    assert only.posteriors.data.shape[0] == 1


def test_a_cortex_whose_parcels_were_all_chosen_was_found():
    whole = segmented(Slabs())
    present = np.intersect1d(np.unique(whole.labels.data), LEFT)
    chosen = choose_structures(whole, ["3", *(str(value) for value in present)])
    assert not (chosen.labels.data == 3).any()
    assert chosen.notes == whole.notes


def test_merged_sides_join_parcels_with_their_partners():
    whole = segmented(Slabs(), Want(posteriors=True))
    merged = merge_sides(whole)
    assert merged.volumes_mm3[1005] == pytest.approx(whole.volumes_mm3[1005] + whole.volumes_mm3[2005])
    cuneus = next(s for s in merged.structures if s.value == 1005)
    assert (cuneus.name, cuneus.whole, cuneus.side) == ("ctx-cuneus", 3, "neutral")
    np.testing.assert_array_equal(merged.labels.data > 1000, np.isin(painted(), (3, 42)))
    assert merged.labels.data.max() < 2000
    assert len(merged.posterior_structures) == merged.posteriors.data.shape[0] == 19
    parts = sum(volume for value, volume in merged.volumes_mm3.items() if value >= 1000)
    assert parts == pytest.approx(merged.volumes_mm3[3], rel=1e-6)
