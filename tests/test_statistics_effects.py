"""Effect sizes after linear correction against statsmodels, closed forms and simulated groups."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from synthseg.errors import ConfigError, ShapeError, UsageError
from synthseg.evaluation.effects import EffectConfig, cohens_d, correct, effect_size
from synthseg.evaluation.groups_study import StudyConfig, run_study
from synthseg.evaluation.statistics import BootstrapConfig
from synthseg.evaluation.subjects import read_participants, read_volumes

Command = Callable[..., tuple[int, str, str]]
QUICK = BootstrapConfig(resamples=300)


def cohort(n: int = 60, loss: float = 900.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes, covariates (age, sex, ICV) and who is a case; cases are older."""
    draw = np.random.default_rng(seed)
    cases = np.arange(n) % 2 == 1
    age, sex = draw.normal(70, 8, n) + 4 * cases, draw.integers(0, 2, n)
    icv = draw.normal(1.5e6, 1e5, n) - 1e5 * sex
    volumes = 8000 - 30 * age + 100 * sex + 0.002 * icv - loss * cases + draw.normal(0, 400, n)
    return volumes, np.column_stack([age, sex, icv]), cases


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


def write_study(folder: Path, n: int = 40) -> tuple[Path, Path]:
    """Tables as segment --volumes and BIDS have them; sub-0 lacks an age, one participant has no scan."""
    values, covariates, cases = cohort(n)
    volumes, people = folder / "volumes.csv", folder / "participants.tsv"
    with volumes.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "total intracranial", "left hippocampus", "right hippocampus"])
        for i in range(n):
            writer.writerow([f"sub-{i}_T1w", covariates[i, 2], values[i] / 2 - i, values[i] / 2 + i])
        writer.writerow(["phantom", 1.0, 1.0, 1.0])
    with people.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["participant_id", "diagnosis", "age", "sex"])
        for i in range(n):
            age = "n/a" if i == 0 else repr(float(covariates[i, 0]))
            diagnosis = "MCI" if i == 2 else "AD" if cases[i] else "CN"
            writer.writerow([f"sub-{i}", diagnosis, age, "F" if covariates[i, 1] else "M"])
        writer.writerow(["sub-none", "AD", "70", "F"])
    return volumes, people


def study(**settings: object) -> StudyConfig:
    base = {"group": "diagnosis", "cases": "AD", "controls": "CN", "effect": EffectConfig(bootstrap=QUICK)}
    return StudyConfig(**{**base, **settings})  # type: ignore[arg-type]


def test_a_study_is_the_effect_of_its_tables_and_names_who_is_left_out(tmp_path: Path) -> None:
    volumes, people = map(str, write_study(tmp_path))
    config = study(covariates=("age", "sex"), icv="total intracranial", sum_sides=True)
    result = run_study(read_volumes(volumes), read_participants(people), config)
    values, covariates, cases = cohort(40)
    kept = np.array([i not in (0, 2) for i in range(40)])
    expected = effect_size(values[kept], covariates[kept], cases[kept], config.effect)
    (row,) = result.rows  # the intracranial volume it was corrected for is not tested
    assert row.structure == "hippocampus"
    assert (row.n_controls, row.n_cases) == (18, 20)
    assert row.cohens_d == pytest.approx(expected.d)
    assert (row.d_low, row.d_high) == pytest.approx((expected.interval.low, expected.interval.high))
    assert row.mean_controls_mm3 == pytest.approx(expected.mean_controls)
    assert row.corrected_for == "age, sex, total intracranial"
    said = " | ".join(result.notes)
    for words in ("1 not among the participants, left out: phantom", "1 of neither group, left out: sub-2"):
        assert words in said
    for words in ("1 without a scan, left out: sub-none", "1 without age, left out: sub-0_T1w", "sex has 2 categories"):
        assert words in said


def test_the_tidy_table_of_volumes_reads_like_the_wide_one(tmp_path: Path) -> None:
    wide, tidy = tmp_path / "v.csv", tmp_path / "v.tsv"
    wide.write_text("subject,total intracranial,left thalamus\na,10.5,2.0\nb,11.0,n/a\n", encoding="utf-8")
    lines = ["subject\tvalue\tstructure\tvolume_mm3"]
    lines += [
        f"{s}\tn/a\t{name}\t{v}" for s, name, v in (("a", "total intracranial", 10.5), ("a", "left thalamus", 2.0))
    ]
    lines += ["b\tn/a\ttotal intracranial\t11.0", "b\t10\tleft thalamus\tn/a"]
    tidy.write_text("\n".join(lines), encoding="utf-8")
    assert repr(read_volumes(wide)) == repr(read_volumes(tidy))
    assert read_volumes(wide)["a"] == {"total intracranial": 10.5, "left thalamus": 2.0}


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_what_segment_writes_is_read(tmp_path: Path, suffix: str) -> None:
    from synthseg.inference.layouts import volume_cells, volume_layout
    from synthseg.inference.tables import ScanTable

    volumes = {"total intracranial": 1500000.25, "left hippocampus": 3900.5, "brain-stem": 20000.0}
    layout = volume_layout(list(volumes), {"left hippocampus": 17, "brain-stem": 16})
    table = ScanTable(tmp_path / f"volumes{suffix}", layout)
    table.add("sub-01_T1w", volume_cells(volumes))
    table.save()
    assert read_volumes(table.path) == {"sub-01_T1w": volumes}


