"""Priors measured on images: against SciPy, in a circle with the generative model, and as files a recipe takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats

from generation_helpers import PROTOCOL, seeded, small_bank, still
from prior_helpers import by_scipy
from synthseg.errors import ConfigError, ShapeError, VolumeError
from synthseg.generation import GenerativeModel
from synthseg.generation.acquisition import apply_acquisition, blur_sigma_vox, draw_acquisition
from synthseg.generation.config import AcquisitionPrior, GridPrior, MixturePrior
from synthseg.generation.estimation import (
    UNKNOWN_MEAN,
    UNKNOWN_STD,
    EstimationRules,
    class_statistics,
    original_rules,
    stack_priors,
    summarise,
)

Command = Callable[..., tuple[int, str, str]]
CLASSES = np.array([0, 1, 1, 2, 4])  # of label indices; class 3 has no label


def scene(seed: int, shape: tuple[int, int, int] = (14, 15, 16)) -> tuple[np.ndarray, np.ndarray]:
    """An image of several tissues with zeros and NaN in it, and label indices 0 to 4."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, shape)
    image = np.array([5.0, 300, 320, 80, 900])[labels] + rng.normal(0, 40, shape)
    image[rng.random(shape) < 0.1] = 0
    return image, labels


@given(seed=st.integers(0, 10**6), images=st.integers(1, 4))
def test_the_original_rules_are_those_of_scipy_to_the_digit(seed: int, images: int) -> None:
    scenes = [scene(seed + n) for n in range(images)]
    measured = summarise(
        [class_statistics(image, labels, CLASSES, original_rules()) for image, labels in scenes], original_rules()
    )
    wanted = np.stack([by_scipy(image, labels, CLASSES, scale=1.0) for image, labels in scenes])
    np.testing.assert_allclose(measured.means, [wanted[:, 0].mean(0), wanted[:, 0].std(0)], rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(measured.stds, [wanted[:, 1].mean(0), wanted[:, 1].std(0)], rtol=1e-12, atol=1e-10)
    assert (measured.means[:, 3] == 0).all()


def test_deviations_are_a_gaussians_standard_deviations_by_default() -> None:
    image, labels = scene(3)
    rules = EstimationRules(rescale_over="all", clip=True)
    found = class_statistics(image, labels, CLASSES, rules)
    wanted = by_scipy(image, labels, CLASSES, scale="normal")
    kept = [0, 1, 2, 4]
    np.testing.assert_allclose(found.deviations[kept], wanted[1, kept], rtol=1e-12)
    np.testing.assert_allclose(found.medians[kept], wanted[0, kept], rtol=1e-12)


def test_zeros_count_in_the_background_only() -> None:
    labels = np.repeat([0, 1], 32).reshape(4, 4, 4)
    image = np.where(np.arange(64).reshape(4, 4, 4) % 2 == 0, 0.0, 7.0)
    found = class_statistics(image, labels, np.array([0, 1]), EstimationRules(rescale=False))
    assert found.medians.tolist() == [3.5, 7.0]
    assert found.voxels.tolist() == [32, 16]


def test_what_lies_outside_the_image_is_left_out() -> None:
    image, labels = scene(5)
    inside = np.ones(image.shape, dtype=bool)
    inside[:5] = False
    rules = EstimationRules(rescale_over="all")
    cut = class_statistics(np.where(inside, image, np.nan), labels, CLASSES, rules)
    alone = class_statistics(image[5:], labels[5:], CLASSES, rules)
    np.testing.assert_array_equal(cut.medians, alone.medians)
    np.testing.assert_array_equal(cut.deviations, alone.deviations)


def test_a_class_that_an_image_lacks_does_not_pull_its_priors_to_zero() -> None:
    first, second = scene(1), scene(2)
    without = np.where(second[1] == 3, 0, second[1])  # no class 2
    ours, theirs = (
        summarise(
            [
                class_statistics(first[0], first[1], CLASSES, rules),
                class_statistics(second[0], without, CLASSES, rules),
            ],
            rules,
        )
        for rules in (EstimationRules(), original_rules())
    )
    alone = class_statistics(first[0], first[1], CLASSES)
    assert ours.means[:, 2].tolist() == [alone.medians[2], 0]
    assert ours.images.tolist() == [2, 2, 1, 0, 2]
    counted_as_zero = class_statistics(first[0], first[1], CLASSES, original_rules()).medians[2] / 2
    np.testing.assert_allclose(theirs.means[:, 2], [counted_as_zero, counted_as_zero])


def test_a_class_never_seen_may_have_any_intensity() -> None:
    found = summarise([class_statistics(*scene(1), CLASSES)])
    assert found.means[:, 3].tolist() == list(UNKNOWN_MEAN)
    assert found.stds[:, 3].tolist() == list(UNKNOWN_STD)
    uniform = stats.uniform(0, 255)
    np.testing.assert_allclose(UNKNOWN_MEAN, [uniform.mean(), uniform.std()])
    np.testing.assert_allclose(UNKNOWN_STD, [stats.uniform(0, 35).mean(), stats.uniform(0, 35).std()])


def test_a_stripped_brain_is_scaled_by_its_own_voxels_and_told_when_it_is_not() -> None:
    rng = np.random.default_rng(0)
    image, labels = np.zeros((30, 30, 30)), np.zeros((30, 30, 30), dtype=int)
    labels[10:16, 10:16, 10:13], labels[10:16, 10:16, 13:16] = 1, 2  # 0.8 % of the voxels
    image[labels == 1], image[labels == 2] = rng.normal(60, 5, 108), rng.normal(120, 5, 108)
    stretched, lost = (
        class_statistics(image, labels, np.array([0, 1, 2]), rules)
        for rules in (EstimationRules(), dataclasses.replace(original_rules(), percentiles=(2, 99.5)))
    )
    assert 0 < stretched.medians[1] < 150 < stretched.medians[2] < 255
    assert stretched.clipped[2] == 0
    assert lost.clipped[2] > 0.4


def test_the_scale_goes_on_beyond_its_ends_and_tissues_keep_their_spread() -> None:
    labels = np.repeat([0, 1], [1000, 9000]).reshape(10, 10, 100)
    image = np.random.default_rng(0).normal(np.where(labels == 1, 110.0, 5.0), 6)
    narrow = EstimationRules(percentiles=(2, 40))  # as if nothing were brighter than white matter
    ours, theirs = (
        class_statistics(image, labels, np.array([0, 1]), dataclasses.replace(narrow, clip=c)) for c in (0, 1)
    )
    unit = 255 / np.subtract(*np.percentile(image, [40, 2]))
    assert ours.deviations[1] == pytest.approx(6 * unit, rel=0.05)
    assert ours.medians[1] > 255 == theirs.medians[1]
    assert theirs.deviations[1] == 0


def test_priors_are_never_below_zero() -> None:
    labels = np.repeat([0, 1, 2], 1000).reshape(10, 10, 30)
    image = np.random.default_rng(0).normal(np.array([0.0, -30, 40])[labels], 3)
    dark = summarise([class_statistics(image, labels, np.array([0, 1, 2]), EstimationRules(percentiles=(30, 98)))])
    assert dark.means[0, 1] == 0 < dark.means[0, 2]
    units = EstimationRules(rescale=False)
    with pytest.raises(ConfigError, match=r"a median of -\d+\.\d+ in class 1"):
        summarise([class_statistics(image, labels, np.array([0, 1, 2]), units)], units)


def test_the_interior_is_what_erosion_leaves() -> None:
    rng = np.random.default_rng(4)
    labels = (ndimage.gaussian_filter(rng.standard_normal((20, 21, 22)), 2) > 0).astype(int)
    image = rng.uniform(1, 99, labels.shape)
    found = class_statistics(image, labels, np.array([0, 1]), EstimationRules(rescale=False, interior=True))
    cross = ndimage.generate_binary_structure(3, 1)
    for k in (0, 1):
        inner = image[ndimage.binary_erosion(labels == k, cross, border_value=1)]
        assert found.voxels[k] == inner.size > 100
        assert found.medians[k] == np.median(inner)


def test_two_datasets_are_blocks_of_two_rows() -> None:
    blocks = [summarise([class_statistics(*scene(n), CLASSES)]) for n in (1, 2)]
    means, stds = stack_priors(blocks)
    assert means.shape == stds.shape == (4, 5)
    np.testing.assert_array_equal(means[2:], blocks[1].means)
    np.testing.assert_array_equal(stds[:2], blocks[0].stds)


def test_pairs_made_from_known_priors_give_them_back() -> None:
    rng = np.random.default_rng(0)
    count = len(set(PROTOCOL.contrast_classes.tolist()))
    means = [(float(m), 8.0) for m in rng.uniform(90, 200, count)]
    stds = [(float(s), 2.0) for s in rng.uniform(8, 16, count)]
    mixture = MixturePrior(
        kind="normal",
        classes="contrast",
        class_means=tuple(means),
        class_stds=tuple(stds),
        background_zero_probability=0,
        background_dark_probability=0,
    )
    model = GenerativeModel(still((24, 24, 24), mixture=mixture), small_bank())
    rules = EstimationRules(rescale=False, least_voxels=30)
    measured, drawn = [], []
    for seed in range(60):
        draw = model.draw(1, rng=seeded(seed))
        labels, image = model.mixture(draw)
        measured.append(class_statistics(image[0, 0].numpy(), labels[0].numpy(), PROTOCOL.contrast_classes, rules))
        drawn.append(torch.stack([draw.mixture.means[0], draw.mixture.stds[0]]).numpy())
        found, (mean, std) = measured[-1], drawn[-1]
        known = np.isfinite(found.medians)
        # standard errors of the median and of the scaled MAD: 1.2533 and 1.1664 sigma / sqrt(n)
        error = std[known] / np.sqrt(found.voxels[known])
        assert (np.abs(found.medians[known] - mean[known]) < 5 * 1.2533 * error).all()
        assert (np.abs(found.deviations[known] - std[known]) < 5 * 1.17 * error).all()
    priors = summarise(measured, rules)
    seen = priors.images == 60
    assert seen.sum() >= 4
    for estimated, true in ((priors.means, np.array(means)), (priors.stds, np.array(stds))):
        spread = np.hypot(true[seen, 1], 1.5)  # of draws, and of one image's estimate
        assert (np.abs(estimated[0, seen] - true[seen, 0]) < 4.5 * spread / np.sqrt(60)).all()
        assert (np.abs(estimated[1, seen] - true[seen, 1]) < 4.5 * spread / np.sqrt(2 * 60)).all()


def test_images_that_cannot_be_measured_are_refused() -> None:
    image, labels = scene(1)
    with pytest.raises(ShapeError, match=r"scan\.nii.*onto one grid"):
        class_statistics(image[1:], labels, CLASSES, subject="scan.nii")
    flat = np.where(labels == 1, 5.0, 7.0)
    with pytest.raises(VolumeError, match=r"scan\.nii.*found 7 as both the 50th and the 98th"):
        class_statistics(flat, labels, CLASSES, EstimationRules(percentiles=(50, 98)), subject="scan.nii")
    with pytest.raises(VolumeError, match="no voxel"):
        class_statistics(np.zeros_like(image), labels, CLASSES)
    with pytest.raises(ConfigError, match="percentiles"):
        EstimationRules(percentiles=(98, 2))
    with pytest.raises(ShapeError, match="no images"):
        summarise([])


# --- what a recipe's voxel sizes do ---


def test_every_draw_has_the_voxel_sizes_of_a_row() -> None:
    rows = ((1.0, 1.0, 5.0), (3.0, 1.0, 1.0), (0.4, 0.4, 0.4))
    prior = AcquisitionPrior(spacings_mm=rows, thicknesses_mm=((1.0, 1.0, 4.0), (2.0, 1.0, 1.0), (1.0, 1.0, 1.0)))
    draw = draw_acquisition(prior, GridPrior(shape=(8, 8, 8)), 3000, rng=seeded(0))
    kinds, counts = np.unique(np.hstack([draw.spacing_mm, draw.thickness_mm]), axis=0, return_counts=True)
    assert kinds.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 5, 1, 1, 4], [3, 1, 1, 2, 1, 1]]
    assert stats.chisquare(counts).pvalue > 1e-4
    sigma = blur_sigma_vox(draw._replace(jitter=torch.ones(3000, 3)), prior, GridPrior(shape=(8, 8, 8)))
    thick = draw.spacing_mm[:, 2] == 5
    np.testing.assert_allclose(sigma[thick][0], [0, 0, prior.sigma_factor * 4], rtol=1e-6)


