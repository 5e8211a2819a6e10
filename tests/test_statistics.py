"""Signed-rank tests, effect sizes, corrections and intervals against scipy, statsmodels and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from synthseg.errors import ConfigError, ShapeError
from synthseg.evaluation.statistics import (
    BootstrapConfig,
    adjust,
    bootstrap_interval,
    cohens_dz,
    mean_interval,
    median,
    median_interval,
    paired_differences,
    signed_rank,
    smallest_p,
)

FEW = BootstrapConfig(resamples=500)
coarse = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=9)  # ties and zeros abound


def p_by_all_signs(differences: np.ndarray, zeros: str) -> float:
    """Two-sided p by trying every combination of signs."""
    kept = differences if zeros == "pratt" else differences[differences != 0]
    ranks = stats.rankdata(np.abs(kept))[kept != 0]
    positive = ranks[kept[kept != 0] > 0].sum()
    sums = np.array([np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(ranks))])
    return float(min(1.0, 2 * min((sums <= positive + 1e-9).mean(), (sums >= positive - 1e-9).mean())))


@settings(max_examples=30)
@given(values=coarse, zeros=st.sampled_from(["wilcox", "pratt"]))
def test_small_samples_with_ties_and_zeros_are_exact(values: list[float], zeros: str) -> None:
    differences = np.array(values)
    found = signed_rank(differences, zeros)
    assert found.exact
    assert found.p == pytest.approx(p_by_all_signs(differences, zeros), abs=1e-12)
    assert found.n_zero == values.count(0.0)


@settings(max_examples=30)
@given(values=st.lists(st.floats(-100, 100).filter(lambda v: abs(v) > 1e-3), min_size=2, max_size=50, unique_by=abs))
def test_without_ties_p_is_scipys_exact_one(values: list[float]) -> None:
    found, theirs = signed_rank(values), stats.wilcoxon(values, method="exact")
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert min(found.positive, found.negative) == theirs.statistic


@pytest.mark.parametrize("zeros", ["wilcox", "pratt"])
def test_large_samples_with_ties_and_zeros_get_scipys_approximation(zeros: str) -> None:
    differences = np.random.default_rng(3).integers(-5, 8, 120).astype(float)
    found = signed_rank(differences, zeros)
    theirs = stats.wilcoxon(differences, zero_method=zeros, method="approx", correction=False)
    assert not found.exact
    # scipy takes the variance under Pratt's method from a formula, we from the ranks themselves: the same number
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6)
    assert found.n_tied == (differences != 0).sum()


@settings(max_examples=30)
@given(values=coarse)
def test_swapping_the_methods_turns_signs_and_keeps_p(values: list[float]) -> None:
    one, other = signed_rank(values), signed_rank([-value for value in values])
    assert one.p == pytest.approx(other.p, abs=1e-12)
    assert one.rank_biserial == pytest.approx(-other.rank_biserial)
    assert -1 <= one.rank_biserial <= 1


def test_infinite_differences_rank_above_all_finite_ones() -> None:
    found = signed_rank([math.inf, math.inf, -1.0, 2.0])
    assert (found.positive, found.negative) == (3.5 + 3.5 + 2, 1.0)
    assert found.p == signed_rank([1e9, 1e9, -1.0, 2.0]).p


def test_rank_biserial_of_a_sample_done_by_hand() -> None:
    found = signed_rank([3.0, -1.0, 2.0, 0.0])  # ranks 3, 1, 2: favourable 5, unfavourable 1
    assert found.rank_biserial == pytest.approx((5 - 1) / 6)


def test_equal_steps_tie_although_binary_fractions_differ() -> None:
    ours, theirs = [0.9, 0.8, 0.7, 0.4], [0.8, 0.7, 0.6, 0.3]
    differences = paired_differences(ours, theirs)
    assert len(np.unique(np.subtract(ours, theirs))) > 1  # what subtracting alone gives
    assert signed_rank(differences).n_tied == 4
    assert cohens_dz(differences) == math.inf  # not 1e15
    np.testing.assert_array_equal(
        paired_differences([math.inf, math.inf, 1, math.nan], [math.inf, 2, math.inf, 1]),
        [0, math.inf, -math.inf, math.nan],
    )
    with pytest.raises(ShapeError):
        paired_differences([1.0], [1.0, 2.0])


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1), st.sampled_from([1e-200, 1e-3, 1.0, 1e6, 1e200])
)
@example([(0.0, 1.3614509918788742e-109)], 1e-200)  # smaller than the powers of ten that doubles hold
def test_rounded_differences_are_the_differences_in_any_unit(pairs: list[tuple[float, float]], unit: float) -> None:
    a, b = unit * np.array(pairs).T
    found = paired_differences(a, b)
    np.testing.assert_allclose(found, a - b, rtol=0, atol=2e-10 * max(a.max(), b.max()))
    np.testing.assert_array_equal(paired_differences(b, a), -found)


def test_without_pairs_or_without_differences() -> None:
    assert math.isnan(signed_rank([]).p)
    assert math.isnan(signed_rank([]).rank_biserial)
    same = signed_rank([0.0, 0.0, 0.0])
    assert (same.p, same.rank_biserial, same.n_zero) == (1.0, 0.0, 3)


def test_nan_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="NaN"):
        signed_rank([1.0, math.nan])
    with pytest.raises(ShapeError, match="shape"):
        signed_rank(np.ones((2, 2)))
    with pytest.raises(ConfigError, match="zeros"):
        signed_rank([1.0], zeros="zsplit")


@pytest.mark.parametrize("n", [1, 2, 5, 6, 20])
def test_the_smallest_p_is_what_differences_of_one_sign_give(n: int) -> None:
    assert signed_rank(np.arange(1.0, n + 1)).p == pytest.approx(smallest_p(n))


@pytest.mark.parametrize("correction", ["bonferroni", "holm"])
def test_corrections_agree_with_statsmodels(correction: str) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = [0.001, 0.04, 0.04, 0.0, 1.0, 0.012, 0.3, 0.011]
    theirs = multitest.multipletests(p_values, method=correction)[1]
    np.testing.assert_allclose(adjust(p_values, correction), theirs, atol=1e-12)


@settings(max_examples=30)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_its_steps_reject(p_values: list[float]) -> None:
    rejected: set[int] = set()  # Holm's procedure itself: stop at the first that is not small enough
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if not (len(p_values) - place) * p_values[index] < 0.05:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(adjust(p_values, "holm")) if p < 0.05} == rejected
    assert all(h <= b for h, b in zip(adjust(p_values, "holm"), adjust(p_values), strict=True))
    assert adjust(p_values, "none") == p_values


def test_tests_that_could_not_be_made_do_not_enlarge_the_family() -> None:
    corrected = adjust([0.01, math.nan, 0.03])
    assert corrected[::2] == pytest.approx([0.02, 0.06])
    assert math.isnan(corrected[1])
    with pytest.raises(ConfigError, match="sidak"):
        adjust([0.1], "sidak")


def test_dz_is_the_t_statistic_over_root_n() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, 25)
    t = stats.ttest_1samp(differences, 0).statistic
    assert cohens_dz(differences) == pytest.approx(t / 5)
    assert cohens_dz([*differences, math.inf]) == pytest.approx(t / 5)


def test_dz_of_constant_differences() -> None:
    assert math.isnan(cohens_dz([0.0, 0.0]))
    assert cohens_dz([-0.1, -0.1, -0.1]) == -math.inf
    assert math.isnan(cohens_dz([1.0]))


def test_intervals_are_scipys_bca() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=24)
    for ours, statistic in ((mean_interval, np.mean), (median_interval, np.median)):
        theirs = stats.bootstrap(
            (values,), statistic, n_resamples=500, random_state=np.random.default_rng(0), method="BCa"
        ).confidence_interval
        found = ours(values, FEW)
        assert found.method == "bca"
        assert (found.low, found.high) == pytest.approx(tuple(theirs))


def test_a_mean_interval_holds_the_mean_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(2)
    intervals = [mean_interval(draw.normal(1.0, 2.0, 40), FEW) for _ in range(200)]
    held = np.mean([found.low <= 1.0 <= found.high for found in intervals])
    assert 0.88 <= held <= 0.98  # 95 % of 200, give or take; BCa of 40 values is a little narrow


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(1).normal(size=15)
    assert mean_interval(values, FEW) == mean_interval(values, FEW)
    assert mean_interval(values, FEW) != mean_interval(values, BootstrapConfig(resamples=500, seed=1))


def test_degenerate_samples_say_what_they_are() -> None:
    constant = mean_interval([0.1, 0.1, 0.1], FEW)
    assert (constant.low, constant.method) == (pytest.approx(0.1), "constant")
    assert mean_interval([1.0], FEW).method == "none"
    assert math.isnan(mean_interval([], FEW).low)
    # A median that stays when any one value is left out has no acceleration.
    tied = median_interval([1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 9.0], FEW)
    assert tied.method == "percentile"
    assert tied.low <= 2.0 <= tied.high


def test_a_median_interval_may_end_at_infinity() -> None:
    values = [0.1, 0.2, 0.3, 0.5, 0.6, math.inf, math.inf, math.inf]
    assert median(values) == pytest.approx(0.55)
    found = median_interval(values, FEW)
    assert found.high == math.inf
    assert 0.1 <= found.low < 0.6
    assert median_interval([math.inf] * 4, FEW).low == math.inf


def test_a_statistic_that_is_undefined_everywhere_has_no_interval() -> None:
    found = bootstrap_interval((np.arange(3.0),), lambda x, axis: np.full_like(x.sum(axis), np.nan), FEW)
    assert found.method == "none"


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"resamples": 10}, {"seed": -1}])
def test_bootstrap_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BootstrapConfig(**wrong)  # type: ignore[arg-type]