def test_categories_become_columns_and_a_sites_numbers_may_be_names(tmp_path: Path) -> None:
    volumes, people = write_study(tmp_path)
    table = read_participants(people)
    for number, cells in enumerate(table.values()):
        cells["site"] = str(1 + number % 3)
    as_names = run_study(read_volumes(volumes), table, study(covariates=("site",), categorical=("site",)))
    values, _, cases = cohort(40)
    kept = np.arange(40) != 2
    sites = np.arange(40) % 3
    dummies = np.column_stack([sites == 1, sites == 2]).astype(float)[kept]
    left = (values / 2 - np.arange(40))[kept]
    expected = effect_size(left, dummies, cases[kept], EffectConfig(bootstrap=QUICK))
    assert next(r for r in as_names.rows if r.structure == "left hippocampus").cohens_d == pytest.approx(expected.d)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"group": "dx"}, "no column 'dx'"),
        ({"cases": "FTD"}, "nobody with volumes is 'FTD'; there are AD, CN, MCI"),
        ({"covariates": ("weight",)}, "no column 'weight'"),
        ({"icv": "eTIV"}, "no volume or column 'eTIV'"),
        ({"structures": ("amygdala",)}, "no volume amygdala"),
        ({"structures": ("left hippocampus",), "icv": "left hippocampus"}, "only left hippocampus, which is corrected"),
        ({"scans": "*FLAIR*"}, r"no subject named \*FLAIR\*"),
    ],
)
def test_what_is_not_in_the_tables_is_named(tmp_path: Path, change: dict[str, object], says: str) -> None:
    volumes, people = write_study(tmp_path)
    with pytest.raises(UsageError, match=says):
        run_study(read_volumes(volumes), read_participants(people), study(**change))


def test_covariates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    volumes, people = write_study(tmp_path)
    table = read_participants(people)
    for name, cells in table.items():
        cells["scanner"] = "B" if cells["diagnosis"] == "AD" else "A"
        cells["mixed"] = "seventy" if name == "sub-4" else cells["age"]
    with pytest.raises(UsageError, match=r"covariate scanner \(B\).*one value among the 19 subjects"):
        run_study(read_volumes(volumes), table, study(covariates=("scanner",)))
    with pytest.raises(UsageError, match=r"covariate mixed.*'seventy'"):
        run_study(read_volumes(volumes), table, study(covariates=("mixed",)))


def test_two_scans_of_a_participant_need_a_choice(tmp_path: Path) -> None:
    volumes, people = write_study(tmp_path)
    with volumes.open("a", encoding="utf-8") as file:
        file.write("sub-3_FLAIR,1500000.0,3000.0,3000.0\n")
    with pytest.raises(UsageError, match=r"sub-3.*sub-3_T1w and sub-3_FLAIR.*--scans"):
        run_study(read_volumes(volumes), read_participants(people), study())
    assert run_study(read_volumes(volumes), read_participants(people), study(scans="*_T1w")).rows


def test_the_command_prints_and_writes_effects(command: Command, tmp_path: Path) -> None:
    volumes, people = write_study(tmp_path)
    out = tmp_path / "effects.tsv"
    groups = ("--group", "diagnosis", "--cases", "AD", "--controls", "CN", "--resamples", 200)
    code, text, _ = command(
        "effect", volumes, people, *groups, "--covariates", "age,sex", "--icv", "--sum-sides", "-o", out
    )
    assert code == 0
    assert "18 controls, 20 cases" in text
    assert "left out: phantom" in text
    (line,) = csv.DictReader(out.open(encoding="utf-8"), delimiter="\t")
    assert line["structure"] == "hippocampus"
    assert float(line["cohens_d"]) > float(line["d_low"]) > 0
    assert (line["fit"], line["variance"]) == ("controls", "n-1")
    code, _, err = command("effect", volumes, people, *groups, "--fit", "cases")
    assert (code, "use one of controls, all, within" in err) == (2, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scan,left\na,1\n", "first column 'scan'"),
        ("subject,left\na,1\na,2\n", "subject a twice"),
        ("subject,left\na,big\n", "'big' in line 2, column left"),
    ],
)
def test_tables_that_hold_no_volumes_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "v.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=rf"v\.csv.*{says}"):
        read_volumes(path)
