"""Means, losses and volume changes over results made by hand."""

from __future__ import annotations

import math

import pytest

from synthseg.evaluation import (
    CaseResult,
    ScoreRow,
    loss_against_plain,
    median_percent,
    rows_of,
    structure_dice,
    summarise_conditions,
    volume_changes,
    volume_ratios,
)

LEFT, RIGHT, STEM = (17, "left hippocampus"), (53, "right hippocampus"), (16, "brain-stem")


def result(
    scan: str,
    change: str = "plain",
    dice: tuple[float, ...] = (0.8, 0.6, 0.7),
    sd95: tuple[float, ...] = (1, 2, 3),
    volumes: tuple[float, ...] = (1000, 2000, 3000),
    group: str = "brains",
) -> CaseResult:
    structures = zip((STEM, LEFT, RIGHT), dice, sd95, volumes, strict=True)
    rows = tuple(ScoreRow(scan, label, name, d, s, v, 1000.0) for (label, name), d, s, v in structures)
    soft = dict(zip((16, 17, 53), volumes, strict=True))
    return CaseResult(
        scan=scan, group=group, change=change, rows=rows, volumes_mm3=soft, total_mm3=sum(volumes), seconds=1.0
    )


def test_every_scan_weighs_the_same_and_lost_structures_are_counted():
    first = result("a", dice=(0.9, 0.7, math.nan), sd95=(1, 3, math.nan))
    second = result("b", dice=(0.5, 0.0, 0.1), sd95=(5, math.inf, 7))
    one, other = summarise_conditions([first, second, result("a", "inverted", group="heads")])
    assert (one.group, one.change, one.n_scans, one.n_missing) == ("brains", "plain", 2, 1)
    assert one.dice == pytest.approx((0.8 + 0.2) / 2)
    assert one.sd95_mm == pytest.approx((2 + 6) / 2)
    assert (other.group, other.change, other.n_missing) == ("heads", "inverted", 0)


def test_structures_join_their_sides_in_order_of_label():
    dice = structure_dice([result("a", dice=(0.9, 0.6, math.nan)), result("b", dice=(0.7, 0.2, 0.1))])
    assert list(dice) == ["brain-stem", "hippocampus"]
    assert dice == pytest.approx({"brain-stem": 0.8, "hippocampus": 0.3})


def test_a_loss_compares_the_same_scans():
    results = [
        result("a", dice=(0.9, 0.9, 0.9)),
        result("b", dice=(0.5, 0.5, 0.5)),
        result("never degraded", dice=(0.1, 0.1, 0.1)),
        result("a", "axial-7mm", dice=(0.8, 0.8, 0.8)),
        result("a", "coronal-7mm", dice=(0.6, 0.6, 0.6)),
        result("b", "axial-7mm", dice=(0.5, 0.5, 0.5)),
        result("b", "axial-3mm", dice=(0.0, 0.0, 0.0)),  # not asked for
        result("no partner", "axial-7mm", dice=(0.0, 0.0, 0.0)),
    ]
    loss = loss_against_plain(results, lambda r: r.change.endswith("-7mm"))
    assert loss is not None
    assert (loss.n_pairs, loss.before) == (3, pytest.approx((0.9 + 0.9 + 0.5) / 3))
    assert loss.dice == pytest.approx((0.1 + 0.3 + 0.0) / 3)
    assert loss_against_plain(results, lambda r: r.change == "inverted") is None


def test_volume_changes_are_absolute_percentages_of_the_volume_before():
    results = [
        result("a", volumes=(1000, 2000, 0)),
        result("a", "rotated-x-3", volumes=(1010, 1900, 5)),
        result("a", "shifted", volumes=(1000, 1000, 0)),
        result("b", "rotated-x-3", volumes=(1, 1, 1)),  # never seen plain
    ]
    changes = volume_changes(results, lambda r: r.change.startswith("rotated"))
    assert {change.label: change.percent for change in changes} == pytest.approx({16: 1.0, 17: 5.0})
    assert median_percent(changes) == pytest.approx(3.0)
    assert math.isnan(median_percent([]))


def test_ratios_add_up_both_sides_and_take_medians():
    results = [result("a", volumes=(1500, 2000, 3000)), result("b", volumes=(500, 1000, 1000)), result("c")]
    stem, hippocampus = volume_ratios(results)
    assert (stem.structure, stem.n_scans, stem.ratio) == ("brain-stem", 3, pytest.approx(1.0))
    assert hippocampus.truth_cm3 == pytest.approx(2.0)
    assert hippocampus.predicted_cm3 == pytest.approx(5.0)
    assert hippocampus.ratio == pytest.approx(2.5)


def test_raw_rows_say_which_change_they_are_of():
    assert [row.scan for row in rows_of([result("a"), result("a", "inverted")])] == ["a"] * 3 + ["a@inverted"] * 3
