"""Clusters within labels, and what is missing or added outside the brain: in the places and amounts drawn."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from generation_helpers import PROTOCOL, STRIPPED, seeded, small_bank, still
from synthseg.errors import ConfigError
from synthseg.generation import GenerativeModel, PairDraw, paper
from synthseg.generation.clusters import cluster_regions, draw_clusters
from synthseg.generation.config import AnatomyPrior, ClustersPrior, GridPrior, SurroundingsPrior
from synthseg.generation.surroundings import upsampled_fields

BANK = small_bank()
SHAPE = (16, 18, 20)
K = len(PROTOCOL.labels)


def pair_of_models(**stages: Any) -> tuple[GenerativeModel, GenerativeModel, PairDraw, PairDraw]:
    """A model without and with stages, and a draw of a seed for each."""
    plain, other = GenerativeModel(still(SHAPE), BANK), GenerativeModel(still(SHAPE, **stages), BANK)
    return plain, other, plain.draw(3, rng=seeded(1)), other.draw(3, rng=seeded(1))


def means_of(model: GenerativeModel, draw: PairDraw) -> torch.Tensor:
    return model.mixture(draw)[1][:, 0]  # `still` has no noise


# Clusters


@pytest.mark.parametrize("flip", [False, True])
def test_each_voxel_gains_what_its_label_and_region_drew(flip: bool) -> None:
    plain, model, before, draw = pair_of_models(clusters=ClustersPrior(probability=1, max_std=20.0, node_mm=5.0))
    before, draw = (
        each._replace(anatomy=each.anatomy._replace(flip=torch.full((3,), flip))) for each in (before, draw)
    )
    labels, regions = model.labels(draw), cluster_regions(draw.clusters, model.config.grid)  # type: ignore[arg-type]
    assert torch.equal(labels, plain.labels(before))
    element = torch.arange(3).view(-1, 1, 1, 1).expand_as(labels)
    gained = draw.clusters.offsets[element, regions.long(), labels]  # type: ignore[union-attr]
    torch.testing.assert_close(means_of(model, draw), means_of(plain, before) + gained)
    assert gained.abs().max() > 5
    assert not gained[labels == 0].any()
    assert set(regions.unique().tolist()) == {0, 1, 2, 3}


def test_labels_have_two_or_three_clusters_with_offsets_of_the_drawn_spread() -> None:
    draw = draw_clusters(ClustersPrior(probability=1, max_std=12.0), GridPrior(shape=(8, 8, 8)), K, 500, rng=seeded(2))
    assert draw.offsets.shape == (500, 4, K)
    counts = [len(set(column.tolist())) for column in draw.offsets[0].T[1:]]
    assert set(counts) == {2, 3}
    # Of N(0, s^2) with s ~ U(0, 12): variance 12^2 / 3.
    assert draw.offsets[:, :, 1:].std() == pytest.approx(12 / np.sqrt(3), rel=0.05)


def test_clusters_are_left_out_of_a_share_of_the_pairs() -> None:
    draw = draw_clusters(ClustersPrior(probability=0.3), GridPrior(shape=(8, 8, 8)), K, 2000, rng=seeded(3))
    assert (draw.offsets != 0).flatten(1).any(1).float().mean() == pytest.approx(0.3, abs=0.04)


# Missing labels


def test_a_drop_share_of_one_is_skull_stripping() -> None:
    _, model, _, draw = pair_of_models(surroundings=SurroundingsPrior(drop_probability=1, drop_share=1.0))
    stripped = GenerativeModel(
        still(
            SHAPE,
            anatomy=AnatomyPrior(
                flip_probability=0,
                strip_probability=1,
                strip_csf_probability=0,
                lesion_probability=1,
                lesion_paste_probability=0,
            ),
        ),
        BANK,
    )
    assert torch.equal(model.labels(draw), stripped.labels(stripped.draw(3, rng=seeded(1))))


def test_dropped_labels_are_gone_and_all_others_stay() -> None:
    plain, model, before, draw = pair_of_models(surroundings=SurroundingsPrior(drop_probability=1, drop_share=0.5))
    was, now = plain.labels(before), model.labels(draw)
    outside = torch.as_tensor(np.isin(PROTOCOL.values, STRIPPED))
    for i in range(3):
        gone = outside & draw.surroundings.dropped[i]  # type: ignore[union-attr]
        assert torch.equal(now[i], torch.where(gone[was[i]], 0, was[i]))
    assert (now != was).any()
    assert torch.equal(model.apply(draw).target, plain.apply(before).target)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("focus", ["map", "brain"])
def test_a_cut_takes_what_is_outside_the_brain_beyond_its_plane(flip: bool, focus: str) -> None:
    stage = {"surroundings": SurroundingsPrior(cut_probability=1)}
    grid = {"grid": GridPrior(shape=SHAPE, focus=focus, jitter_mm=0.0)}  # type: ignore[arg-type]
    plain, model = (GenerativeModel(still(SHAPE, **grid, **each), BANK) for each in ({}, stage))
    draw = model.draw(2, rng=seeded(4))
    # A plane a quarter millimetre above the brain's centre, facing down and to the right.
    normal = torch.tensor([[0.6, 0.0, -0.8]]).repeat(2, 1)
    surroundings = draw.surroundings._replace(normal=normal, distance_mm=torch.full((2,), 0.25))  # type: ignore[union-attr]
    anatomy = draw.anatomy._replace(flip=torch.full((2,), flip))
    draw = draw._replace(surroundings=surroundings, anatomy=anatomy)
    was = plain.labels(plain.draw(2, rng=seeded(4))._replace(anatomy=anatomy))
    outside = torch.as_tensor(np.isin(PROTOCOL.values, STRIPPED))
    now = model.labels(draw)
    for i in range(2):
        n = int(anatomy.map_index[i])
        first = anatomy.corner_mm[i].double()
        if focus == "map":
            first = first + (BANK.shapes[n] - 1) / 2 - BANK.center_vox[n]
        x, y, z = torch.meshgrid(*(first[a] + torch.arange(SHAPE[a]) for a in range(3)), indexing="ij")
        beyond = 0.6 * x + 0.0 * y - 0.8 * z > 0.25
        beyond = beyond.flip(0) if flip else beyond
        assert torch.equal(now[i], torch.where(beyond & outside[was[i]], 0, was[i]))
    assert 0.1 < ((now == 0) & (was != 0)).float().mean() < 0.6


def test_voids_are_where_their_field_is_above_its_level() -> None:
    plain, model, before, draw = pair_of_models(surroundings=SurroundingsPrior(void_probability=1, node_mm=5.0))
    was, now = plain.labels(before), model.labels(draw)
    outside = torch.as_tensor(np.isin(PROTOCOL.values, STRIPPED))
    level = draw.surroundings.levels[:, 0].view(-1, 1, 1, 1)  # type: ignore[union-attr]
    void = upsampled_fields(draw.surroundings, model.config.grid)[:, 0] > level  # type: ignore[arg-type]
    assert torch.equal(now, torch.where(void & outside[was], 0, was))
    assert (now != was).any()


def test_patches_touch_the_background_alone_and_reach_their_own_gaussian() -> None:
    plain, model, before, draw = pair_of_models(surroundings=SurroundingsPrior(patch_probability=1, node_mm=4.0))
    patch = torch.tensor([[77.0, 3.0]]).repeat(3, 1)
    levels = torch.tensor([[1e6, -0.5]]).repeat(3, 1)
    draw = draw._replace(surroundings=draw.surroundings._replace(patch=patch, levels=levels))  # type: ignore[union-attr]
    zero = torch.zeros_like(draw.mixture.noise)
    draw = draw._replace(mixture=draw.mixture._replace(noise=zero))
    before = before._replace(mixture=before.mixture._replace(noise=zero))
    was, now, labels = means_of(plain, before), means_of(model, draw), plain.labels(before)
    assert torch.equal(was[labels != 0], now[labels != 0])
    field = upsampled_fields(draw.surroundings, model.config.grid)[:, 1]  # type: ignore[arg-type]
    inside = (labels == 0) & (field > 1)
    assert inside.any()
    torch.testing.assert_close(now[inside], torch.full_like(now[inside], 77.0), rtol=0, atol=0.2)
    away = (labels == 0) & (field < -2.5)
    torch.testing.assert_close(now[away], was[away], rtol=0, atol=0.05)
    assert torch.equal(model.labels(draw), labels)


def test_each_effect_has_its_share_of_the_pairs() -> None:
    prior = SurroundingsPrior(
        drop_probability=0.2, cut_probability=0.4, void_probability=0.6, patch_probability=0.8, cut_mm=(50, 60)
    )
    config = still((8, 8, 8), surroundings=prior)
    draw = GenerativeModel(config, BANK).draw(2000, rng=seeded(5)).surroundings
    assert draw.dropped.any(1).float().mean() == pytest.approx(0.2, abs=0.04)  # type: ignore[union-attr]
    cut = draw.distance_mm < 1000  # type: ignore[union-attr]
    assert cut.float().mean() == pytest.approx(0.4, abs=0.04)
    assert 50 <= draw.distance_mm[cut].min() < 51  # type: ignore[union-attr]
    shown = (draw.levels < 1000).float().mean(0)  # type: ignore[union-attr]
    assert shown.tolist() == pytest.approx([0.6, 0.8], abs=0.04)
    torch.testing.assert_close(draw.normal.norm(dim=1), torch.ones(2000))  # type: ignore[union-attr]


@pytest.mark.parametrize("paste", [False, True])
def test_stages_that_do_nothing_together_leave_every_edit_as_it_was(paste: bool) -> None:
    # Lesions, stripping and mirroring go through one table with clusters, gaps and positions; here all are idle.
    anatomy = AnatomyPrior(lesion_paste_probability=paste, strip_csf_probability=0.5)
    config = dataclasses.replace(paper(), grid=GridPrior(shape=SHAPE, focus="brain", jitter_mm=4.0), anatomy=anatomy)
    idle = {
        "clusters": ClustersPrior(probability=1e-9),
        "surroundings": SurroundingsPrior(void_probability=1e-9),
    }
    plain, model = (GenerativeModel(dataclasses.replace(config, **each), BANK) for each in ({}, idle))
    for seed in range(4):
        one, other = plain.sample(4, rng=seeded(seed)), model.sample(4, rng=seeded(seed))
        assert (one.target == other.target).float().mean() > 0.9995
        assert torch.isclose(one.image, other.image, rtol=0, atol=1e-4).float().mean() > 0.999


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (ClustersPrior, "probability", 1.1),
        (ClustersPrior, "max_std", -1.0),
        (ClustersPrior, "node_mm", 0.0),
        (SurroundingsPrior, "drop_probability", 1.1),
        (SurroundingsPrior, "drop_share", -0.1),
        (SurroundingsPrior, "cut_probability", 2.0),
        (SurroundingsPrior, "cut_mm", (20.0, 10.0)),
        (SurroundingsPrior, "void_probability", 2.0),
        (SurroundingsPrior, "patch_probability", 2.0),
        (SurroundingsPrior, "node_mm", 0.0),
    ],
)
def test_values_out_of_range_name_their_key(kind: Any, key: str, value: Any) -> None:
    stage = {ClustersPrior: "clusters", SurroundingsPrior: "surroundings"}[kind]
    with pytest.raises(ConfigError, match=rf"^generation\.{stage}\.{key}: found"):
        kind(**{key: value})
