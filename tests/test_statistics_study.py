"""A group study from tables: who takes part, what is corrected for, what is said of the others."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cohort_helpers import QUICK, cohort
from synthseg.errors import UsageError
from synthseg.evaluation.effects import EffectConfig, effect_size
from synthseg.evaluation.groups_study import StudyConfig, run_study
from synthseg.evaluation.subjects import read_participants, read_volumes

Command = Callable[..., tuple[int, str, str]]


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


def test_sides_are_summed_only_where_there_are_two_of_them() -> None:
    """FreeSurfer has WM-hypointensities beside Left- and Right-WM-hypointensities: none may swallow the others."""
    sizes = {"Left-Hippocampus": 4.0, "Right-Hippocampus": 3.5, "Left-vessel": 1.0}
    parts = {"WM-hypointensities": 900.0, "Left-WM-hypointensities": 5.0, "Right-WM-hypointensities": 7.0}
    doubled = {"left choroid": 1.0, "left_choroid": 2.0}
    volumes = {f"s{n}": {k: v + n * (n % 3) for k, v in (sizes | parts | doubled).items()} for n in range(8)}
    people = {f"s{n}": {"participant_id": f"s{n}", "diagnosis": "AD" if n % 2 else "CN"} for n in range(8)}
    found = {row.structure: row.mean_controls_mm3 for row in run_study(volumes, people, study(sum_sides=True)).rows}
    assert list(found) == ["Hippocampus", "Left-vessel", *parts, *doubled]
    mean = np.mean([n * (n % 3) for n in (0, 2, 4, 6)])
    assert found["Hippocampus"] == pytest.approx(7.5 + 2 * mean)
    assert found["WM-hypointensities"] == pytest.approx(900 + mean)


def test_results_do_not_overwrite_what_they_are_made_of(command: Command, tmp_path: Path) -> None:
    volumes, people = write_study(tmp_path)
    before = volumes.read_bytes()
    code, _, err = command(
        "effect", volumes, people, "--group", "diagnosis", "--cases", "AD", "--controls", "CN", "-o", volumes
    )
    assert (code, "which the command reads" in err, volumes.read_bytes() == before) == (2, True, True)


def test_a_participant_with_and_without_sub_is_the_same_person(tmp_path: Path) -> None:
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tgroup\nsub-01\tAD\n02\tCN\n01\tCN\n")
    with pytest.raises(UsageError, match=r"the participant 01 twice \(line 4\)"):
        read_participants(table)
