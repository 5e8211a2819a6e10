"""Tables of scores, methods compared on them, and what becomes of missing, undefined and infinite values."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from synthseg.errors import UsageError
from synthseg.evaluation.measurements import (
    MEAN,
    Measurement,
    join_tables,
    merge_sides,
    read_measurements,
    select,
)
from synthseg.evaluation.paired import PairedConfig, PairedRow, compare_methods, stars
from synthseg.evaluation.statistics import BootstrapConfig

Command = Callable[..., tuple[int, str, str]]
QUICK = BootstrapConfig(resamples=200)
STRUCTURES = {"17": "left hippocampus", "53": "right hippocampus", "16": "brain-stem"}


def scores(method: str, values: dict[str, list[float]], metric: str = "dice", **columns: str) -> list[Measurement]:
    """Scans s0, s1, ... of a method: values by label."""
    unit = "" if metric == "dice" else "mm"
    return [
        Measurement(
            scan=f"s{number}",
            method=method,
            label=label,
            structure=STRUCTURES[label],
            metric=metric,
            value=value,
            unit=unit,
            columns=columns,
        )
        for label, listed in values.items()
        for number, value in enumerate(listed)
    ]


def two_methods(n: int = 12, gain: float = 0.03, seed: int = 0) -> list[Measurement]:
    draw = np.random.default_rng(seed)
    base = {label: draw.uniform(0.7, 0.9, n) for label in STRUCTURES}
    better = {label: (values + gain + draw.normal(0, 0.005, n)).tolist() for label, values in base.items()}
    return scores("new", better) + scores("old", {label: values.tolist() for label, values in base.items()})


def compared(rows: list[Measurement], **settings: object) -> dict[str, PairedRow]:
    result = compare_methods(rows, PairedConfig(bootstrap=QUICK, **settings))  # type: ignore[arg-type]
    return {row.structure: row for row in result.rows}


def write(path: Path, rows: list[Measurement], more: tuple[str, ...] = ()) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        names = ("scan", "method", "label", "structure", "metric", "value", "unit")
        writer.writerow((*names, *more))
        for row in rows:
            writer.writerow([*(getattr(row, name) for name in names), *(row.columns[name] for name in more)])
    return path


def test_a_comparison_is_scipys_test_with_its_family_and_means() -> None:
    rows = two_methods()
    found = compared(rows)
    values = {
        (row.method, row.structure): [r.value for r in rows if (r.method, r.structure) == (row.method, row.structure)]
        for row in rows
    }
    for structure in STRUCTURES.values():
        row, ours, theirs = found[structure], *(np.array(values[m, structure]) for m in ("new", "old"))
        assert row.p == pytest.approx(stats.wilcoxon(ours, theirs).pvalue)
        assert (row.family_size, row.p_corrected) == (3, pytest.approx(min(1, 3 * row.p)))
        assert row.mean_difference == pytest.approx((ours - theirs).mean())
        assert row.median_difference == pytest.approx(np.median(ours - theirs))
        assert row.mean_low < row.mean_difference < row.mean_high
        assert row.better == "new"
    means = {m: np.mean([values[m, s] for s in STRUCTURES.values()], axis=0) for m in ("new", "old")}
    assert found[MEAN].p == pytest.approx(stats.wilcoxon(means["new"], means["old"]).pvalue)
    assert found[MEAN].family_size == 1
    assert found[MEAN].mean_difference == pytest.approx((means["new"] - means["old"]).mean())


def test_one_family_for_the_whole_table_and_holms_correction() -> None:
    found = compared(two_methods(), family="all", correction="holm")
    assert {row.family_size for row in found.values()} == {4}
    smallest = min(row.p for row in found.values())
    assert min(row.p_corrected for row in found.values()) == pytest.approx(4 * smallest)


def test_scans_of_one_method_only_are_named_and_counted() -> None:
    rows = [row for row in two_methods(5) if (row.method, row.scan) not in {("old", "s1"), ("new", "s4")}]
    result = compare_methods(rows, PairedConfig(bootstrap=QUICK))
    assert {(row.n_pairs, row.n_only_a, row.n_only_b) for row in result.rows} == {(3, 1, 1)}
    assert any("1 scan(s) only in new, left out: s1" in note for note in result.notes)
    assert any("1 scan(s) only in old, left out: s4" in note for note in result.notes)


def test_a_structure_that_one_method_lacks_in_some_scans_is_said() -> None:
    rows = [r for r in two_methods(5) if not (r.method == "old" and r.scan == "s1" and r.label == "16")]
    result = compare_methods(rows, PairedConfig(bootstrap=QUICK))
    stem, mean = (next(r for r in result.rows if r.structure == name) for name in ("brain-stem", MEAN))
    assert (stem.n_pairs, stem.n_only_a, mean.n_pairs) == (4, 1, 5)
    assert any("do not have the same scans of every structure: brain-stem" in note for note in result.notes)


def test_means_over_structures_are_of_the_structures_both_have() -> None:
    rows = scores("a", {"17": [0.8, 0.8], "53": [0.2, math.nan]}) + scores("b", {"17": [0.7, 0.7], "53": [0.3, 0.9]})
    found = compared(rows)
    assert found[MEAN].mean_difference == pytest.approx((0.0 + 0.1) / 2)  # s1: the left side alone
    assert found["right hippocampus"].n_undefined == 1


def test_infinite_distances_are_the_worst_and_two_of_them_tie() -> None:
    inf = math.inf
    ours = scores("ours", {"17": [1.0, 1.5, 1.2, inf, 2.0, 1.1]}, "sd95")
    theirs = scores("theirs", {"17": [inf, inf, inf, inf, 2.5, 1.9]}, "sd95")
    row = compared(ours + theirs)["left hippocampus"]
    assert (row.n_pairs, row.n_zero, row.n_infinite) == (6, 1, 4)
    assert (row.w_positive, row.w_negative) == (0.0, 15.0)
    assert row.median_difference == -inf
    assert row.mean_difference == pytest.approx((-0.5 - 0.8) / 2)
    assert row.p == row.p_smallest == pytest.approx(2 / 2**5)
    assert compared(ours + theirs, significance=0.1)["left hippocampus"].better == "ours"


def test_a_scan_without_any_defined_value_counts_as_undefined_in_the_means_too() -> None:
    rows = scores("a", {"17": [0.8, math.nan, 0.7], "53": [0.9, math.nan, 0.6]})
    rows += scores("b", {"17": [0.7, 0.5, 0.6], "53": [0.8, 0.5, 0.7]})
    mean = compared(rows)[MEAN]
    assert (mean.n_pairs, mean.n_undefined, mean.n_only_a, mean.n_only_b) == (2, 1, 0, 0)


def test_every_two_methods_or_one_against_the_others() -> None:
    rows = two_methods() + scores("third", {label: [0.5] * 12 for label in STRUCTURES})
    pairs = {(r.method_a, r.method_b) for r in compare_methods(rows, PairedConfig(bootstrap=QUICK)).rows}
    assert pairs == {("new", "old"), ("new", "third"), ("old", "third")}
    against = compare_methods(rows, PairedConfig(bootstrap=QUICK, reference="third")).rows
    assert {(r.method_a, r.method_b) for r in against} == {("third", "new"), ("third", "old")}
    assert {r.family_size for r in against if r.structure != MEAN} == {6}
    with pytest.raises(UsageError, match="fourth"):
        compare_methods(rows, PairedConfig(reference="fourth"))


def test_conditions_are_compared_apart_or_refused() -> None:
    rows = [
        row
        for condition in ("plain", "thick")
        for method, value in (("a", 0.8), ("b", 0.7))
        for row in scores(method, {"17": [value, value + 0.01]}, condition=condition)
    ]
    with pytest.raises(UsageError, match=r"scan s0.*--by COLUMN \(condition\)"):
        compare_methods(rows)
    assert [r.by for r in compare_methods(rows, PairedConfig(by="condition", bootstrap=QUICK)).rows] == [
        "plain",
        "thick",
    ]
    assert len(select(rows, where={"condition": "thick"})) == 4
    with pytest.raises(UsageError, match="only plain, thick"):
        select(rows, where={"condition": "thin"})
    with pytest.raises(UsageError, match="it has condition"):
        select(rows, where={"site": "A"})


def test_scores_at_two_tolerances_are_not_compared() -> None:
    ours = scores("a", {"17": [0.9, 0.8]}, "surface_dice")
    theirs = [Measurement(**{**vars(row), "method": "b", "unit": "at 2 mm"}) for row in ours]
    with pytest.raises(UsageError, match="at 2 mm"):
        compare_methods(ours + theirs)


def test_sides_merge_into_means_and_volumes_into_sums() -> None:
    rows = scores("a", {"17": [0.8, math.nan, 0.5], "53": [0.6, 0.4, 0.5], "16": [0.9, 0.9, 0.9]})
    merged = {(row.structure, row.scan): row for row in merge_sides(rows)}
    assert len(merged) == 6
    assert merged["hippocampus", "s0"].value == pytest.approx(0.7)
    assert merged["hippocampus", "s1"].value == pytest.approx(0.4)
    assert merged["hippocampus", "s0"].label == "17,53"
    volumes = [Measurement(**{**vars(row), "metric": "volume_truth", "unit": "mm3"}) for row in rows]
    assert next(row for row in merge_sides(volumes) if row.scan == "s2").value == pytest.approx(1.0)


def test_long_and_wide_tables_read_alike(tmp_path: Path) -> None:
    wide = tmp_path / "old.csv"
    wide.write_text("scan,label,structure,dice,sd95_mm,site\ns0,17,left hippocampus,0.5,inf,A\n", encoding="utf-8")
    rows = read_measurements(wide)
    assert [(r.method, r.metric, r.value, r.unit) for r in rows] == [
        ("old", "dice", 0.5, ""),
        ("old", "sd95", math.inf, "mm"),
    ]
    assert rows[0].columns == {"site": "A"}
    long = write(tmp_path / "long.tsv", rows, ("site",))
    assert read_measurements(long) == rows


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "scan\n1\n", "suffix"),
        ("a.tsv", "", "without lines"),
        ("a.tsv", "scan\tmetric\tvalue\tstructure\n1\tdice\tx\ts\n", "'x' in line 2, column value"),
        ("a.tsv", "scan\tmetric\tvalue\n1\tdice\t1\n", "no column structure"),
        ("a.tsv", "scan\tfoo\n1\t2\n", "columns scan, foo"),
        ("a.csv", "scan,dice,structure\ns0,1\n", "2 cells in line 2, 3 in the header"),
        ("a.csv", "scan,scan\ns0,1\n", "occurs twice"),
    ],
)
def test_tables_that_are_no_scores_are_refused_by_name(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=rf"{name}.*{says}"):
        read_measurements(path)


def test_two_tables_of_one_method_need_names(tmp_path: Path) -> None:
    rows = scores("seg", {"17": [0.5, 0.6]})
    paths = [write(tmp_path / name, rows) for name in ("a.tsv", "b.tsv")]
    with pytest.raises(UsageError, match="--names"):
        join_tables(paths)
    assert {row.method for row in join_tables(paths, ["ours", "theirs"])} == {"ours", "theirs"}
    with pytest.raises(UsageError, match="1 names for 2 tables"):
        join_tables(paths, ["ours"])


@pytest.mark.parametrize(("p", "expected"), [(0.05, ""), (0.049, "*"), (0.0099, "**"), (0.0001, "***"), (math.nan, "")])
def test_stars(p: float, expected: str) -> None:
    assert stars(p) == expected


def test_the_command_prints_writes_and_says_what_was_left_out(command: Command, tmp_path: Path) -> None:
    rows = [row for row in two_methods(8) if (row.method, row.scan) != ("old", "s3")]
    new = write(tmp_path / "a.tsv", [row for row in rows if row.method == "new"])
    old = write(tmp_path / "b.tsv", [row for row in rows if row.method == "old"])
    table = tmp_path / "out" / "table.tsv"
    code, out, _ = command("compare", new, old, "--resamples", 200, "-o", table)
    assert code == 0
    assert "dice: new minus old" in out
    assert "1 scan(s) only in new, left out: s3" in out
    lines = list(csv.DictReader(table.open(encoding="utf-8"), delimiter="\t"))
    assert [line["structure"] for line in lines] == [*STRUCTURES.values(), MEAN]
    assert {line["n_only_a"] for line in lines} == {"1"}
    assert float(lines[0]["p_corrected"]) == pytest.approx(min(1, 3 * float(lines[0]["p"])), rel=1e-6)
    assert lines[0]["better"] == "new"


def test_names_give_way_in_a_narrow_terminal_and_numbers_stay(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Measurement(**{**vars(row), "method": f"{row.method}[1]"}) for row in two_methods(8)]
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as far as rich can tell
    monkeypatch.setenv("COLUMNS", "72")
    code, out, _ = command("compare", write(tmp_path / "a.tsv", rows), "--resamples", 200)
    assert code == 0
    assert "new[1] minus old[1]" in out
    assert "…" not in out
    assert out.count("+1.00") == 4  # the effect size of every line, whole


def test_the_command_says_when_tests_cannot_reach_significance(command: Command, tmp_path: Path) -> None:
    table = write(tmp_path / "a.tsv", two_methods(4))
    code, out, _ = command("compare", table, "--resamples", 200)
    assert code == 0
    assert "4 of 4 tests have too few differing pairs (down to 4)" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--metric", "hausdorff"), "'hausdorff'; the tables have dice"),
        (("--names", "a,b"), "2 names for 1 tables"),
        (("--where", "site"), "write COLUMN=VALUE"),
        (("--by", "site"), "no such column"),
        (("-o", "table.xlsx"), "the suffix '.xlsx'"),
        (("--figure", "boxes.jpg"), "the suffix '.jpg'"),
        (("--correction", "sidak"), "use one of bonferroni, holm, none"),
        (("--resamples", "5"), "draw at least 100"),
    ],
)
def test_wrong_usage_ends_with_2(command: Command, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    table = write(tmp_path / "a.tsv", two_methods(4))
    code, _, err = command("compare", table, *arguments)
    assert code == 2
    assert says in err