def test_listed_voxel_sizes_look_like_drawn_ones_of_that_size() -> None:
    grid, image = GridPrior(shape=(10, 11, 24)), torch.rand(1, 1, 10, 11, 24, generator=seeded(1))
    listed = AcquisitionPrior(spacings_mm=((1.0, 1.0, 4.0),), jitter=0)
    drawn = draw_acquisition(AcquisitionPrior(jitter=0), grid, 1, rng=seeded(2))
    by_hand = drawn._replace(spacing_mm=torch.tensor([[1.0, 1, 4]]), thickness_mm=torch.tensor([[1.0, 1, 4]]))
    found = apply_acquisition(image, draw_acquisition(listed, grid, 1, rng=seeded(2)), listed, grid)
    torch.testing.assert_close(found, apply_acquisition(image, by_hand, listed, grid))


def test_without_rows_a_seeds_draws_stay_what_they_were() -> None:
    grid = GridPrior(shape=(8, 8, 8))
    rng, again = seeded(5), seeded(5)
    draw_acquisition(AcquisitionPrior(), grid, 4, rng=rng)
    for _ in range(1):
        torch.randint(3, (4, 1), generator=again)
        for shape in ((4, 3), (4, 3), (4, 1), (4, 3), (4, 3)):
            torch.rand(shape, generator=again)
    assert torch.equal(torch.rand(3, generator=rng), torch.rand(3, generator=again))


def test_voxel_sizes_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="spacings_mm"):
        AcquisitionPrior(spacings_mm=((1.0, 0.0, 1.0),))
    with pytest.raises(ConfigError, match="a row for each row"):
        dataclasses.replace(AcquisitionPrior(), thicknesses_mm=((1.0, 1.0, 1.0),))
