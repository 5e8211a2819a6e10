"""From features to weights: against scikit-learn and the reference's recipe written out, and as properties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import MinMaxScaler, RobustScaler

from synthseg.anatomies.density import (
    cluster_weights,
    farthest_clusters,
    kernel_weights,
    merge_small,
    spread,
)
from synthseg.anatomies.features import ShapeMeasures, feature_names, feature_vector
from synthseg.anatomies.groups import shape_groups
from synthseg.anatomies.sampler import MapWeights, weigh
from synthseg.anatomies.scaling import embed, fill_absent, scale
from synthseg.anatomies.settings import (
    DensitySettings,
    FamilySettings,
    SamplerSettings,
    SpaceSettings,
    StrengthSettings,
    preset,
    settings_from,
)
from synthseg.anatomies.sources import MapSource
from synthseg.anatomies.table import summary
from synthseg.anatomies.weights import (
    dataset_masses,
    effective_sample_size,
    share_within,
    soften,
    with_uncounted,
)
from synthseg.errors import ConfigError
from synthseg.labels import load_protocol

GROUPS = shape_groups(load_protocol("feta"), "2,3,4,5,6,7")
KINDS = ("kernel", "mixture", "soft", "kmeans", "farthest", "uniform")
PLAIN = StrengthSettings(uniform=0.0, cap=None)


def cloud(seed: int, count: int = 24) -> np.ndarray:
    """[count, 3] points: two dense clumps and a few far away."""
    rng = np.random.default_rng(seed)
    centers = np.array([[0, 0, 0], [6, 0, 0], [0, 9, 4]])[rng.choice(3, count, p=[0.6, 0.3, 0.1])]
    return centers + rng.normal(0, 1, (count, 3))


def measured(seed: int, count: int = 20) -> list[ShapeMeasures]:
    """Measures of made-up fetal maps: six shapes that grow with age, with differences between subjects."""
    rng = np.random.default_rng(seed)
    found = []
    for age in rng.uniform(0.4, 1.6, count):
        volumes = np.array([300.0, 400, 60, 50, 70, 40]) * age * rng.lognormal(0, 0.25, 6)
        areas = 6 * volumes ** (2 / 3) * rng.lognormal(0, 0.1, 6)
        whole = float(areas.sum() * rng.uniform(0.5, 0.7))
        found.append(ShapeMeasures(tuple(volumes), tuple(areas), float(volumes.sum()), whole, 0.0))
    return found


def sources(names: Sequence[str]) -> list[MapSource]:
    def never() -> Any:
        raise AssertionError("measures are given: nothing is to be read")

    return [MapSource(name, "one", never) for name in names]


def weighed(
    measures: Sequence[ShapeMeasures],
    settings: SamplerSettings,
    *,
    names: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
) -> MapWeights:
    names = names or [f"map-{n:02d}.nii.gz" for n in range(len(measures))]
    return weigh(sources(names), datasets or ["one"] * len(names), measures, GROUPS, settings)


def test_the_toy_weights_of_the_reference() -> None:
    np.testing.assert_allclose(cluster_weights(np.array([4, 4, 7, 9, 9, 9])), [1 / 6, 1 / 6, 1 / 3, *[1 / 9] * 3])


@pytest.mark.parametrize("clusters", [3, 4])
def test_the_reference_scheme_is_its_published_recipe(clusters: int) -> None:
    measures = measured(clusters, 30)
    table = np.array([feature_vector(one) for one in measures])
    scaled = MinMaxScaler().fit_transform(table)
    scaled[:, [0, 1, 2, 3, 4, 5, 9, 10, 11, 15, 16, 17]] *= 2
    reduction = PCA(3, svd_solver="full").fit(scaled)
    scores = reduction.transform(scaled)
    assigned = GaussianMixture(clusters, covariance_type="full", random_state=42).fit(scores).predict(scores)
    expected = np.array([1 / (clusters * (assigned == own).sum()) for own in assigned])
    chosen = preset("reference")
    found = weighed(measures, replace(chosen, density=replace(chosen.density, clusters=(clusters,))))
    np.testing.assert_allclose(found.weights, expected, rtol=1e-9)
    np.testing.assert_allclose(found.parts[0].explained, reduction.explained_variance_ratio_, rtol=1e-9)
    assert sorted(found.parts[0].cluster_sizes) == sorted(np.bincount(assigned))
    own = np.array([row.scores for row in found.rows])
    np.testing.assert_allclose(np.abs(own), np.abs(scores), atol=1e-9)  # up to the axes' signs


def test_two_datasets_of_the_reference_have_half_of_the_mass_each() -> None:
    measures = measured(0, 16) + measured(1, 40)
    datasets = ["feta"] * 16 + ["dhcp"] * 40
    chosen = preset("reference")
    both = weighed(measures, replace(chosen, density=replace(chosen.density, clusters=(2, 4))), datasets=datasets)
    np.testing.assert_allclose([both.weights[:16].sum(), both.weights[16:].sum()], 0.5)
    alone = weighed(measures[16:], replace(chosen, density=replace(chosen.density, clusters=(4,))))
    np.testing.assert_allclose(both.weights[16:], alone.weights / 2)  # each by itself: scales, components, clusters
    control = weighed(measures, preset("uniform"), datasets=datasets)
    np.testing.assert_allclose(control.weights, [0.5 / 16] * 16 + [0.5 / 40] * 40)
    assert [part.mass for part in both.parts] == [0.5, 0.5]


@given(seed=st.integers(0, 500), kind=st.sampled_from(KINDS), clusters=st.integers(1, 5), count=st.integers(1, 25))
def test_weights_are_a_distribution_that_follows_the_points(seed: int, kind: Any, clusters: int, count: int) -> None:
    points = cloud(seed, count)
    chosen = DensitySettings(kind=kind, seeds=(1, 2), restarts=2)
    found = spread(points, chosen, min(clusters, count))
    assert found.weights.sum() == pytest.approx(1)
    assert (found.weights > 0).all()
    if kind in ("kernel", "farthest", "uniform"):  # no random start: the order of the maps is nothing to them
        order = np.random.default_rng(seed).permutation(count)
        np.testing.assert_allclose(spread(points[order], chosen, min(clusters, count)).weights, found.weights[order])
        moved = spread(points @ np.linalg.qr(cloud(seed + 1, 3))[0] + 5, chosen, min(clusters, count))
        np.testing.assert_allclose(moved.weights, found.weights, rtol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "uniform"])
def test_a_rare_shape_is_drawn_more_often_than_a_common_one(kind: Any) -> None:
    rng = np.random.default_rng(5)
    points = np.concatenate([rng.normal(0, 1, (30, 3)), rng.normal(0, 1, (4, 3)) + 12])
    weights = spread(points, DensitySettings(kind=kind, seeds=(0, 1)), 2).weights
    assert weights[30:].mean() > 2.5 * weights[:30].mean()


def test_the_kernels_weights_are_those_of_its_formula() -> None:
    points = cloud(3, 12)
    width = 0.7 * np.sqrt(points.var(axis=0).mean()) * 12 ** (-1 / 7)
    density = np.array([sum(np.exp(-((a - b) ** 2).sum() / (2 * width**2)) for b in points) for a in points])
    np.testing.assert_allclose(kernel_weights(points, 0.7), (1 / density) / (1 / density).sum())
    same = np.ones((5, 3))
    np.testing.assert_allclose(kernel_weights(same), 0.2)


def test_k_means_and_soft_clusters_are_scikit_learns() -> None:
    points = cloud(8, 40)
    hard = KMeans(3, n_init=4, random_state=9).fit_predict(points)
    found = spread(points, DensitySettings(kind="kmeans", restarts=4, seeds=(9,)), 3)
    np.testing.assert_allclose(found.weights, cluster_weights(hard))
    shares = GaussianMixture(3, n_init=4, random_state=9).fit(points).predict_proba(points)
    soft = spread(points, DensitySettings(kind="soft", restarts=4, seeds=(9,)), 3)
    np.testing.assert_allclose(soft.weights, (shares / shares.sum(axis=0)).mean(axis=1))


def test_weights_are_averaged_over_seeds() -> None:
    points = np.random.default_rng(2).normal(0, 1, (20, 3))  # without clusters, so that seeds disagree

    def run(*seeds: int) -> np.ndarray:
        return spread(points, DensitySettings(kind="mixture", seeds=seeds, restarts=1), 6).weights

    seeds = tuple(range(6))
    single = np.array([run(seed) for seed in seeds])
    assert np.ptp(single, axis=0).max() > 0.01
    np.testing.assert_allclose(run(*seeds), single.mean(axis=0))


def test_farthest_points_cover_the_extremes() -> None:
    points = np.array([[0.0], [0.1], [0.2], [10.0], [-7.0]])
    assert farthest_clusters(points, 3).tolist() == [0, 0, 0, 1, 2]
    assert farthest_clusters(np.zeros((4, 2)), 3).tolist() == [0, 0, 0, 0]


def test_small_clusters_join_the_nearest_one() -> None:
    points = np.array([[0.0], [0.1], [0.2], [1.0], [9.0], [9.1], [20.0]])
    cluster = np.array([0, 0, 0, 1, 2, 2, 3])
    assert merge_small(points, cluster, 2).tolist() == [0, 0, 0, 0, 2, 2, 2]
    assert merge_small(points, cluster, 1).tolist() == cluster.tolist()
    assert len(set(merge_small(points, cluster, 100).tolist())) == 1


def test_more_clusters_than_anatomies_are_refused() -> None:
    with pytest.raises(ConfigError, match="found 6 clusters of 5 anatomies"):
        spread(cloud(0, 5), DensitySettings(kind="mixture"), 6)
    with pytest.raises(ConfigError, match=r"found 1 of 3 clusters with maps"):
        spread(np.ones((9, 2)), replace(preset("reference").density, kind="kmeans"), 3)
    shared = spread(np.ones((9, 2)), DensitySettings(kind="kmeans"), 3)  # mass of empty clusters goes to the others
    np.testing.assert_allclose(shared.weights, 1 / 9)


def test_scaling_is_scikit_learns_and_ends_where_outliers_would_hide_the_rest() -> None:
    table = np.random.default_rng(0).normal(3, 2, (40, 4)) * [1, 10, 100, 1]
    used = np.ones(40, dtype=bool)
    np.testing.assert_allclose(scale(table, "minmax", used), MinMaxScaler().fit_transform(table))
    robust = RobustScaler(unit_variance=True).fit_transform(table)
    np.testing.assert_allclose(scale(table, "robust", used), np.clip(robust, -4, 4), rtol=2e-4)
    table[0] = 1e6
    assert (scale(table, "robust", used)[0] == 4).all()
    assert scale(np.full((5, 1), 7.0), "robust", used[:5]).tolist() == [[0]] * 5
    ranks = scale(np.array([[3.0], [1.0], [2.0], [1e9]]), "rank", used[:4])
    np.testing.assert_allclose(ranks[:, 0], [2 / 3, 0, 1 / 3, 1])


def test_what_is_missing_becomes_the_median_and_a_column() -> None:
    table = np.array([[1.0, 2], [3, np.nan], [5, 6], [7, 100]])
    used = np.array([True, True, True, False])
    filled, columns, names = fill_absent(table, ("volume", "area per volume: vermis"), used)
    assert filled[1, 1] == 4  # of the maps that count
    assert names == ("absent: vermis",)
    assert columns[:, 0].tolist() == [0, 1, 0, 0]
    space = embed(table, ("volume", "area per volume: vermis"), SpaceSettings(components=2), used)
    assert space.scores.shape == (4, 2)
    assert np.isfinite(space.scores).all()
    gone = embed(table * [1, np.nan], ("volume", "x: y"), SpaceSettings(components=2))
    assert gone.explained[0] == pytest.approx(1)


def test_emphasis_multiplies_what_its_pattern_fits() -> None:
    table, names = cloud(1, 9), ("volume", "volume share: a", "area")
    plain = embed(table, names, SpaceSettings(scaling="minmax"))
    louder = embed(table, names, SpaceSettings(scaling="minmax", emphasis=(("volume*", 3.0),)))
    total = MinMaxScaler().fit_transform(table).var(axis=0)
    assert (plain.scores.var(axis=0)).sum() == pytest.approx(total.sum())
    assert (louder.scores.var(axis=0)).sum() == pytest.approx(total @ [9, 9, 1])
    with pytest.raises(ConfigError, match=r"found 'ventr\*', which fits no feature"):
        embed(table, names, SpaceSettings(emphasis=(("ventr*", 2.0),)))


def test_components_can_be_chosen_by_their_share_of_the_variance() -> None:
    table, names = cloud(4, 30), ("a", "b", "c")
    shares = PCA().fit(MinMaxScaler().fit_transform(table)).explained_variance_ratio_
    for wanted, count in ((shares[0], 1), (shares[:2].sum(), 2), (1.0, 3)):
        space = embed(table, names, SpaceSettings(scaling="minmax", variance=min(float(wanted), 1.0)))
        np.testing.assert_allclose(space.explained, shares[:count])


@given(
    weights=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=30).map(np.array),
    temper=st.floats(0, 2),
    uniform=st.floats(0, 1),
    cap=st.floats(1, 20),
)
def test_softening_keeps_a_distribution_its_order_and_its_cap(
    weights: np.ndarray, temper: float, uniform: float, cap: float
) -> None:
    made = soften(weights / weights.sum(), StrengthSettings(temper=temper, uniform=uniform, cap=cap))
    assert made.sum() == pytest.approx(1)
    assert (np.diff(made[np.argsort(weights)]) >= -1e-12).all()
    assert made.max() <= cap * np.median(made) * (1 + 1e-9)
    assert made.min() >= uniform / len(weights) * (1 - 1e-9)  # capping others only adds to it


def test_the_ends_of_softening_are_uniform_and_nothing() -> None:
    weights = np.array([0.1, 0.2, 0.7])
    np.testing.assert_allclose(soften(weights, PLAIN), weights)
    np.testing.assert_allclose(soften(weights, replace(PLAIN, temper=0.0)), 1 / 3)
    np.testing.assert_allclose(soften(weights, replace(PLAIN, uniform=1.0)), 1 / 3)
    np.testing.assert_allclose(soften(weights, replace(PLAIN, temper=2.0)), weights**2 / (weights**2).sum())
    np.testing.assert_allclose(soften(weights, replace(PLAIN, uniform=0.5)), 0.5 * weights + 0.5 / 3)
    np.testing.assert_allclose(soften(weights, replace(PLAIN, cap=2.0)), np.array([0.1, 0.2, 0.4]) / 0.7)


def test_masses_sizes_and_shares() -> None:
    sizes = {"feta": 160, "dhcp": 265}
    assert dataset_masses(sizes, FamilySettings()) == {"feta": 0.5, "dhcp": 0.5}
    by_maps = dataset_masses(sizes, FamilySettings(mass="maps"))
    assert by_maps["feta"] == pytest.approx(160 / 425)
    table = FamilySettings(masses=(("dhcp", 3.0), ("feta", 1.0)))
    assert dataset_masses(sizes, table) == {"feta": 0.25, "dhcp": 0.75}
    with pytest.raises(ConfigError, match=r"found other for the data sets feta, dhcp"):
        dataset_masses(sizes, FamilySettings(masses=(("other", 1.0),)))
    np.testing.assert_allclose(share_within(np.array([0.6, 0.4]), np.array([0, 1, 0, 0])), [0.2, 0.4, 0.2, 0.2])
    counts = np.array([True, False, True, True])
    np.testing.assert_allclose(with_uncounted(np.array([0.5, 0.25, 0.25]), counts), [0.375, 0.25, 0.1875, 0.1875])
    assert effective_sample_size([1, 1, 1, 1]) == 4
    assert effective_sample_size([1, 0, 0]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_edited_siblings_share_what_their_original_gets_without_them(kind: Any) -> None:
    measures = measured(1, 12)
    names = [f"sb_ga{20 + n}.nii.gz" for n in range(12)]
    chosen = SamplerSettings(density=DensitySettings(kind=kind, seeds=(3,)))
    alone = weighed(measures, chosen, names=names)
    edited = measured(2, 3)
    more = [*names, "sb_ga23_shape-01.nii.gz", "sb_ga23_shape-02_v1.nii.gz", "sb_ga30_v2.nii.gz"]
    both = weighed([*measures, *edited], chosen, names=more).as_dict()
    expected = alone.as_dict()
    for name, parts in (("sb_ga23.nii.gz", 3), ("sb_ga30.nii.gz", 2), ("sb_ga21.nii.gz", 1)):
        assert both[name] == pytest.approx(expected[name] / parts)
    assert both["sb_ga23_shape-01.nii.gz"] == both["sb_ga23.nii.gz"]
    assert both["sb_ga30_v2.nii.gz"] == both["sb_ga30.nii.gz"]


def test_duplicates_do_not_make_a_shape_common() -> None:
    measures = measured(3, 10)
    alone = weighed(measures, SamplerSettings())
    copied = weighed([*measures, measures[4], measures[4]], SamplerSettings())
    assert copied.weights[[4, 10, 11]] == pytest.approx(alone.weights[4] / 3)
    assert copied.rows[11].flags[0] == "same shapes as map-04.nii.gz"
    apart = SamplerSettings(family=FamilySettings(duplicates="keep"))
    assert weighed([*measures, measures[4], measures[4]], apart).weights[4] < alone.weights[4]


def test_maps_cut_off_by_their_border_count_for_no_density_and_are_drawn_as_if_uniform() -> None:
    measures = measured(6, 15)
    measures[7] = replace(measures[7], volumes=(1.0,) * 6, areas=(9.0,) * 6, border=0.2)
    found = weighed(measures, SamplerSettings())
    assert found.weights[7] == pytest.approx(1 / 15)
    assert "cut off at the border (20.0 % of the surface): not in the density" in found.rows[7].flags
    without = weighed([one for n, one in enumerate(measures) if n != 7], SamplerSettings())
    np.testing.assert_allclose(np.delete(found.weights, 7), without.weights * 14 / 15)
    counted = weighed(measures, SamplerSettings(family=FamilySettings(border=None)))
    assert counted.weights[7] == counted.weights.max()
    with pytest.raises(ConfigError, match="no map whose shapes lie within it"):
        weighed([replace(one, border=0.5) for one in measures], SamplerSettings())


def test_a_map_without_a_tissue_is_weighed_and_named() -> None:
    measures = measured(4, 14)
    keep = np.array([1, 1, 1, 0, 1, 1])
    volumes, areas = np.array(measures[2].volumes) * keep, np.array(measures[2].areas) * keep
    measures[2] = replace(measures[2], volumes=tuple(volumes), areas=tuple(areas))
    found = weighed(measures, SamplerSettings())
    assert "no cerebellum" in found.rows[2].flags
    assert found.weights[2] > 1 / 14


def test_one_density_over_all_datasets_gives_each_what_its_shapes_do() -> None:
    measures, datasets = measured(0, 20), ["a"] * 5 + ["b"] * 15
    joint = weighed(measures, SamplerSettings(family=FamilySettings(joint=True)), datasets=datasets)
    plain = weighed(measures, SamplerSettings())
    np.testing.assert_allclose(joint.weights, plain.weights)
    assert [row.dataset for row in joint.rows] == datasets


@settings(max_examples=10)
@given(seed=st.integers(0, 300), scheme=st.sampled_from(["general", "uniform"]))
def test_the_order_of_the_maps_is_nothing_to_the_general_scheme(seed: int, scheme: Any) -> None:
    measures = measured(seed, 11)
    order = np.random.default_rng(seed).permutation(11)
    names = [f"{n}.nii" for n in range(11)]
    one = weighed(measures, preset(scheme), names=names).as_dict()
    other = weighed([measures[n] for n in order], preset(scheme), names=[names[n] for n in order]).as_dict()
    assert other == pytest.approx(one)


def test_a_single_map_gets_everything() -> None:
    for scheme in ("general", "uniform"):
        assert weighed(measured(0, 1), preset(scheme)).weights.tolist() == [1.0]
    two = weighed(measured(0, 2), SamplerSettings())
    np.testing.assert_allclose(two.weights, 0.5)


def test_settings_come_from_a_preset_and_changes() -> None:
    made = settings_from({"scheme": "reference", "density": {"clusters": [6, 8]}}, where="s.toml")
    reference = preset("reference")
    assert made == replace(reference, density=replace(reference.density, clusters=(6, 8)))
    assert settings_from({"strength": {"cap": float("inf")}}, where="s.toml").strength.cap is None
    assert settings_from({}, where="s.toml") == SamplerSettings()
    names = feature_names(GROUPS)
    doubled = [n for n, name in enumerate(names) if name in dict(reference.space.emphasis)]
    assert doubled == [0, 1, 2, 3, 4, 5, 9, 10, 11, 15, 16, 17]  # reference A.4.3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "paper"}, r"s.toml: scheme: found 'paper'.*general, reference, uniform"),
        ({"density": {"kind": "gmm"}}, r"s.toml.density.kind: found 'gmm'"),
        ({"density": {"cluster": [2]}}, r"unknown key 'cluster'.*did you mean 'clusters'"),
        ({"density": 3}, r"s.toml.density: found 3"),
        ({"densities": {}}, r"unknown key 'densities'"),
        ({"strength": {"uniform": 1.5}}, r"strength.uniform: found 1.5"),
        ({"strength": {"cap": 0.5}}, r"strength.cap: found 0.5"),
        ({"strength": {"temper": -1.0}}, r"strength.temper: found -1"),
        ({"family": {"siblings": "("}}, r"family.siblings: found '\('"),
        ({"family": {"joint": True, "masses": [["a", 1.0]]}}, r"family.joint: found masses beside it"),
        ({"family": {"masses": [["a", 0.0]]}}, r"family.masses: found a=0"),
        ({"space": {"variance": 0.0}}, r"space.variance: found 0"),
        ({"space": {"components": 0}}, r"space.components: found 0"),
        ({"density": {"seeds": []}}, r"density.seeds: found none"),
        ({"density": {"bandwidth": 0.0}}, r"density.bandwidth: found 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from(values, where="s.toml")


def test_clusters_fit_the_datasets_or_are_refused() -> None:
    chosen = replace(preset("reference"), density=replace(preset("reference").density, clusters=(2, 3, 4)))
    with pytest.raises(ConfigError, match="found 3 numbers for 2 data sets"):
        weighed(measured(0, 20), chosen, datasets=["a"] * 10 + ["b"] * 10)


def test_the_summary_says_who_is_heavy_and_why() -> None:
    measures = measured(2, 20)
    measures[5] = replace(measures[5], volumes=tuple(np.array(measures[5].volumes) * [1, 1, 30, 1, 1, 1]))
    chosen = preset("reference")
    facts = summary(weighed(measures, replace(chosen, density=replace(chosen.density, clusters=(3,)))))
    shown = [row["weight"] for row in facts["heaviest"]]
    assert len(shown) == 10
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == pytest.approx(1 / (3 * min(facts["parts"][0]["cluster_sizes"])))
    assert any("far from the others: volume share: ventricles" in flag for flag in facts["flags"]["map-05.nii.gz"])
    (part,) = facts["parts"]
    assert sum(part["cluster_sizes"]) == 20
    squares = sum(size * (1 / (3 * size)) ** 2 for size in part["cluster_sizes"])
    assert facts["effective_maps"] == pytest.approx(1 / squares, abs=1e-3)
    assert facts["settings"]["density"]["kind"] == "mixture"


def test_a_large_power_keeps_a_distribution_or_says_why_not() -> None:
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    found = soften(weights, StrengthSettings(temper=5000.0, uniform=0.2, cap=None))
    np.testing.assert_allclose(found, [0.05, 0.05, 0.05, 0.85])
    with pytest.raises(ConfigError, match="most weights are 0"):
        soften(weights, StrengthSettings(temper=5000.0, uniform=0.0, cap=4.0))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (DensitySettings, {"seeds": (-1,)}),
        (DensitySettings, {"bandwidth": 1e-200}),
        (SpaceSettings, {"emphasis": (("area", float("inf")),)}),
        (FamilySettings, {"masses": (("a", float("inf")), ("b", 1.0))}),
        (FamilySettings, {"masses": (("a", 0.5), ("a", 0.5))}),
    ],
)
def test_settings_that_would_end_in_a_traceback_or_no_weights_are_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        kind(**values)
