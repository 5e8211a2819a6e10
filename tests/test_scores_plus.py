"""The proof of the hierarchy: its cases, bars and page on results made by hand, the denoiser's part with a stand-in."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the installed package

from benchmarks.plus import cases, denoiser  # noqa: E402
from benchmarks.plus.bars import Measured, bars_of  # noqa: E402
from benchmarks.plus.denoiser import UNHARMED, Repair, mend, repairs  # noqa: E402
from benchmarks.plus.intracranial import (  # noqa: E402
    BRAIN,
    SKULL,
    TEMPLATES,
    IntracranialRow,
    filled_mm3,
    inside_skull_mm3,
)
from benchmarks.plus.networks import Networks  # noqa: E402
from benchmarks.plus.page import Proof, write_plus  # noqa: E402
from benchmarks.plus.parcels import ParcelRow, ScanParcels, parcel_rows  # noqa: E402
from benchmarks.plus.plot import write_plot  # noqa: E402
from benchmarks.scores.halves import PLUS, with_first, with_second  # noqa: E402

from inference_helpers import band_model, phantom, save_scan  # noqa: E402
from synthseg.errors import VolumeError  # noqa: E402
from synthseg.evaluation import CaseResult, ParcelGroup, ScoreRow, run_case  # noqa: E402
from synthseg.evaluation.corruption import CORRUPTIONS  # noqa: E402
from synthseg.evaluation.yardstick import Case, near_labels, settings_key  # noqa: E402
from synthseg.inference import Model, Segmenter  # noqa: E402
from synthseg.labels import load_protocol  # noqa: E402
from synthseg.volumes import Volume, read_volume  # noqa: E402


def result(scan: str, change: str, dice: float, predicted: float | None = None) -> CaseResult:
    return CaseResult(
        scan=scan,
        group=cases.BRAINS,
        change=change,
        rows=(ScoreRow(scan, 17, "left hippocampus", dice, 3.0, 1.0, 1.0),),
        volumes_mm3={17: 1.0},
        total_mm3=1.0,
        seconds=1.0,
        groups={"thalamus": dice, "brainstem": dice / 2},
        predicted={} if predicted is None else {"thalamus": predicted, "brainstem": predicted / 2},
    )


def repair(kind: str, change: str, before: float, after: float) -> Repair:
    return Repair(kind, "a", change, {"x": before, "y": before}, {"x": after, "y": after})


def parcel(kind: str, dice: float) -> ParcelRow:
    return ParcelRow("cuneus", kind, "good", "1 : 1", dice, 0.9, 0.8)


def volume_row(kind: str, predicted: float) -> IntracranialRow:
    template = next(t for t in TEMPLATES if t.kind == kind)
    return IntracranialRow(template, predicted, 1000.0)


def proof(gain: float = 0.1) -> Proof:
    default = [result(scan, change, 0.5) for scan in ("a", "b") for change in cases.CONDITIONS]
    robust = [
        result(scan, change, 0.5 + gain + 0.02 * (scan == "b") + 0.01 * i, predicted=0.5 + gain + 0.01 * i)
        for scan in ("a", "b")
        for i, change in enumerate(cases.CONDITIONS)
    ]
    return Proof(
        facts=[("network, denoiser", "`d`")],
        default=default,
        robust=robust,
        checked={"robust": robust},
        repairs=[repair("made", UNHARMED, 1, 0.9), repair("made", "half", 0.5, 0.8), repair("real", "snr-5", 0.6, 0.7)],
        parcels=[parcel("one to one", 0.7), parcel("union", 0.1)],
        parcel_scans=[ScanParcels("a", {}, {}, 0.85)],
        intracranial={"default": [volume_row(SKULL, 930), volume_row(BRAIN, 1500)]},
        missing=["mode robust with parcels: no weights"],
        failures=["mode robust, a snr-5: no good"],
        picture="pictures/quality.png",
    )


def verdicts(given: Proof) -> dict[str, bool | None]:
    return {bar.what: bar.held for bar in bars_of(given.measured())}


def test_bars_hold_and_miss_where_they_should():
    good, bad = verdicts(proof()), verdicts(proof(gain=-0.2))
    for change in (*cases.SINGLE, cases.HARD):
        assert good[f"robust - default, mean Dice, {change}"] is True
        assert bad[f"robust - default, mean Dice, {change}"] is False
    assert good["the denoiser on held-out maps, made errors, mean Dice before and after"] is True
    assert good["predicted against true Dice, mode robust, Pearson"] is True
    assert good["parcels where the mapping is one to one, mean Dice"] is True
    skull, every = [what for what in good if what.startswith("intracranial")]
    assert good[skull] is True  # 7 % less than the skull's
    assert good[every] is False  # the brain mask is further off
    worse = dataclasses.replace(proof(), intracranial={"default": [volume_row(SKULL, 915)]})
    assert verdicts(worse)[skull] is False


def test_what_is_not_there_is_not_measured():
    bars = bars_of(Measured([], [], {}, [], [], {}))
    assert [bar.held for bar in bars] == [None] * len(bars)
    page = write_plus(Proof(facts=[]))
    assert "nan" not in page
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["Bars of SynthSeg+"]


def test_the_page_holds_every_part():
    page = write_plus(proof())
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    parts = ["Robust against default", "The denoiser", "Quality control", "Parcels", "Intracranial volume"]
    assert headings == ["Bars of SynthSeg+", *parts]
    assert page.startswith(f"{PLUS}\n")
    assert "nan" not in page
    for text in (
        "no weights",
        "no good",
        "pictures/quality.png",
        "| half | 1 | 0.500 / 0.800 |",
        "0.850",
        "930 (-7.0 %)",
    ):
        assert text in page
    assert f"| {cases.HARD} | 2 | 0.500 | 0.680 | +0.180 | +0.170 to +0.190 | 2 of 2 |" in page
    only_default = write_plus(Proof(facts=[], default=[result("a", "snr-5", 0.5)]))
    assert "| snr-5 | 1 | 0.500 | 3.00 |" in only_default


def test_each_command_leaves_the_others_half_alone():
    both = with_second(with_first("", "# Scores\n\nfirst\n"), f"{PLUS}\n\nsecond\n")
    assert both == f"# Scores\n\nfirst\n\n{PLUS}\n\nsecond\n"
    assert with_first(both, "# Scores\n\nnew\n") == f"# Scores\n\nnew\n\n{PLUS}\n\nsecond\n"
    assert with_second(both, f"{PLUS}\n\nnew\n") == f"# Scores\n\nfirst\n\n{PLUS}\n\nnew\n"
    assert with_second("", f"{PLUS}\n\nsecond\n") == f"{PLUS}\n\nsecond\n"
    assert with_first(f"{PLUS}\n\nsecond\n", "# Scores\n") == f"# Scores\n\n{PLUS}\n\nsecond\n"


def test_cases_are_of_brains_that_chose_nothing(shared: Path):
    data = shared / "data" / "validation"
    compared, graded = cases.compared(data), cases.graded(data)
    assert len(compared) == len(cases.SCANS) * len(cases.CONDITIONS)
    assert len(graded) == len(cases.SEVERITIES) * len(cases.SCANS) // 2
    names = {(case.group, case.scan, case.change) for case in (*compared, *graded)}
    assert len(names) == len(compared) + len(graded)
    assert all(case.image.is_file() and case.truth.is_file() for case in (*compared, *graded))
    assert not {case.scan for case in compared} & {"oasis_1000", "oasis_1017", "oasis_1113", "oasis_1125"}
    assert {case.scan for case in cases.compared(data, few=True)} == set(cases.SCANS[:2])


def test_parcels_of_both_sides_are_one_row():
    groups = [
        ParcelGroup("a", "left", (1,), (1001,), "good", 0.6),
        ParcelGroup("a", "right", (2,), (2001,), "good", 0.8),
        ParcelGroup("b", "right", (4, 6), (2002,), "good", 0.5),
    ]
    keys = [(g.side, g.name) for g in groups]
    scans = [
        ScanParcels("x", dict(zip(keys, (0.2, 0.4, 0.9), strict=True)), dict.fromkeys(keys, 0.5), 0.8),
        ScanParcels("y", dict(zip(keys, (0.6, math.nan, 0.7), strict=True)), dict.fromkeys(keys, 0.5), 0.8),
    ]
    a, b = parcel_rows(groups[::-1], scans)
    assert (a.name, a.kind, a.truth, a.dice, a.template) == ("a", "one to one", "1 : 1", pytest.approx(0.4), 0.7)
    assert (b.kind, b.truth, b.dice) == ("union", "2 : 1", pytest.approx(0.8))


def test_masks_are_filled_and_bone_is_left_out():
    x, y, z = np.meshgrid(*[np.arange(40.0) - 19.5] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    hollow = Volume(((radius < 15) & (radius > 6)).astype(np.float32), np.diag([1.0, 1, 2, 1]))
    assert filled_mm3(hollow) == pytest.approx(2 * (radius < 15).sum())
    hu = np.where(radius < 15, 35.0, 0.0)
    hu[(radius >= 15) & (radius < 18) & (z > 0)] = 700  # a rim of the skull
    hu[19:21, 19:21, :6] = 40  # something thin that hangs on
    measured = inside_skull_mm3(Volume((hu * 10).astype(np.float32), np.eye(4)), scale=10)
    assert measured == pytest.approx((radius < 15).sum(), rel=0.03)


def test_the_picture_is_of_numbers(tmp_path: Path):
    assert write_plot({"robust": proof().robust}, tmp_path / "a.png", 0.65)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not write_plot({"robust": proof().default}, tmp_path / "b.png", 0.65)
    assert not (tmp_path / "b.png").exists()


def test_networks_that_are_missing_are_sentences(tmp_path: Path):
    networks = Networks({"denoiser": str(tmp_path / "none.safetensors")}, device="cpu")
    assert networks.model("robust", "denoiser") is None
    assert networks.segmenter("robust") is None
    assert all("none.safetensors" in sentence or "no weights" in sentence for sentence in networks.missing)
    assert len(networks.missing) == 2


class SameAgain(nn.Module):
    """Logits that are the one-hot input; with ``wrong`` everything becomes background."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, hot: Tensor) -> Tensor:
        return hot.roll(0, 1) if not self.wrong else (hot * 0).index_fill(1, hot.new_zeros(1).long(), 1.0)


