"""What the generative model draws follows the priors of its config (Billot et al. 2023, Eqs. 1-22).

Each sample is compared with scipy's distribution by a Kolmogorov-Smirnov, binomial or chi-square test. Seeds are fixed,
so the level of 1e-3 is met or missed once and for all.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from generation_helpers import PROTOCOL, seeded, small_bank, still
from synthseg.errors import ConfigError
from synthseg.generation import GenerationConfig, GenerativeModel, original, t1
from synthseg.generation.acquisition import AcquisitionDraw, draw_acquisition
from synthseg.generation.anatomy import AnatomyDraw, draw_anatomy
from synthseg.generation.config import (
    AcquisitionPrior,
    AnatomyPrior,
    BiasPrior,
    DeformationPrior,
    GridPrior,
    IntensityPrior,
    MixturePrior,
)
from synthseg.generation.deformation import draw_deformation
from synthseg.generation.intensity import MixtureDraw, draw_bias, draw_gamma, draw_mixture

GRID = GridPrior(shape=(8, 8, 8))
NO_DEFORMATION = {"scaling": 0.0, "rotation_deg": 0.0, "shearing": 0.0, "svf_max_std_mm": 0.0}
CLASSES = int(PROTOCOL.generation_classes.max()) + 1
BANK = small_bank()


def assert_follows(sample: torch.Tensor | np.ndarray, distribution: stats.rv_frozen) -> None:
    flat = np.asarray(sample, dtype=np.float64).ravel()
    assert len(flat) > 400, "too few to tell"
    assert stats.kstest(flat, distribution.cdf).pvalue > 1e-3


def assert_share(happened: torch.Tensor, probability: float) -> None:
    assert stats.binomtest(int(happened.sum()), happened.numel(), probability).pvalue > 1e-3


def between(low: float, high: float) -> stats.rv_frozen:
    return stats.uniform(low, high - low)


def affines(batch: int = 2000, **prior: float) -> np.ndarray:
    drawn = draw_deformation(DeformationPrior(**{**NO_DEFORMATION, **prior}), GRID, batch, rng=seeded(1))  # type: ignore[arg-type]
    return drawn.affine.double().numpy()


def test_scaling_is_uniform_on_each_axis() -> None:
    drawn = affines(scaling=0.2)
    for axis in range(3):
        assert_follows(drawn[:, axis, axis], between(0.8, 1.2))
    correlation = np.corrcoef(np.diagonal(drawn, axis1=1, axis2=2).T)
    assert np.abs(correlation - np.eye(3)).max() < 0.1, "axes must be independent"


def test_rotation_is_uniform_on_each_axis() -> None:
    angles = Rotation.from_matrix(affines(rotation_deg=15.0)).as_euler("XYZ", degrees=True)
    for axis in range(3):
        assert_follows(angles[:, axis], between(-15, 15))


def test_six_shears_are_uniform() -> None:
    drawn = affines(shearing=0.012)
    for row, column in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]:
        assert_follows(drawn[:, row, column], between(-0.012, 0.012))


def test_translation_is_uniform_and_off_by_default() -> None:
    drawn = draw_deformation(DeformationPrior(translation_mm=7), GRID, 1000, rng=seeded(2)).translation_mm
    assert_follows(drawn, between(-7, 7))
    assert draw_deformation(DeformationPrior(), GRID, 10, rng=seeded(2)).translation_mm.count_nonzero() == 0


def test_velocity_nodes_are_normal_with_a_uniform_sigma_per_element() -> None:
    prior = DeformationPrior(svf_max_std_mm=4.0, svf_node_mm=10.0)
    velocity = draw_deformation(prior, GridPrior(shape=(8, 8, 8), spacing_mm=10.0), 800, rng=seeded(3)).velocity_mm
    assert velocity.shape == (800, 3, 9, 9, 9)
    sigma = velocity.flatten(1).std(1)  # of 2,187 nodes: within 1.5 %
    assert_follows(sigma, between(0, 4))
    assert_follows(velocity[:, 0, 4, 4, 4] / sigma, stats.norm())


def test_default_velocity_grid_has_a_node_each_25_mm_and_reaches_the_border() -> None:
    drawn = draw_deformation(DeformationPrior(), GridPrior(shape=(160, 96, 48)), 1, rng=seeded(0))
    assert drawn.velocity_mm.shape[2:] == (8, 5, 3)  # ceil(extent / 25) + 1


def anatomy(batch: int, prior: AnatomyPrior | None = None, grid: GridPrior = GRID) -> AnatomyDraw:
    return draw_anatomy(prior or AnatomyPrior(), grid, BANK, torch.tensor([3.0, 1.0]), batch, rng=seeded(4))


def test_maps_and_donors_are_drawn_by_weight_with_replacement() -> None:
    drawn = anatomy(4000)
    assert_share(drawn.map_index == 0, 0.75)
    assert_share(drawn.donor_index == 0, 0.75)
    assert_share(drawn.donor_index == drawn.map_index, 0.75**2 + 0.25**2)


def test_coins_have_their_probabilities() -> None:
    prior = AnatomyPrior(
        flip_probability=0.5,
        strip_probability=0.4,
        strip_csf_probability=0.3,
        lesion_probability=0.2,
        lesion_paste_probability=0.7,
    )
    drawn = anatomy(4000, prior)
    for name, probability in [("flip", 0.5), ("strip", 0.4), ("strip_csf", 0.3), ("lesions", 0.2), ("paste", 0.7)]:
        assert_share(getattr(drawn, name), probability)
    assert_share(drawn.flip & drawn.strip & drawn.lesions, 0.5 * 0.4 * 0.2)  # independent of each other


def test_crops_are_uniform_over_the_map_and_first_and_last_position_are_drawn() -> None:
    drawn = anatomy(8000)
    for map_index in range(2):
        mine = drawn.map_index == map_index
        shape = BANK.shapes[map_index]
        first = drawn.corner_mm[mine] + (shape - 1) / 2  # voxel of the map, at 1 mm
        torch.testing.assert_close(first, first.round(), rtol=0, atol=1e-4)
        for axis in range(3):
            last = int(shape[axis]) - 8
            counts = np.bincount(first[:, axis].round().long(), minlength=last + 1)
            assert len(counts) == last + 1, "no crop may leave the map"
            assert counts[[0, -1]].min() > 0
            assert stats.chisquare(counts).pvalue > 1e-3


def test_brain_crops_are_centred_with_a_uniform_jitter() -> None:
    drawn = anatomy(2000, grid=GridPrior(shape=(8, 8, 8), focus="brain", jitter_mm=60.0))
    center = drawn.corner_mm + 3.5
    # Crops start on whole voxels: half a millimetre of 120 is far below what the test sees.
    for axis in range(3):
        assert_follows(center[:, axis], between(-60, 60))


def mixture(batch: int, prior: MixturePrior, *, stripped: bool = False) -> MixtureDraw:
    left = GenerativeModel(still((8, 8, 8)), BANK).left_class
    return draw_mixture(prior, left, GRID, torch.full((batch,), stripped), rng=seeded(5))


def test_uniform_mixture_draws_each_class_from_its_ranges() -> None:
    drawn = mixture(500, MixturePrior(mean_range=(10, 240), std_range=(2, 33)))
    assert drawn.means.shape == drawn.stds.shape == (500, CLASSES)
    assert_follows(drawn.means[:, 1:], between(10, 240))
    assert_follows(drawn.stds[:, 1:], between(2, 33))
    assert_follows(drawn.means[:, 7], between(10, 240))
    assert_follows(drawn.noise, stats.norm())


def test_normal_mixture_draws_each_class_from_its_own_priors() -> None:
    config = t1()
    model = GenerativeModel(config, BANK)
    drawn = draw_mixture(config.mixture, model.left_class, GRID, torch.zeros(1500, dtype=torch.bool), rng=seeded(6))
    assert drawn.means.shape == (1500, 25)
    for index in (2, 3, 8, 24):  # at least 1.7 deviations above zero
        for values, hyper in ((drawn.means, config.mixture.class_means), (drawn.stds, config.mixture.class_stds)):
            mean, std = hyper[index]
            above = values[:, index] > 0
            assert_follows(values[above, index], stats.truncnorm(-mean / std, np.inf, mean, std))
            assert_share(~above, float(stats.norm.cdf(-mean / std)))  # clipped at 0, never negative
    assert drawn.means.min() >= 0
    assert drawn.stds.min() >= 0


def test_background_is_zero_or_dark_by_its_shares() -> None:
    drawn = mixture(4000, MixturePrior(mean_range=(100, 255), std_range=(10, 35)))
    mean, std = drawn.means[:, 0], drawn.stds[:, 0]
    zero, dark = (mean == 0) & (std == 0), (mean > 0) & (mean < 15)
    assert_share(zero, 0.05)
    assert_share(dark, 0.25)
    assert_follows(mean[dark], between(0, 15))
    assert_follows(std[dark], between(0, 5))
    assert_follows(mean[~zero & ~dark], between(100, 255))
    assert drawn.means[:, 1:].min() >= 100, "only class 0 is overridden"


def test_stripped_pairs_get_a_black_background_by_their_share() -> None:
    prior = MixturePrior(stripped_dark_probability=0.6, background_zero_probability=0.05)
    black = lambda drawn: (drawn.means[:, 0] == 0) & (drawn.stds[:, 0] == 0)  # noqa: E731
    assert_share(black(mixture(3000, prior, stripped=True)), 1 - 0.95 * 0.4)
    assert_share(black(mixture(3000, prior, stripped=False)), 0.05)


def test_symmetric_pairs_have_their_share_and_equal_gaussians_on_both_sides() -> None:
    drawn = mixture(3000, MixturePrior(symmetric_probability=0.4))
    classes = PROTOCOL.generation_classes
    left = np.array([side == "left" for side in PROTOCOL.sides])
    own, partner = classes[left], classes[PROTOCOL.partner_index[left]]
    alike = (drawn.means[:, own] == drawn.means[:, partner]).all(1)
    assert_share(alike, 0.4)
    assert torch.equal(alike, (drawn.stds[:, own] == drawn.stds[:, partner]).all(1))
    assert not (drawn.means[~alike][:, own] == drawn.means[~alike][:, partner]).any()


def test_a_normal_prior_of_another_number_of_classes_is_refused_before_training() -> None:
    prior = MixturePrior(kind="normal", class_means=((1.0, 1.0),) * 3, class_stds=((1.0, 1.0),) * 3)
    with pytest.raises(ConfigError, match=r"generation\.mixture\.class_means: found 3 classes.*48 classes.*'random'"):
        GenerativeModel(still(mixture=prior), BANK)


def test_bias_nodes_are_normal_with_a_uniform_sigma() -> None:
    grid = GridPrior(shape=(8, 8, 8), spacing_mm=10.0)
    nodes = draw_bias(BiasPrior(max_std=0.7, node_mm=8.0), grid, 800, rng=seeded(7)).log_gain
    assert nodes.shape == (800, 1, 10, 10, 10)
    sigma = nodes.flatten(1).std(1)
    assert_follows(sigma, between(0, 0.7))
    assert_follows(nodes[:, 0, 5, 5, 5] / sigma, stats.norm())


def test_bias_grid_has_four_nodes_for_160_voxels_of_1_mm() -> None:
    assert draw_bias(BiasPrior(), GridPrior(), 1, rng=seeded(0)).log_gain.shape == (1, 1, 4, 4, 4)
    wide = draw_bias(BiasPrior(), GridPrior(shape=(192, 192, 96), spacing_mm=1.0), 1, rng=seeded(0)).log_gain
    assert wide.shape == (1, 1, 5, 5, 3)  # reference 11.2


def test_bias_is_left_out_by_its_share() -> None:
    nodes = draw_bias(BiasPrior(probability=0.95), GRID, 4000, rng=seeded(8)).log_gain
    assert_share(nodes.flatten(1).abs().amax(1) > 0, 0.95)


def test_log_gamma_is_normal() -> None:
    assert_follows(draw_gamma(IntensityPrior(gamma_std=0.5), 3000, rng=seeded(9)).log_gamma, stats.norm(0, 0.5))


def acquisition(batch: int, prior: AcquisitionPrior, spacing_mm: float = 1.0) -> AcquisitionDraw:
    return draw_acquisition(prior, GridPrior(spacing_mm=spacing_mm), batch, rng=seeded(10))


def test_one_axis_is_coarse_with_uniform_spacing_thickness_and_jitter() -> None:
    drawn = acquisition(3000, AcquisitionPrior())
    coarse = drawn.spacing_mm > 1
    assert torch.equal(coarse.sum(1), torch.ones(3000, dtype=torch.long))
    assert stats.chisquare(coarse.sum(0)).pvalue > 1e-3, "each direction equally often"
    spacing, thickness = drawn.spacing_mm[coarse], drawn.thickness_mm[coarse]
    assert_follows(spacing, between(1, 8))
    assert_follows((thickness - 1) / (spacing - 1), between(0, 1))
    assert (drawn.spacing_mm[~coarse] == 1).all()
    assert (drawn.thickness_mm[~coarse] == 1).all()
    assert_follows(drawn.jitter, between(1 / 1.03, 1.03))


def test_isotropic_branch_draws_three_independent_spacings() -> None:
    drawn = acquisition(1000, AcquisitionPrior(isotropic_probability=1.0))
    for axis in range(3):
        assert_follows(drawn.spacing_mm[:, axis], between(1, 4))
    assert np.abs(np.corrcoef(drawn.spacing_mm.T) - np.eye(3)).max() < 0.1


def test_shares_of_coarse_axes_are_those_measured_on_the_original() -> None:
    # Reference 11.6: over 3,000 draws, none 4.8 %, one 84.9 %, three 10.2 %.
    coarse = (acquisition(3000, original().acquisition).spacing_mm > 1).sum(1)
    assert set(coarse.tolist()) == {0, 1, 3}
    for axes, measured in ((0, 144), (1, 2547), (3, 306)):
        ours = int((coarse == axes).sum())
        assert stats.fisher_exact([[ours, 3000 - ours], [measured, 3000 - measured]]).pvalue > 1e-3
        assert_share(coarse == axes, {0: 0.05, 1: 0.855, 3: 0.095}[axes])


def test_a_grid_coarser_than_the_largest_spacing_stays_native() -> None:
    drawn = acquisition(50, AcquisitionPrior(max_spacing_mm=2.0, max_isotropic_mm=2.0), spacing_mm=3.0)
    assert (drawn.spacing_mm == 3).all()


def test_the_same_seed_gives_the_same_draw_and_elements_differ() -> None:
    model = GenerativeModel(GenerationConfig(grid=GRID), BANK)
    first, again, other = (model.draw(3, rng=seeded(seed)) for seed in (11, 11, 12))
    for stage, same, different in zip(first, again, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(stage, same, strict=True))
        if stage:  # optional stages that are off hold nothing
            assert any(not torch.equal(a, b) for a, b in zip(stage, different, strict=True))
    for tensor in (first.deformation.affine, first.deformation.velocity_mm, first.mixture.means, first.mixture.noise):
        assert not torch.equal(tensor[0], tensor[1])
    assert not torch.equal(first.bias.log_gain[0], first.bias.log_gain[1])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")], [1.0, float("inf")], []])
def test_map_weights_that_do_not_fit_the_bank_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match=rf"map_weights: found {len(weights)} weights for 2 maps"):
        GenerativeModel(still(), BANK, weights)
