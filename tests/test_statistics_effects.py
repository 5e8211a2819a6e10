"""Effect sizes after linear correction against statsmodels, closed forms and simulated groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cohort_helpers import QUICK, cohort
from synthseg.errors import ConfigError, ShapeError
from synthseg.evaluation.effects import EffectConfig, cohens_d, correct, effect_size


def residuals_by_statsmodels(values: np.ndarray, covariates: np.ndarray, cases: np.ndarray, fit: str) -> np.ndarray:
    api = pytest.importorskip("statsmodels.api")
    design = api.add_constant(covariates)
    if fit == "within":
        slopes = api.OLS(values, np.column_stack([design, cases])).fit().params[1:-1]
        return np.asarray(values - covariates @ slopes)
    chosen = ~cases if fit == "controls" else np.ones_like(cases)
    return np.asarray(values - api.OLS(values[chosen], design[chosen]).fit().predict(design))


@pytest.mark.parametrize("fit", ["controls", "all", "within"])
def test_corrected_volumes_are_statsmodels_residuals_up_to_a_constant(fit: str) -> None:
    values, covariates, cases = cohort()
    ours, theirs = correct(values, covariates, cases, fit), residuals_by_statsmodels(values, covariates, cases, fit)
    assert np.ptp(ours - theirs) < 1e-6
    assert cohens_d(ours[~cases], ours[cases]) == pytest.approx(cohens_d(theirs[~cases], theirs[cases]))


def test_within_groups_the_difference_is_the_groups_coefficient() -> None:
    api = pytest.importorskip("statsmodels.api")
    values, covariates, cases = cohort()
    model = api.OLS(values, np.column_stack([api.add_constant(covariates), cases])).fit()
    corrected = correct(values, covariates, cases, "within")
    assert corrected[cases].mean() - corrected[~cases].mean() == pytest.approx(model.params[-1])


def test_cohens_d_by_hand() -> None:
    controls, cases = np.array([4.0, 6.0, 8.0]), np.array([1.0, 3.0])
    # variances 4 and 2: s^2 = (2 * 4 + 1 * 2) / 3
    assert cohens_d(controls, cases) == pytest.approx((6 - 2) / math.sqrt(10 / 3))
    # over n: 8/3 and 1: s^2 = (2 * 8/3 + 1 * 1) / 3
    assert cohens_d(controls, cases, population=True) == pytest.approx(4 / math.sqrt((16 / 3 + 1) / 3))


@settings(max_examples=30)
@given(
    n=st.integers(2, 30),
    m=st.integers(2, 30),
    shift=st.floats(-3, 3),
    scale=st.floats(0.1, 1e4),
    seed=st.integers(0, 99),
)
def test_cohens_d_is_the_t_statistic_whatever_the_unit(n: int, m: int, shift: float, scale: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    controls, cases = scale * draw.normal(shift, 1, n), scale * draw.normal(0, 1, m)
    d = cohens_d(controls, cases)
    assert d == pytest.approx(stats.ttest_ind(controls, cases).statistic * math.sqrt(1 / n + 1 / m))
    assert cohens_d(cases, controls) == pytest.approx(-d)
    if n == m:
        assert cohens_d(controls, cases, population=True) == pytest.approx(d * math.sqrt(n / (n - 1)))


def test_cohens_d_of_constant_or_tiny_groups() -> None:
    assert math.isnan(cohens_d(np.array([1.0]), np.array([1.0, 2.0])))
    assert math.isnan(cohens_d(np.ones(3), np.ones(3)))
    assert cohens_d(np.ones(3), np.zeros(3)) == math.inf
    # 0.1 has no exact mean in binary: neither is a difference there, nor a spread.
    assert math.isnan(cohens_d(np.full(7, 0.1), np.full(3, 0.1)))
    assert cohens_d(np.full(3, 0.1), np.full(7, 0.3)) == -math.inf
    assert math.isnan(cohens_d(np.full(7, 0.1), np.full(3, 0.1), population=True))


@settings(max_examples=20)
@given(shift=st.floats(-1e3, 1e3), factor=st.floats(0.01, 100), fit=st.sampled_from(["controls", "all", "within"]))
def test_units_of_covariates_do_not_matter(shift: float, factor: float, fit: str) -> None:
    values, covariates, cases = cohort()
    ours = correct(values, covariates * factor + shift, cases, fit)
    np.testing.assert_allclose(ours, correct(values, covariates, cases, fit), rtol=1e-6)


@pytest.mark.parametrize("fit", ["controls", "within"])
def test_correction_finds_the_loss_that_was_put_in(fit: str) -> None:
    values, covariates, cases = cohort(n=1500)
    corrected = correct(values, covariates, cases, fit)
    assert corrected[~cases].mean() - corrected[cases].mean() == pytest.approx(900, abs=70)
    assert cohens_d(corrected[~cases], corrected[cases]) == pytest.approx(900 / 400, abs=0.2)
    assert values[~cases].mean() - values[cases].mean() > 980  # uncorrected, the cases' age adds to their loss


def test_fitting_to_everyone_shrinks_the_effect_where_groups_differ_in_age() -> None:
    values, covariates, cases = cohort(n=4000)
    everyone, healthy = (correct(values, covariates, cases, fit) for fit in ("all", "controls"))
    assert 0 < cohens_d(everyone[~cases], everyone[cases]) < cohens_d(healthy[~cases], healthy[cases])


def test_without_covariates_nothing_changes_and_the_interval_is_scipys() -> None:
    values, _, cases = cohort()
    found = effect_size(values, np.empty((60, 0)), cases, EffectConfig(bootstrap=QUICK))

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        pooled = ((x.shape[axis] - 1) * x.var(axis, ddof=1) + (y.shape[axis] - 1) * y.var(axis, ddof=1)) / 58
        return np.asarray((x.mean(axis) - y.mean(axis)) / np.sqrt(pooled))

    theirs = stats.bootstrap(
        (values[~cases], values[cases]), statistic, n_resamples=300, random_state=np.random.default_rng(0), method="BCa"
    ).confidence_interval
    assert found.d == found.d_uncorrected
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(theirs))
    assert found.interval.low < found.d < found.interval.high


def test_the_interval_knows_of_the_corrections_uncertainty() -> None:
    values, covariates, cases = cohort(n=24)
    corrected = correct(values, covariates, cases)
    whole = effect_size(values, covariates, cases, EffectConfig(bootstrap=QUICK)).interval
    fixed = effect_size(corrected, np.empty((24, 0)), cases, EffectConfig(bootstrap=QUICK)).interval
    assert whole.high - whole.low > fixed.high - fixed.low


def test_models_that_cannot_be_fitted_are_refused() -> None:
    values, covariates, cases = cohort()
    with pytest.raises(ConfigError, match="constant or follows from the others"):
        correct(values, np.column_stack([covariates, covariates[:, 0] * 2]), cases)
    with pytest.raises(ConfigError, match="4 subjects for 4 coefficients"):
        correct(values[:8], covariates[:8], cases[:8])
    with pytest.raises(ShapeError, match="shapes"):
        correct(values, covariates[:5], cases)
    with pytest.raises(ConfigError, match="fit"):
        EffectConfig(fit="cases")
