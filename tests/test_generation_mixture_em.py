"""The mixture of one image's intensities, against scikit-learn and known mixtures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from generation_helpers import seeded
from synthseg.errors import ShapeError
from synthseg.generation.mixture_em import assign, fit_mixture


def samples(seed: int, sizes: tuple[int, ...] = (4000, 6000, 2000)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    parts = ((20, 4), (60, 9), (130, 15))
    return np.concatenate([rng.normal(*parts[k], size) for k, size in enumerate(sizes)])


@pytest.mark.parametrize("components", [1, 2, 3, 5])
def test_the_fit_is_as_likely_as_scikit_learns(components: int) -> None:
    mixture = pytest.importorskip("sklearn.mixture")
    values = samples(0)
    ours = fit_mixture(values, components, rng=seeded(0))
    theirs = mixture.GaussianMixture(components, n_init=5, random_state=0, tol=1e-6, max_iter=500)
    theirs.fit(values[:, None])
    # of all values, not of the histogram
    densities = ours.weights * stats.norm.pdf(values[:, None], ours.means, ours.stds)
    assert np.log(densities.sum(1)).mean() > theirs.score(values[:, None]) - 2e-3
    if components <= 3:
        order = np.argsort(theirs.means_[:, 0])
        np.testing.assert_allclose(ours.means, theirs.means_[order, 0], rtol=0.01)
        np.testing.assert_allclose(ours.stds, np.sqrt(theirs.covariances_[order, 0, 0]), rtol=0.03)


def test_the_stated_likelihood_is_that_of_the_values() -> None:
    values = samples(1)
    found = fit_mixture(values, 3, rng=seeded(0))
    densities = found.weights * stats.norm.pdf(values[:, None], found.means, found.stds)
    assert found.log_likelihood == pytest.approx(np.log(densities.sum(1)).mean(), abs=5e-3)


def test_a_known_mixture_comes_back_and_its_values_go_to_their_components() -> None:
    values = samples(2)
    found = fit_mixture(values, 3, rng=seeded(1))
    np.testing.assert_allclose(found.means, [20, 60, 130], atol=1.2)
    np.testing.assert_allclose(found.stds, [4, 9, 15], atol=1)
    np.testing.assert_allclose(found.weights, np.array([4, 6, 2]) / 12, atol=0.02)
    truth = np.repeat([0, 1, 2], [4000, 6000, 2000])
    assert (assign(values, found) == truth).mean() > 0.98


def test_more_starts_are_never_less_likely_and_seeds_decide() -> None:
    values = np.random.default_rng(3).gamma(2, 20, 5000)
    first, again, other = (fit_mixture(values, 6, rng=seeded(s), starts=4) for s in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    alone = fit_mixture(values, 6, rng=seeded(0), starts=1)
    assert min(first.log_likelihood, other.log_likelihood) >= alone.log_likelihood - 1e-9


@pytest.mark.parametrize("components", [1, 4])
def test_flat_and_masked_values_are_no_trouble(components: int) -> None:
    flat = fit_mixture(np.full(50, 7.0), components, rng=seeded(0))
    assert np.isfinite(flat.log_likelihood)
    np.testing.assert_allclose(flat.means, 7)
    masked = np.concatenate([np.zeros(9990), np.linspace(50, 90, 10)])
    found = fit_mixture(masked, components, rng=seeded(0))
    assert np.isfinite([*found.means, *found.stds, found.log_likelihood]).all()
    assert (assign(np.zeros(3), found) == assign(masked, found)[0]).all() or components == 1


def test_values_a_mixture_cannot_have_are_refused() -> None:
    for values, components in ((np.array([]), 2), (np.array([1.0, np.nan]), 2), (np.ones(4), 0)):
        with pytest.raises(ShapeError, match="finite values and at least one component"):
            fit_mixture(values, components, rng=seeded(0))
