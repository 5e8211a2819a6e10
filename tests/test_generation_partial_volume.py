"""Partial volume: voxels average the Gaussians of what lies in them, and nothing else about a pair changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation_helpers import PROTOCOL, seeded, small_bank, still
from synthseg.configs import config_from_dict
from synthseg.errors import ConfigError
from synthseg.generation import GenerationConfig, GenerativeModel, LabelBank, PairDraw, paper
from synthseg.generation.config import (
    AnatomyPrior,
    GridPrior,
    PartialVolumePrior,
)
from synthseg.generation.partial_volume import draw_partial_volume

BANK = small_bank()


def bank_of(values: np.ndarray, spacing_mm: float = 1.0) -> LabelBank:
    return LabelBank.from_maps([values], [(spacing_mm,) * 3], ["one"], PROTOCOL)


def means_of(model: GenerativeModel, draw: PairDraw) -> torch.Tensor:
    """The image before bias and rescaling, without noise."""
    quiet = draw._replace(mixture=draw.mixture._replace(noise=torch.zeros_like(draw.mixture.noise)))
    return model.mixture(quiet)[1][:, 0]


@given(seed=st.integers(0, 2**31), positions=st.sampled_from([2, 4, 8]))
def test_positions_lie_in_the_voxel_around_its_centre_in_octants_of_their_own(seed: int, positions: int) -> None:
    offsets = draw_partial_volume(PartialVolumePrior(positions=positions), 3, rng=seeded(seed)).offsets_vox  # type: ignore[arg-type]
    assert offsets.shape == (3, positions, 3)
    assert offsets.abs().max() <= 0.5
    torch.testing.assert_close(offsets.sum(1), torch.zeros(3, 3), rtol=0, atol=1e-6)
    octants = ((offsets > 0) * torch.tensor([1, 2, 4])).sum(-1)
    assert all(len(set(row.tolist())) == positions for row in octants)


def test_positions_fill_the_voxel_evenly() -> None:
    for positions in (2, 4, 8):
        prior = PartialVolumePrior(positions=positions)  # type: ignore[arg-type]
        offsets = draw_partial_volume(prior, 20000, rng=seeded(0)).offsets_vox.flatten(0, 1)
        # Of a uniform distribution on the cube: second moments 1/12 along each axis and 0 across.
        np.testing.assert_allclose(np.cov(offsets.numpy().T), np.eye(3) / 12, atol=2e-3)


def test_a_two_millimetre_voxel_is_the_exact_mean_of_the_eight_it_covers() -> None:
    # One position in each octant: whatever the draw, each of the map's eight voxels is seen once.
    config = still((10, 10, 10), partial_volume=PartialVolumePrior(positions=8))
    config = dataclasses.replace(config, grid=GridPrior(shape=(10, 10, 10), spacing_mm=2.0))
    values = np.random.default_rng(0).choice(PROTOCOL.values, (20, 20, 20)).astype(np.int32)
    model = GenerativeModel(config, bank_of(values))
    draw = model.draw(2, rng=seeded(1))
    draw = draw._replace(anatomy=draw.anatomy._replace(corner_mm=torch.full((2, 3), -9.0)))  # between two voxels
    classes = torch.as_tensor(PROTOCOL.generation_classes[PROTOCOL.index_of(values)])
    for i in range(2):
        fine = draw.mixture.means[i, classes]
        expected = torch.nn.functional.avg_pool3d(fine[None, None], 2)[0, 0]
        torch.testing.assert_close(means_of(model, draw)[i], expected)


@pytest.mark.parametrize("positions", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_across_a_plane_draws_average_to_the_share_of_each_side(axis: int, positions: int) -> None:
    # A half-space whose border cuts voxels at 30 % of their width. Expected: the exact share of the voxel's volume.
    values = np.zeros((40, 40, 40), np.int32)
    values[(slice(None),) * axis + (slice(20, None),)] = 16
    config = still((8, 8, 8), partial_volume=PartialVolumePrior(positions=positions))  # type: ignore[arg-type]
    config = dataclasses.replace(config, grid=GridPrior(shape=(8, 8, 8), spacing_mm=2.0))
    model = GenerativeModel(config, bank_of(values))
    draw = model.draw(400, rng=seeded(2))
    corner = torch.full((400, 3), -8.0)
    corner[:, axis] = -8.0 + 0.4  # voxels are centred on -7.6 + 2 i, so that one is cut at 0: from -0.6 to 1.4 mm
    draw = draw._replace(
        anatomy=draw.anatomy._replace(corner_mm=corner),
        mixture=draw.mixture._replace(means=torch.tensor([0.0, *[100.0] * 47]).repeat(400, 1)),
    )
    profile = means_of(model, draw).movedim(axis + 1, 1)[:, :, 3, 3].mean(0)
    assert profile.tolist() == pytest.approx([0, 0, 0, 0, 70, 100, 100, 100], abs=4)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("paste", [False, True])
@pytest.mark.parametrize("strip", [False, True])
def test_at_the_voxels_centre_it_is_the_plain_mixture_whatever_the_edits(flip: bool, paste: bool, strip: bool) -> None:
    # Mirroring, lesions and stripping take another way through this stage than through the target.
    anatomy = AnatomyPrior(
        flip_probability=flip, strip_probability=strip, strip_csf_probability=0.5, lesion_paste_probability=paste
    )
    config = dataclasses.replace(
        paper(), grid=GridPrior(shape=(16, 18, 20), focus="brain", jitter_mm=4.0), anatomy=anatomy
    )
    plain = GenerativeModel(config, BANK)
    soft = GenerativeModel(
        dataclasses.replace(config, partial_volume=PartialVolumePrior(positions=2, probability=1e-9)), BANK
    )
    draw, drawn = plain.draw(4, rng=seeded(3)), soft.draw(4, rng=seeded(3))
    assert torch.equal(drawn.partial_volume.offsets_vox, torch.zeros(4, 2, 3))  # type: ignore[union-attr]
    for one, other in zip(plain.apply(draw), soft.apply(drawn), strict=True):
        assert torch.equal(one, other)


def test_the_target_and_the_inside_of_tissues_stay_what_they_were() -> None:
    # Voxels of 0.9 mm on a map of 1 mm: most see one label, those across a border two or more.
    hard = dataclasses.replace(still(), grid=GridPrior(shape=(20, 20, 20), spacing_mm=0.9, focus="brain"))
    config = dataclasses.replace(hard, partial_volume=PartialVolumePrior(positions=4))
    plain, soft = GenerativeModel(hard, BANK), GenerativeModel(config, BANK)
    draw = soft.draw(3, rng=seeded(4))
    pair, before = soft.apply(draw), plain.apply(draw._replace(partial_volume=plain.draw(1, rng=seeded(0))[6]))
    assert torch.equal(pair.target, before.target)
    labels = soft.labels(draw)[:, None].float()
    low, high = (sign * torch.nn.functional.max_pool3d(sign * labels, 3, 1, 1) for sign in (-1, 1))
    changed = means_of(soft, draw)[:, None] != draw.mixture.means.gather(
        1, soft.classes[soft.labels(draw)].flatten(1)
    ).view_as(labels)
    assert not (changed & (low == high)).any(), "changed where all neighbours have the same label"
    assert changed.float().mean() > 0.01


@given(seed=st.integers(0, 2**31), positions=st.sampled_from([2, 4, 8]))
@settings(max_examples=15)
def test_a_voxels_mean_lies_between_those_of_its_neighbourhood(seed: int, positions: int) -> None:
    config = still((12, 12, 12), partial_volume=PartialVolumePrior(positions=positions))  # type: ignore[arg-type]
    config = dataclasses.replace(config, grid=GridPrior(shape=(12, 12, 12), spacing_mm=0.9))
    model = GenerativeModel(config, BANK)
    draw = model.draw(2, rng=seeded(seed))
    hard = draw.mixture.means.gather(1, model.classes[model.labels(draw)].flatten(1)).view(2, 1, 12, 12, 12)
    low, high = (sign * torch.nn.functional.max_pool3d(sign * hard, 3, 1, 1)[:, 0] for sign in (-1, 1))
    inner = (slice(None), *[slice(1, -1)] * 3)  # a border's neighbours outside are not in `hard`
    mean = means_of(model, draw)
    assert (mean[inner] >= low[inner] - 1e-3).all()
    assert (mean[inner] <= high[inner] + 1e-3).all()


def test_batches_equal_their_elements_and_a_share_of_the_pairs_is_left_alone() -> None:
    grid = GridPrior(shape=(12, 13, 14), focus="brain", jitter_mm=4.0)
    config = dataclasses.replace(paper(), grid=grid, partial_volume=PartialVolumePrior(positions=2, probability=0.5))
    model = GenerativeModel(config, BANK)
    draws = [model.draw(1, rng=seeded(seed)) for seed in range(12)]
    off = [bool((draw.partial_volume.offsets_vox == 0).all()) for draw in draws]  # type: ignore[union-attr]
    assert 1 < sum(off) < 11
    together = model.apply(PairDraw.join(draws))
    for i, draw in enumerate(draws):
        torch.testing.assert_close(together.image[i], model.apply(draw).image[0], rtol=0, atol=1e-4)


def test_it_is_read_from_a_recipe_and_refuses_other_counts() -> None:
    config = config_from_dict(GenerationConfig, {"partial_volume": {"positions": 4}}, where="recipe.toml: generation")
    assert config.partial_volume == PartialVolumePrior(positions=4)
    assert config.partial_volume.enabled
    with pytest.raises(ConfigError, match=r"partial_volume\.positions: found 3\. Fix: choose one of 0, 2, 4, 8"):
        config_from_dict(GenerationConfig, {"partial_volume": {"positions": 3}}, where="recipe.toml: generation")
    with pytest.raises(ConfigError, match=r"generation\.partial_volume\.probability: found 2"):
        PartialVolumePrior(probability=2)
