"""Bayesian segmentation: the mixture and the field against closed forms, the atlas, the whole on a made-up head."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments are no part of the installed package

from experiments.bayes.atlas import build_atlas
from experiments.bayes.method import BayesMethod
from experiments.bayes.mixture import Mixture, cosine_basis, em_step, fit_bias, start_mixture
from experiments.toy import toy_bank

from synthseg.errors import VolumeError
from synthseg.volumes.volume import Volume


def _two_tissues(n: int = 4000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, generator=rng) < 0.3
    values = torch.where(truth, 1.0, -0.5) + 0.2 * torch.randn(n, generator=rng)
    return values, truth


def test_densities_are_those_of_normal_distributions():
    mixture = Mixture(
        torch.tensor([0, 1]), torch.tensor([0.4, 1.0]), torch.tensor([0.3, -1.0]), torch.tensor([0.04, 0.25])
    )
    values = torch.linspace(-2, 2, 9)
    first, second = torch.distributions.Normal(0.3, 0.2), torch.distributions.Normal(-1.0, 0.5)
    expected = torch.stack([first.log_prob(values) + np.log(0.4), second.log_prob(values)]).numpy()
    np.testing.assert_allclose(mixture.terms(values).numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mixture.log_likelihood(values, 2).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_em_never_lowers_the_likelihood_and_finds_the_gaussians():
    values, _ = _two_tissues()
    prior = torch.full((2, len(values)), 0.5)
    mixture = Mixture(torch.tensor([0, 1]), torch.ones(2), torch.tensor([0.2, -0.1]), torch.tensor([0.3, 0.3]))
    seen = []
    for _ in range(60):
        mixture, _, likelihood = em_step(mixture, values, prior)
        seen.append(likelihood)
    # the pooled variance pulls a little, so that the last steps may trade the likelihood for it
    assert all(after >= before - 1e-4 for before, after in itertools.pairwise(seen))
    np.testing.assert_allclose(mixture.means.numpy(), [1.0, -0.5], atol=0.03)


def test_a_start_from_the_atlas_is_the_weighted_mean():
    values, truth = _two_tissues()
    prior = torch.stack([truth.float(), 1 - truth.float()])
    mixture = start_mixture(values, prior, (1, 1))
    np.testing.assert_allclose(mixture.means[0], values[truth].mean(), atol=1e-5)
    np.testing.assert_allclose(mixture.variances[1], values[~truth].var(correction=0), atol=1e-4)


def test_the_field_is_the_least_squares_fit_of_what_the_gaussians_leave():
    rng = torch.Generator().manual_seed(1)
    places = torch.rand(3000, 3, generator=rng) * torch.tensor([180.0, 200.0, 90.0])
    basis = cosine_basis(places, places.amin(0), places.amax(0), 90.0)
    field = basis @ (0.3 * torch.randn(basis.shape[1], generator=rng) / basis.shape[1] ** 0.5)
    clean, truth = _two_tissues(3000, 2)
    mixture = Mixture(torch.tensor([0, 1]), torch.ones(2), torch.tensor([1.0, -0.5]), torch.tensor([0.04, 0.01]))
    shares, brain = torch.stack([truth.float(), 1 - truth.float()]), torch.rand(3000, generator=rng)
    found = basis @ fit_bias(basis, clean + field, mixture, shares, brain)
    root = (torch.where(truth, 1 / 0.04, 1 / 0.01) * brain).sqrt().double().numpy()
    left = (clean + field - torch.where(truth, 1.0, -0.5)).double().numpy()
    expected = basis.double().numpy() @ np.linalg.lstsq(basis.numpy() * root[:, None], left * root, rcond=None)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=0.01)
    assert float(torch.corrcoef(torch.stack([found, field]))[0, 1]) > 0.9


def test_the_atlas_is_a_probability_everywhere_and_knows_left_from_right(tmp_path):
    from synthseg.generation.bank import LabelBank

    atlas = build_atlas(LabelBank.load(toy_bank(tmp_path / "bank.safetensors", 2)), 6.0, steps=2)
    np.testing.assert_allclose(atlas.probabilities.sum(0).numpy(), 1.0, atol=1e-4)
    assert float(atlas.probabilities.min()) > 0
    half = atlas.probabilities.shape[1] // 2
    values = atlas.kinds.value_of_channel.tolist()
    for left, right in ((2, 41), (17, 53)):
        one, other = atlas.probabilities[values.index(left)], atlas.probabilities[values.index(right)]
        assert float(one[:half].sum()) > 20 * float(one[half + 1 :].sum())  # axes run to the right
        assert float(other[half + 1 :].sum()) > 20 * float(other[:half].sum())


def test_a_scan_with_next_to_nothing_in_it_is_refused_in_words(tmp_path):
    method = BayesMethod.of_bank(toy_bank(tmp_path / "bank.safetensors", 2), kept=tmp_path, coarse=True)
    data = np.zeros((30, 30, 30), dtype=np.float32)
    data[4, 4, 4] = 1  # not one value everywhere, and yet no contrast
    with pytest.raises(VolumeError, match="one value nearly everywhere"):
        method.segment(Volume(data, np.diag([6.0, 6, 6, 1])), ct=None, fine=False)