def stand_in(wrong: bool = False) -> Model:
    groups = load_protocol("tissue-groups")
    return Model.from_network(SameAgain(wrong), groups, spacing_mm=4.0, multiple=8, role="denoiser")


def test_repairs_of_a_denoiser_that_does_nothing_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(denoiser, "FIELD_MM", (80, 88, 72))
    monkeypatch.setattr(cases, "SCANS", ("oasis_1", "oasis_2"))
    levels = {350: 2, 500: 47, 750: 53, 1000: 4}
    truth = np.zeros(phantom().shape, dtype=np.int32)
    for level, label in levels.items():
        truth[phantom() == level] = label
    for scan in cases.SCANS:
        save_scan(tmp_path / "validation" / "oasis" / f"{scan}_aseg.nii.gz", truth)
    made = list(repairs(tmp_path / "validation", stand_in(), None, tmp_path / "kept"))
    assert [(r.scan, r.change) for r in made] == [(s, c) for s in cases.SCANS for c in (UNHARMED, *CORRUPTIONS)]
    assert all(r.before == r.after for r in made)
    assert made[0].before == dict.fromkeys(made[0].before, 1.0)
    assert sum(min(r.before.values()) < 0.97 for r in made) >= len(CORRUPTIONS)
    kept = list(repairs(tmp_path / "validation", stand_in(wrong=True), None, tmp_path / "kept"))
    assert kept == made  # read, not made again: the stand-ins have one name


