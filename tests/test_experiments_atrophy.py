"""Simulated patients: exactly the share that was asked for is lost, from the surface inwards, on known volumes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments are no part of the installed package

from experiments.atrophy import HIPPOCAMPI, make_subjects, run_atrophy, scan_of, shrink
from experiments.methods import Labelled
from experiments.places import Places
from experiments.study import Atrophy
from experiments.toy import toy_bank
from experiments.volumes import write_effects

from synthseg.errors import VolumeError
from synthseg.generation.bank import LabelBank


def _ball() -> np.ndarray:
    grid = np.indices((15, 15, 15)) - 7
    return np.where((grid**2).sum(0) <= 25, 17, 2).astype(np.int32)


@given(share=st.floats(0, 0.95))
def test_the_share_that_is_lost_is_the_share_asked_for(share):
    before = _ball()
    after = shrink(before, 17, share, 5)
    lost = (before == 17) & (after != 17)
    assert int(lost.sum()) == round(share * int((before == 17).sum()))
    assert (after[lost] == 5).all()
    assert (after[~lost] == before[~lost]).all()


def test_what_is_left_of_a_ball_is_a_smaller_ball():
    after = shrink(_ball(), 17, 0.5, 5)
    distance = np.sqrt(((np.indices(after.shape) - 7) ** 2).sum(0))
    assert distance[after == 17].max() <= distance[after == 5].min() + 0.8


def test_patients_have_lost_what_they_should_and_everyone_differs(tmp_path):
    bank = LabelBank.load(toy_bank(tmp_path / "bank.safetensors", 3))
    study = Atrophy(toy_subjects=6, mean_loss=0.5, sd_loss=0.02)
    subjects = make_subjects(study, 6, bank, "toy")
    assert [s.patient for s in subjects] == [False] * 6 + [True] * 6
    assert len({s.icv_mm3 for s in subjects}) > 8
    means = [np.mean([s.truth_mm3 for s in subjects if s.patient is wanted]) for wanted in (False, True)]
    assert 0.35 < means[1] / means[0] < 0.7  # half is lost, of people who differ
    again = make_subjects(study, 6, bank, "toy")
    assert [s.truth_mm3 for s in again] == [s.truth_mm3 for s in subjects]
    for subject in subjects[:2]:
        target = subject.labels.protocol.targets[subject.labels.label_map(0).numpy()]
        scan = scan_of(subject, "t1", "plain", "toy")
        voxel = float(np.prod(scan.spacing_mm))
        assert subject.truth_mm3 == np.isin(target, HIPPOCAMPI).sum() * voxel


def test_a_method_that_measures_truly_finds_the_true_effect_and_is_asked_once(tmp_path):
    bank = toy_bank(tmp_path / "bank.safetensors", 2)
    study = Atrophy(toy_subjects=2, contrasts=("t1",), toy_changes=("plain",))
    truths = iter([s.truth_mm3 for s in make_subjects(study, 2, LabelBank.load(bank), "toy")])

    class Truthful:
        key = "truthful"
        asked = 0

        def segment(self, scan, *, ct, fine):  # noqa: ARG002
            Truthful.asked += 1
            return Labelled(scan, {17: next(truths) / 2, 53: 0.0})

    places = Places(out=tmp_path, bank=bank)
    pages = []
    for _ in range(2):
        assert run_atrophy(study, {"half": Truthful}, places, "toy") == []
        page = (tmp_path / "summary.md").read_text(encoding="utf-8")
        pages.append([line.split("|") for line in page.splitlines() if line.startswith(("| truth", "| half"))])
    assert pages[0] == pages[1]
    assert Truthful.asked == 4  # the second run reads what the first has measured
    truth, half = pages[0]
    assert truth[3] == half[3]  # an effect size does not see a scale
    assert half[6].strip() == "-50.0 %"


def test_volumes_of_other_subjects_are_not_taken_for_these_and_a_failure_stops_nothing(tmp_path):
    bank = toy_bank(tmp_path / "bank.safetensors", 2)
    places = Places(out=tmp_path, bank=bank)

    class Method:
        key = "method"
        asked = 0

        def segment(self, scan, *, ct, fine):  # noqa: ARG002
            Method.asked += 1
            if Method.asked == 2:
                raise VolumeError("scan", found="nothing", fix="none")
            return Labelled(scan, {17: 100.0 + Method.asked})

    study = Atrophy(toy_subjects=2, contrasts=("t1",), toy_changes=("plain",))
    failed = run_atrophy(study, {"m": Method}, places, "toy")
    assert [one[:2] for one in failed] == [("m", "control-001 t1 plain")]
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "Failed, and not counted: m, control-001" in page
    assert run_atrophy(study, {"m": Method}, places, "toy") == []
    assert Method.asked == 5  # the one that failed is tried again
    run_atrophy(replace(study, mean_loss=0.5), {"m": Method}, places, "toy")
    assert Method.asked == 9


def test_without_controls_there_is_no_effect_size_and_the_page_is_written_all_the_same(tmp_path):
    facts = [{"truth_mm3": 9.0 + n, "icv_mm3": 100.0 + n, "patient": n % 2} for n in range(24)]
    rows = [{"method": "truth", "condition": "-", "volume_mm3": one["truth_mm3"], **one} for one in facts]
    rows += [{"method": "m", "condition": "c", "volume_mm3": 5.0 + n, **one} for n, one in enumerate(facts[1::2])]
    page = write_effects(rows, tmp_path / "summary.md", "title").read_text(encoding="utf-8")
    assert next(line for line in page.splitlines() if line.startswith("| m | c |")).endswith("| - | - | - |")
