"""Figures of scores: what is drawn is what the tables hold, the same bytes each time, sizes of a printed column."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from synthseg.errors import ConfigError, UsageError
from synthseg.evaluation.measurements import Measurement
from synthseg.evaluation.paired import PairedConfig, compare_methods
from synthseg.evaluation.scan_means import (
    by_size,
    common_scans,
    curve_points,
    scan_means,
    uneven_scans,
    with_condition,
)
from synthseg.evaluation.statistics import BootstrapConfig
from synthseg.report import plotting
from synthseg.report.boxes import BoxOptions, write_boxes
from synthseg.report.curves import CurveOptions, write_curves

pytest.importorskip("matplotlib")
Command = Callable[..., tuple[int, str, str]]
QUICK = BootstrapConfig(resamples=200)
SVG = "{http://www.w3.org/2000/svg}"


def one(scan: str, method: str, structure: str, value: float, **columns: str) -> Measurement:
    return Measurement(
        scan=scan, method=method, label="", structure=structure, metric="dice", value=value, unit="", columns=columns
    )


def many(methods: tuple[str, ...] = ("ours", "theirs"), n: int = 10) -> list[Measurement]:
    draw = np.random.default_rng(0)
    return [
        one(f"s{i}", method, structure, 0.9 - 0.1 * place + draw.normal(0, 0.01), dataset=dataset)
        for dataset in ("A",)
        for place, method in enumerate(methods)
        for structure in ("left hippocampus", "brain-stem")
        for i in range(n)
    ]


def words_of(path: Path) -> list[str]:
    """Text of an SVG whose letters are outlines: matplotlib writes it into comments."""
    return [
        line.strip()[5:-4] for line in path.read_text(encoding="utf-8").splitlines() if line.strip().startswith("<!--")
    ]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_scores_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    rows = many()
    compared = compare_methods(rows, PairedConfig(bootstrap=QUICK)).rows
    points = curve_points(rows, "dataset", None, QUICK)
    files = []
    for name in ("a", "b"):
        boxes = write_boxes(rows, tmp_path / f"{name}{suffix}", compared)
        curves = write_curves(points, tmp_path / f"{name}-curve{suffix}", CurveOptions(x="dataset"))
        files.append((boxes.read_bytes(), curves.read_bytes()))
    assert files[0] == files[1]
    assert all(len(content) > 1000 for content in files[0])


def test_figures_are_as_wide_as_asked(tmp_path: Path) -> None:
    for width in (85.0, 180.0):
        path = write_boxes(many(), tmp_path / "a.svg", options=BoxOptions(width_mm=width))
        points = float(ElementTree.parse(path).getroot().attrib["width"].removesuffix("pt"))
        assert points == pytest.approx(width / 25.4 * 72, abs=0.01)


def test_stars_stand_with_the_method_that_beats_all_others(tmp_path: Path) -> None:
    rows = many()
    compared = compare_methods(rows, PairedConfig(bootstrap=QUICK)).rows
    words = words_of(write_boxes(rows, tmp_path / "a.svg", compared))
    # ten pairs of one sign: p = 2/2^10, twice that in a family of two structures: below 0.01
    assert words.count("**") == 2
    assert {"left hippocampus", "brain-stem", "Dice", "ours", "theirs"} <= set(words)
    assert not any("*" in word for word in words_of(write_boxes(rows, tmp_path / "b.svg")))
    third = [one(row.scan, "third", row.structure, row.value, **row.columns) for row in rows if row.method == "ours"]
    tied = compare_methods([*rows, *third], PairedConfig(bootstrap=QUICK)).rows
    assert not any("*" in word for word in words_of(write_boxes([*rows, *third], tmp_path / "c.svg", tied)))


def test_datasets_as_groups_show_means_of_scans(tmp_path: Path) -> None:
    rows = many()
    compared = compare_methods(rows, PairedConfig(by="dataset", bootstrap=QUICK)).rows
    for kind in ("box", "mean"):
        options = BoxOptions(by="dataset", kind=kind, bootstrap=QUICK)
        words = words_of(write_boxes(rows, tmp_path / "a.svg", compared, options))
        assert words.count("**") == 1
        assert "A" in words


def test_infinite_distances_are_counted_beside_their_box(tmp_path: Path) -> None:
    rows = [
        one(f"s{i}", "ours", "brain-stem", value) for i, value in enumerate([1.0, 2.0, math.inf, math.inf, math.nan])
    ]
    assert "+2 ∞" in words_of(write_boxes(rows, tmp_path / "a.svg"))


def test_a_scans_mean_is_over_its_structures_and_repetitions() -> None:
    rows = [
        one("s", "m", "a", 0.2, direction="x", mm="3"),
        one("s", "m", "b", 0.4, direction="x", mm="3"),
        one("s", "m", "a", 0.9, direction="y", mm="3"),
        one("s", "m", "b", math.nan, direction="y", mm="3"),
        one("s", "m", "a", 0.7, direction="y", mm="5"),
    ]
    assert {row.columns["mm"]: row.value for row in scan_means(rows, ("mm",))} == pytest.approx({"3": 0.5, "5": 0.7})


def test_points_of_a_curve_are_means_over_scans_in_order() -> None:
    rows = [
        one(f"s{i}", "m", "a", value + i / 10, maps=maps)
        for i in (0, 1)
        for maps, value in (("all", 0.8), ("5", 0.6), ("10", 0.7))
    ]
    points = curve_points(rows, "maps", None, QUICK)
    assert [(p.x, p.n_scans) for p in points] == [("5", 2), ("10", 2), ("all", 2)]
    assert [p.mean for p in points] == pytest.approx([0.65, 0.75, 0.85])
    assert all(p.interval.low <= p.mean <= p.interval.high for p in points)
    assert not uneven_scans(rows, "maps")
    assert uneven_scans(rows[:-1], "maps") == ["m: not the same scans at every maps (1 to 2 of 2)"]
    with pytest.raises(UsageError, match="resolution_mm"):
        curve_points(rows, "resolution_mm")


def test_a_trend_can_be_of_the_same_scans_at_every_point() -> None:
    rows = [one(f"s{i}", "m", "a", 0.5, mm=mm) for mm, n in (("1", 3), ("3", 2), ("n/a", 1)) for i in range(n)]
    known = with_condition(rows, "mm")
    assert len(known) == 5
    common = common_scans(known, "mm")
    assert {row.scan for row in common} == {"s0", "s1"}
    assert not uneven_scans(common, "mm")
    with pytest.raises(UsageError, match="no scan that every method has"):
        common_scans([one("s0", "m", "a", 0.5, mm="1"), one("s1", "m", "a", 0.5, mm="3")], "mm")


def test_numbers_come_by_size_and_words_after_them() -> None:
    assert sorted(["all", "10", "2", "1.5"], key=by_size) == ["1.5", "2", "10", "all"]


def test_curves_say_their_axes_lines_and_methods(tmp_path: Path) -> None:
    rows = [
        one(f"s{i}", method, "a", 0.9 - mm / 50 + i / 100, resolution_mm=str(mm), dataset=dataset)
        for i in range(3)
        for method in ("ours", "theirs")
        for mm in (1, 3, 5, 7)
        for dataset in ("FLAIR", "CT")
    ]
    points = curve_points(rows, "resolution_mm", "dataset", QUICK)
    words = words_of(write_curves(points, tmp_path / "a.svg", CurveOptions(x="resolution_mm", log_x=True)))
    assert {"1", "3", "5", "7", "resolution (mm)", "Dice", "ours", "theirs", "FLAIR", "CT"} <= set(words)


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(UsageError, match=r"a\.bmp.*\.png, \*\.svg or \*\.pdf"):
        write_boxes(many(), tmp_path / "a.bmp")
    with pytest.raises(UsageError, match="no scores"):
        write_boxes([], path)
    with pytest.raises(UsageError, match="no defined value"):
        write_boxes([one("s", "m", "a", math.nan)], path)
    with pytest.raises(UsageError, match="9 methods, of which 8"):
        write_boxes(many(tuple("abcdefghi"), 2), path)
    points = curve_points([one("s", "m", "a", 0.5, maps="all")], "maps", None, QUICK)
    with pytest.raises(UsageError, match="--log-x"):
        write_curves(points, path, CurveOptions(x="maps", log_x=True))
    with pytest.raises(ConfigError, match="width_mm"):
        BoxOptions(width_mm=5)
    assert not path.exists()


def test_without_matplotlib_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"synthseg\[report\]"):
        plotting.check_figure_path("a.png")


def test_colours_stay_apart_without_red_or_green_cones() -> None:
    """Simulated dichromacy (Viénot et al. 1999): any two differ clearly."""
    rgb = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in plotting.COLORS]) ** 2.2
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    for eye in (np.eye(3), protan, deutan):
        seen = np.clip(rgb @ eye.T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert apart[~np.eye(len(rgb), dtype=bool)].min() > 0.1


def test_the_plot_command_draws_boxes_and_curves(command: Command, tmp_path: Path) -> None:
    table = tmp_path / "scores.tsv"
    lines = ["scan\tmethod\tlabel\tstructure\tmetric\tvalue\tunit\tresolution_mm"]
    lines += [
        f"s{i}\tm\t17\ta\tdice\t{0.9 - mm / 50 + i / 100}\t\t{mm}" for i in range(3) for mm in (1, 3, 5) if i or mm < 5
    ]
    table.write_text("\n".join(lines), encoding="utf-8")
    code, out, _ = command("plot", table, "--x", "resolution_mm", "-o", tmp_path / "curve.svg", "--resamples", 200)
    assert code == 0
    assert "not the same scans at every resolution_mm (2 to 3 of 3)" in out
    assert "resolution (mm)" in words_of(tmp_path / "curve.svg")
    code, _, _ = command("plot", table, "--where", "resolution_mm=3", "-o", tmp_path / "boxes.png")
    assert code == 0
    assert (tmp_path / "boxes.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = command("plot", table, "--log-x", "-o", tmp_path / "c.svg")
    assert (code, "no --x" in err) == (2, True)
    code, _, err = command("plot", table, "--x", "maps", "-o", tmp_path / "c.svg")
    assert (code, "no such column" in err) == (2, True)
