"""Groups, parcels, predictions, comparisons and corruptions against counts made by hand and against scipy."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synthseg.errors import LabelError, OutputError, UsageError
from synthseg.evaluation import CaseResult, ScoreRow
from synthseg.evaluation.agreement import group_dice, group_names, grouped
from synthseg.evaluation.comparison import compare, compare_groups
from synthseg.evaluation.corruption import CORRUPTIONS, corrupt
from synthseg.evaluation.groups import groups_on
from synthseg.evaluation.kept import kept
from synthseg.evaluation.parcels import (
    ParcelGroup,
    cortex_mask,
    read_parcel_groups,
    score_parcels,
    without_parcels,
)
from synthseg.evaluation.prediction import (
    Prediction,
    calibration,
    confusion,
    predictions_of,
    score_predictions,
    verdict_of,
)
from synthseg.labels import load_protocol
from synthseg.volumes import Volume

PROTOCOL = load_protocol("synthseg-2.0")


def line(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32).reshape(-1, 1, 1)


def test_groups_merge_structures_and_sides_and_leave_ignored_voxels_out():
    # Putamen and pallidum of both sides are one group: exchanging them costs nothing, losing one voxel of four does.
    truth = line(12, 13, 51, 52, 0, 255, 17, 24)
    predicted = line(13, 12, 51, 0, 52, 12, 53, 10)
    scores = group_dice(predicted, truth, PROTOCOL)
    assert list(scores) == list(group_names("quality").values())
    assert scores["putamen+pallidum"] == pytest.approx(2 * 3 / (4 + 4))
    assert scores["hippocampus+amygdala"] == 1
    assert scores["thalamus"] == 0  # predicted only, where the truth has CSF, which is in no group
    assert math.isnan(scores["brainstem"])


def test_tissue_groups_are_another_column_and_unknown_values_are_background():
    scores = group_dice(line(2, 10, 999, 3), line(10, 2, 4, 3), PROTOCOL, "tissue")
    assert scores["white matter, deep nuclei and brain-stem"] == 1
    assert scores["ventricles"] == 0
    with pytest.raises(LabelError, match=r"no named groups for the column 'topology'"):
        group_dice(line(2), line(2), PROTOCOL, "topology")
    with pytest.raises(LabelError, match=r"value to ignore: found 24"):
        group_dice(line(2), line(2), PROTOCOL, ignore_value=24)


@given(st.lists(st.sampled_from([0, 3, 42, 1001, 2035, 255]), min_size=1, max_size=20))
def test_grouping_is_a_look_up(values: list[int]):
    mapping = {3: 1, 42: 1, 1001: 2, 2035: 3}
    result = grouped(line(*values), mapping, keep=255).ravel().tolist()
    assert result == [255 if value == 255 else mapping.get(value, 0) for value in values]


TABLE = """braincolor_id,braincolor_name,side,dk_id,dk_name,group,quality,mni_group_dice
100,R a,right,2002,a,a,good,0.8
101,L a,left,1002,a,a,fair,0.6
102,R b,right,2003+2005,b,b,good,
104,R b2,right,2003+2005,b,b,good,0.7
106,R poor,right,2002,a,poorly,poor,0.1
"""


def parcel_table(folder: Path, text: str = TABLE) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_groups_of_parcels_are_read_and_told_apart(tmp_path: Path):
    right_a, left_a, b, poor = read_parcel_groups(parcel_table(tmp_path))
    assert right_a == ParcelGroup("a", "right", (100,), (2002,), "good", 0.8)
    assert (left_a.truth, left_a.quality) == ((101,), "fair")
    assert (b.truth, b.predicted) == ((102, 104), (2003, 2005))
    assert math.isnan(b.template_dice)
    assert [group.one_to_one for group in (right_a, left_a, b, poor)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("dk_id", "other"), r"table.csv: found no column dk_id"),
        (("2003+2005,b,b,good,0.7", "2003,b,b,good,0.7"), r"line 5: found other parcels .* for right b"),
        (("101,L", "x,L"), r"line 3: found 'x' against '1002'"),
    ],
)
def test_a_bad_table_of_parcels_is_refused(tmp_path: Path, change: tuple[str, str], message: str):
    with pytest.raises(LabelError, match=message):
        read_parcel_groups(parcel_table(tmp_path, TABLE.replace(*change)))
    with pytest.raises(LabelError, match=r"none.csv: found no such file"):
        read_parcel_groups(tmp_path / "none.csv")


def test_parcels_are_scored_as_they_are_and_within_the_cortex_of_both(tmp_path: Path):
    groups = read_parcel_groups(parcel_table(tmp_path))
    truth = line(100, 100, 100, 102, 104, 106, 0, 0)
    predicted = line(2002, 2002, 2005, 2003, 2005, 2002, 2003, 41)
    scores = {(s.group.name, s.group.side): s for s in score_parcels(predicted, truth, groups)}
    assert set(scores) == {("a", "right"), ("a", "left"), ("b", "right")}  # the poor one is not scored
    assert scores["a", "right"].dice == pytest.approx(2 * 2 / (3 + 3))
    assert scores["b", "right"].dice == pytest.approx(2 * 2 / (4 + 2))
    assert scores["b", "right"].within == pytest.approx(2 * 2 / (3 + 2))  # without the voxel that is no cortex
    assert math.isnan(scores["a", "left"].dice)
    with pytest.raises(LabelError, match=r"groups of parcels: found a parcel in two of them"):
        score_parcels(predicted, truth, [*groups, groups[0]])


def test_cortex_stands_for_its_parcels():
    labels = Volume(line(0, 2, 3, 1001, 42, 2035), np.eye(4))
    assert without_parcels(labels).data.ravel().tolist() == [0, 2, 3, 3, 42, 42]
    assert cortex_mask(labels.data).ravel().tolist() == [False, False, True, True, True, True]
    plain = Volume(line(0, 2, 3), np.eye(4))
    assert without_parcels(plain) is plain


def test_the_shared_table_has_sixteen_one_to_one_parcels_a_side(shared: Path):
    groups = read_parcel_groups(shared / "data" / "validation" / "braincolor_to_dk.csv")
    known = {label.value for label in load_protocol("desikan-killiany").labels}
    pairs = [group for group in groups if group.one_to_one]
    assert [sum(group.side == side for group in pairs) for side in ("left", "right")] == [16, 16]
    assert all(set(group.predicted) <= known for group in groups)
    score_parcels(line(0), line(0), groups)  # no parcel is in two groups


def points(*pairs: tuple[float, float]) -> list[Prediction]:
    return [Prediction("a", "plain", "g", predicted, true) for predicted, true in pairs]


def test_correlation_and_area_are_what_they_are_defined_as():
    drawn = np.random.default_rng(0).random((60, 2)).round(1)  # rounded: ties
    sample = points(*[(float(p), float(t)) for p, t in drawn])
    score = score_predictions(sample, 0.65)
    assert score.pearson == pytest.approx(np.corrcoef(drawn.T)[0, 1])
    good, bad = drawn[drawn[:, 1] >= 0.65, 0], drawn[drawn[:, 1] < 0.65, 0]
    wins = [(g > b) + 0.5 * (g == b) for g, b in itertools.product(good, bad)]
    assert score.auc == pytest.approx(np.mean(wins))
    assert (score.n, score.n_bad) == (60, len(bad))
    assert score.bias == pytest.approx((drawn[:, 0] - drawn[:, 1]).mean())
    assert score.error == pytest.approx(np.abs(drawn[:, 0] - drawn[:, 1]).mean())


def test_what_a_set_cannot_say_is_not_a_number():
    assert math.isnan(score_predictions(points((0.5, 0.7), (0.6, 0.8), (0.7, 0.9)), 0.65).auc)  # none is bad
    assert math.isnan(score_predictions(points((0.5, 0.7), (0.5, 0.8), (0.5, 0.9)), 0.65).pearson)
    assert score_predictions([], 0.65).n == 0


def test_calibration_puts_every_prediction_into_one_bin():
    sample = points((0.0, 0.1), (0.5, 0.6), (0.5, 0.8), (1.0, 0.9))
    low, high = calibration(sample, (0, 0.5, 1), 0.65)
    assert (low.n, low.true, low.share_bad) == (1, pytest.approx(0.1), 1.0)
    assert (high.n, high.predicted, high.true) == (3, pytest.approx(2 / 3), pytest.approx((0.6 + 0.8 + 0.9) / 3))
    assert high.share_bad == pytest.approx(1 / 3)
    with pytest.raises(UsageError, match=r"edges of the calibration"):
        calibration(sample, (0.5, 0.5), 0.65)


def test_verdicts_are_counted_by_truth_and_word():
    counts = confusion(points((0.7, 0.6), (0.6, 0.6), (0.9, 0.9), (0.75, 0.7)), 0.65, 0.75)
    assert counts["fail", "warn"] == counts["fail", "fail"] == counts["pass", "pass"] == counts["warn", "pass"] == 1
    assert sum(counts.values()) == 4
    assert [verdict_of(d, 0.65, 0.75) for d in (0.6499, 0.65, 0.7499, 0.75)] == ["fail", "warn", "warn", "pass"]


def result(scan: str, change: str, dice: float, groups: dict[str, float], predicted: dict[str, float]) -> CaseResult:
    rows = (ScoreRow(scan, 17, "left hippocampus", dice, 2.0 - dice, 1.0, 1.0),)
    return CaseResult(
        scan=scan,
        group="brains",
        change=change,
        rows=rows,
        volumes_mm3={17: 1.0},
        total_mm3=1.0,
        seconds=1.0,
        groups=groups,
        predicted=predicted,
    )


def test_predictions_without_a_true_dice_are_left_out():
    results = [
        result("a", "plain", 0.5, {"x": 0.5, "y": math.nan}, {"x": 0.4, "y": 0.9}),
        result("b", "plain", 1, {}, {}),
    ]
    assert predictions_of(results) == [Prediction("a", "plain", "x", 0.4, 0.5)]


def test_ways_are_compared_over_the_scans_that_both_have():
    before = [result(s, "snr-5", d, {"x": d}, {}) for s, d in (("a", 0.5), ("b", 0.7), ("only here", 0.0))]
    after = [result(s, "snr-5", d, {"x": d / 2}, {}) for s, d in (("b", 0.6), ("a", 0.8))]
    (found,) = compare(before, after)
    assert (found.change, found.n_scans, found.n_better) == ("snr-5", 2, 1)
    assert (found.before, found.after, found.difference) == pytest.approx((0.6, 0.7, 0.1))
    assert (found.worst, found.best) == pytest.approx((-0.1, 0.3))
    assert (found.before_sd95_mm, found.after_sd95_mm) == pytest.approx((1.4, 1.3))
    assert compare_groups(before, after, "snr-5")["x"] == pytest.approx((0.6, 0.35))
    assert compare(before, []) == []


def test_a_result_is_made_once_and_again_when_damaged(tmp_path: Path):
    made = []

    def make() -> dict[str, object]:
        made.append(1)
        return {"x": len(made), "nan": math.nan}

    path = tmp_path / "a" / "b.json"
    assert kept(path, make)["x"] == kept(path, make)["x"] == 1
    assert math.isnan(kept(path, make)["nan"])
    path.write_text("[1]", encoding="utf-8")
    assert kept(path, make)["x"] == 2
    with pytest.raises(ZeroDivisionError):
        kept(tmp_path / "c.json", lambda: {"x": 1 / 0})
    assert not (tmp_path / "c.json").exists()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError):
        kept(tmp_path / "file" / "c.json", make)


def brain() -> np.ndarray:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 48, 36)], indexing="ij")
    radius = np.sqrt((x / 0.8) ** 2 + (y / 0.8) ** 2 + (z / 0.8) ** 2)
    groups = np.where(radius < 0.7, 1, np.where(radius < 1, 2, 0)).astype(np.int32)
    groups[radius < 0.25] = 3
    groups[(radius < 1) & (y < -0.3) & (z < -0.3)] = 4
    return groups


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_change_what_they_say_and_come_again(kind: str):
    groups = brain()
    wrong, again, other = (corrupt(groups, kind, 4.0, rng=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    np.testing.assert_array_equal(groups, brain())
    np.testing.assert_array_equal(wrong, again)
    assert wrong.dtype == groups.dtype
    assert set(np.unique(wrong)) <= {0, 1, 2, 3, 4}
    changed = wrong != groups
    assert 0.002 < changed.sum() / (groups > 0).sum() < 0.9
    lost, gained = (groups > 0) & (wrong == 0), (groups == 0) & (wrong > 0)
    assert lost.any() == (kind in ("erased", "moved", "eroded", "half", "speckled", "all"))
    assert gained.any() == (kind in ("added", "moved", "dilated", "all"))
    if kind not in ("eroded", "dilated"):
        assert (wrong != other).any()


def test_half_a_hemisphere_is_a_quarter_of_a_brain():
    groups = brain()
    wrong = corrupt(groups, "half", 4.0, rng=torch.Generator().manual_seed(0))
    assert ((groups > 0) & (wrong == 0)).sum() / (groups > 0).sum() == pytest.approx(0.25, abs=0.05)
    with pytest.raises(LabelError, match=r"corruption of a label map: found 'halves'"):
        corrupt(groups, "halves", 4.0, rng=torch.Generator())
    with pytest.raises(LabelError, match=r"nothing but background"):
        corrupt(np.zeros((3, 3, 3), np.int32), "half", 4.0, rng=torch.Generator())


def test_a_truth_on_a_coarser_grid_goes_to_the_largest_share():
    data = np.zeros((24, 24, 24), dtype=np.int32)
    data[4:20, 4:20, 4:20] = 2
    data[4:12, 4:20, 4:20] = 3
    data[16:20, 4:20, 4:20] = 255
    coarse = np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] = 0.5  # voxels of 2 mm, edges together
    args = (Volume(data, np.eye(4)), {0: 0, 2: 1, 3: 2}, (12, 12, 12), coarse)
    groups = groups_on(*args, spacing_mm=2)
    expected = np.zeros((12, 12, 12), dtype=np.int32)
    expected[2:10, 2:10, 2:10] = 1
    expected[2:6, 2:10, 2:10] = 2
    expected[8:10, 2:10, 2:10] = 255
    inside = (slice(None), slice(3, 9), slice(3, 9))  # edges of the block lose shares to rounding
    np.testing.assert_array_equal(groups[inside], expected[inside])
    filled = groups_on(*args, spacing_mm=2, fill=True)
    assert not (filled == 255).any()
    assert (filled[8:9][:, 3:9, 3:9] == 1).all()