def test_mending_keeps_the_shape_of_the_map():
    groups = np.random.default_rng(0).integers(0, 5, (9, 11, 7))
    np.testing.assert_array_equal(mend(groups, stand_in()), groups)
    assert not mend(groups, stand_in(wrong=True)).any()


def test_a_field_of_view_around_the_labels_changes_no_score(tmp_path: Path):
    image = phantom()
    truth = np.where(image == 350, 2, 0).astype(np.int32)
    truth[36:][truth[36:] == 2] = 41
    save_scan(tmp_path / "a.nii.gz", image)
    save_scan(tmp_path / "t.nii.gz", truth)
    scan, cut = near_labels(read_volume(tmp_path / "a.nii.gz"), read_volume(tmp_path / "t.nii.gz", labels=True), 3)
    assert cut.shape == scan.shape < image.shape
    assert (cut.data > 0).sum() == (truth > 0).sum()
    case = Case(scan="a", image=tmp_path / "a.nii.gz", truth=tmp_path / "t.nii.gz", group="g")
    segmenter = Segmenter(band_model(), "fast")
    near = run_case(dataclasses.replace(case, margin_mm=6), segmenter)
    # By group, sides together: the stand-in takes the middle of its image for the middle of the head.
    assert near.groups == pytest.approx(run_case(case, segmenter).groups, abs=0.01)
    assert near.groups["general white matter"] == pytest.approx(1, abs=0.01)
    assert set(near.groups) == {"general white matter"} | {"hippocampus+amygdala", "brainstem"}  # of either map
    assert near.predicted == {}
    other = Volume(truth, np.diag([2.0, 2, 2, 1]))
    with pytest.raises(VolumeError, match=r"a.nii.gz: found another grid"):
        near_labels(read_volume(tmp_path / "a.nii.gz"), other, 3)


def test_results_belong_to_all_networks_of_a_run():
    one, two = (dataclasses.replace(band_model(), sha256=digit * 64) for digit in "12")
    plain = Segmenter(one, "fast")

    def beside(quality: Model) -> Segmenter:
        other = Segmenter(one, "fast")
        other.placement = dataclasses.replace(other.placement, models={"structures": one, "quality": quality})
        return other

    with_another, with_other = beside(two), beside(dataclasses.replace(two, sha256="3" * 64))
    assert len({settings_key(s) for s in (plain, with_another, with_other)}) == 3
