"""The fetal study: folds that keep ages apart, banks without held-out maps, one run of it all."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fetal_study_helpers import FETA, SPACING, TOY, brain, save_maps  # makes experiments importable

# isort: split
from experiments.fetal import merging
from experiments.fetal import run as fetal_run
from experiments.fetal import score as fetal_score
from experiments.fetal.__main__ import RECIPE, main
from experiments.fetal.config import ARMS, EDITS, MILD, SEVERE, Arm, FetalConfig, arms_of
from experiments.fetal.phantom import draw_scan
from experiments.fetal.prepare import entries_of, entry_weights, make_bank, read_map, shapes_of
from experiments.fetal.subjects import Subject, folds_of, read_subjects

from synthseg.errors import ConfigError, UsageError
from synthseg.generation import LabelBank
from synthseg.training import load_recipe
from synthseg.volumes import read_volume, write_volume
from synthseg.weights import load_weights, save_weights


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_maps(tmp_path_factory.mktemp("maps"))


# Folds


def test_ages_are_read_from_names_and_come_in_order(maps: Path) -> None:
    assert [one.weeks for one in read_subjects(maps)] == [21, 25, 25, 30]
    with pytest.raises(UsageError, match="no label maps"):
        read_subjects(maps / "none")


@pytest.mark.parametrize(
    ("name", "weeks"), [("sb_ga21_notoperated_feta", 21), ("crl_sta30_feta", 30), ("wu_26w_feta", 26)]
)
def test_names_of_the_maps_at_hand_tell_their_age(name: str, weeks: int, tmp_path: Path) -> None:
    (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    assert read_subjects(tmp_path)[0].weeks == weeks


def test_a_map_without_an_age_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub-01.nii.gz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"sub-01.*no gestational age"):
        read_subjects(tmp_path)


@given(
    weeks=st.lists(st.integers(20, 38), min_size=3, max_size=20).filter(lambda w: len(set(w)) >= 3),
    how=st.sampled_from(["ages", "2", "3"]),
)
def test_no_age_is_on_both_sides_of_a_fold_and_every_map_is_held_out_once(weeks: list[int], how: str) -> None:
    subjects = [Subject(f"s{n}_ga{age}", Path(f"{n}"), age) for n, age in enumerate(weeks)]
    folds = folds_of(subjects, how)
    assert len({fold.name for fold in folds}) == len(folds)
    for fold in folds:
        assert not {one.weeks for one in fold.training} & {one.weeks for one in fold.held_out}
        assert len(fold.training) + len(fold.held_out) == len(subjects)
        assert fold.training
    held = [one.name for fold in folds for one in fold.held_out]
    assert sorted(held) == sorted(one.name for one in subjects)


def test_interleaved_folds_have_young_and_old_ones() -> None:
    subjects = [Subject(f"s{age}", Path("x"), age) for age in range(20, 29)]
    folds = folds_of(subjects, "3")
    assert [[one.weeks for one in fold.held_out] for fold in folds] == [[20, 23, 26], [21, 24, 27], [22, 25, 28]]


@pytest.mark.parametrize("how", ["1", "10", "age", "-2", ""])
def test_folds_that_cannot_be_made_are_refused(how: str) -> None:
    subjects = [Subject(f"s{age}", Path("x"), age) for age in range(20, 25)]
    with pytest.raises(UsageError, match="a number from 2 to 5"):
        folds_of(subjects, how)


def test_arms_are_named_and_say_what_they_turn_on() -> None:
    assert [(one.sampler, one.shapes) for one in arms_of(",".join(ARMS))] == [
        (False, False),
        (True, False),
        (False, True),
        (True, True),
    ]
    for wrong in ("sampling", "", "shapes,shapes"):
        with pytest.raises(UsageError, match="--arms"):
            arms_of(wrong)
    with pytest.raises(ConfigError, match="fewer edited"):
        FetalConfig(variants=4, edited=4)
    with pytest.raises(ConfigError, match="use some of t2"):
        FetalConfig(contrasts=("flair",))


def test_edited_strata_are_what_their_factors_say() -> None:
    # Severe means further from the map than mild, for every structure that is edited both ways.
    for kind in ("ventricles", "cerebellum", "cortex"):
        mild, severe = (
            [abs(math.log(e.severity)) for e in EDITS if (e.kind, e.stratum) == (kind, stratum)]
            for stratum in (MILD, SEVERE)
        )
        assert max(mild) < min(severe)


# Maps and banks


def test_a_map_gets_its_margin_even_where_its_field_of_view_ends(tmp_path: Path) -> None:
    volume = brain()
    path = write_volume(replace(volume, data=volume.data[:, 4:]), tmp_path / "cut_ga22.nii.gz")
    found = read_map(path, FETA, SPACING, 12.0)
    where = np.argwhere(found.data)
    assert (where.min(0) == 4).all()
    assert (np.array(found.shape) - 1 - where.max(0) == 4).all()
    back = np.linalg.inv(np.diag([SPACING] * 3 + [1.0])) @ found.affine @ [*where[0], 1]
    assert read_volume(path, labels=True).data[tuple(np.rint(back[:3]).astype(int))] == found.data[tuple(where[0])]


def test_all_arms_have_as_many_entries_a_map_with_the_same_surroundings(maps: Path, tmp_path: Path) -> None:
    subject = read_subjects(maps)[0]
    shapes = shapes_of(subject, tmp_path, TOY, SPACING, edited=2)
    assert [shape.name for shape in shapes] == [
        "a_ga21_feta",
        "a_ga21_feta_shape-01",
        "a_ga21_feta_shape-02",
    ]
    plain = entries_of(Arm("uniform", sampler=False, shapes=False), shapes, TOY)
    mixed = entries_of(Arm("shapes", sampler=False, shapes=True), shapes, TOY)
    assert [version for _, version in plain] == [version for _, version in mixed] == [0, 1, 2, 3]
    assert {shape.name for shape, _ in plain} == {"a_ga21_feta"}
    assert [shape.name.removeprefix("a_ga21_feta") for shape, _ in mixed] == ["", "", "_shape-01", "_shape-02"]


def test_a_bank_shows_its_maps_in_several_surroundings(maps: Path, tmp_path: Path) -> None:
    subject = read_subjects(maps)[0]
    shapes = {subject.name: shapes_of(subject, tmp_path / "maps", TOY, SPACING, edited=0)}
    bank = LabelBank.load(make_bank(Arm("uniform", sampler=False, shapes=False), shapes, tmp_path, TOY))
    own = brain().data
    assert bank.names == tuple(f"a_ga21_feta_v{n:02d}" for n in range(4))
    seen = set()
    for number in range(4):
        values = bank.protocol.values[bank.label_map(number).numpy()]
        target = bank.protocol.targets[bank.label_map(number).numpy()]
        for tissue in range(2, 8):  # fluid may be added, the brain stays
            assert (target == tissue).sum() == (own == tissue).sum()
        seen.add(values.tobytes())
    assert len(seen) == 4


def test_edited_variants_are_made_once_and_depend_on_their_map_alone(maps: Path, tmp_path: Path) -> None:
    subjects = read_subjects(maps)
    first = shapes_of(subjects[1], tmp_path / "one", TOY, SPACING, edited=1)[1].path
    shapes_of(subjects[0], tmp_path / "two", TOY, SPACING, edited=2)
    again = shapes_of(subjects[1], tmp_path / "two", TOY, SPACING, edited=1)[1].path
    assert np.array_equal(read_volume(first, labels=True).data, read_volume(again, labels=True).data)
    before = again.stat().st_mtime_ns
    shapes_of(subjects[1], tmp_path / "two", TOY, SPACING, edited=1)
    assert again.stat().st_mtime_ns == before
    own = read_volume(first.with_name("b_ga25_one_feta.nii.gz"), labels=True).data
    assert not np.array_equal(read_volume(first, labels=True).data, own)


def test_entries_are_weighted_as_their_maps_and_a_map_missing_on_either_side_is_named() -> None:
    names = ["a_v00", "a_v01", "a_shape-01_v02", "b_v00"]
    assert entry_weights(names, {"a": 0.5, "a_shape-01": 0.2, "b": 0.3}, "bank") == [0.5, 0.5, 0.2, 0.3]
    with pytest.raises(UsageError, match="b in the bank, but not in the weights"):
        entry_weights(names, {"a": 0.5, "a_shape-01": 0.5}, "bank")
    with pytest.raises(UsageError, match="c in the weights, but not in the bank"):
        entry_weights(names, {"a": 0.5, "a_shape-01": 0.2, "b": 0.3, "c": 0.1}, "bank")


# The whole


def toy_recipe(folder: Path) -> Path:
    text = RECIPE.read_text(encoding="utf-8")
    changes = {
        "shape = [96, 112, 96]": "shape = [16, 16, 16]",
        "spacing_mm = 1.0": f"spacing_mm = {SPACING}",
        "features = 16": "features = 4",
        "levels = 4": "levels = 2",
        "max_isotropic_mm = 1.6": "max_isotropic_mm = 4.0",
        "warmup_steps = 50": "warmup_steps = 0",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "toy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_studys_recipe_is_a_valid_one() -> None:
    recipe = load_recipe(RECIPE)
    assert recipe.network.out_channels == len(FETA.target_values)
    assert recipe.output.organ == "fetal brain"


@pytest.mark.slow
def test_the_study_runs_goes_on_and_never_trains_on_what_it_tests(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.fetal.__main__._config", lambda _: TOY)
    scans = tmp_path / "scans"
    write_volume(brain(9), scans / "crl_24w_feta.nii.gz")
    write_volume(draw_scan(brain(9), "t2", rng=torch.Generator().manual_seed(0)), scans / "crl_24w_t2.nii.gz")
    out = tmp_path / "out"
    command = ["--maps", str(maps), "--out", str(out), "--scans", str(scans), "--recipe", str(toy_recipe(tmp_path))]
    command += ["--steps", "2", "--device", "cpu", "--threads", "1", "--arms", "uniform,sampler+shapes"]
    assert main([*command, "--only", "ga25"]) == 0, capsys.readouterr().err
    for bank in (out / "ga25" / "banks").iterdir():
        assert {name.split("_")[0] for name in LabelBank.load(bank).names} == {"a", "d"}
    weighed = json.loads((out / "ga25" / "weights" / "sampler+shapes.json").read_text("utf-8"))
    assert {name.split("_")[0] for name in weighed} == {"a", "d"}
    assert len(weighed) == 6
    first = (out / "summary.md").read_text("utf-8")
    assert "1 of 3 folds (ga25)" in first
    monkeypatch.setattr(fetal_run, "score_cases", _no_new_work(fetal_run.score_cases))
    assert main([*command, "--only", "ga25"]) == 0
    assert (out / "summary.md").read_text("utf-8") == first
    merged_by_every_rule(out, scans, capsys, monkeypatch)
    assert main([*command, "--folds", "2"]) == 2
    assert "another folds" in capsys.readouterr().err


def _lukewarm(path: Path, bank: Path, out: Path, **_: object) -> dict[str, object]:
    assert bank.name == "plain.safetensors"
    weights = load_weights(path)
    save_weights(out, weights.tensors, {**weights.card, "temperature": 0.5})
    return {"temperature": 0.5}


def merged_by_every_rule(
    out: Path, scans: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arms of a finished fold, each alone (nothing of that is done again) and merged."""
    command = ["--study", str(out), "--scans", str(scans), "--device", "cpu", "--threads", "1"]
    assert merging.main([*command, "--folds", "ga22"]) == 2
    assert "give some of ga21, ga25, ga30" in capsys.readouterr().err
    assert merging.main(command) == 2  # the other folds have no networks
    assert "0 trained arms" in capsys.readouterr().err
    # Two steps teach a network nothing that a temperature could be fitted to.
    assert merging.main([*command, "--folds", "ga25"]) == 1
    assert "gets nothing of the labels" in capsys.readouterr().err
    monkeypatch.setattr(merging, "calibrate_temperature", _lukewarm)
    assert merging.main([*command, "--folds", "ga25"]) == 0, capsys.readouterr().err
    page = (out / "merging.md").read_text("utf-8")
    for method in ("uniform", "sampler+shapes", *merging.RULES):
        assert f"| {method} |" in page
    assert page in capsys.readouterr().out
    cards = [load_weights(path).card for path in sorted((out / "ga25" / "merged").glob("*.safetensors"))]
    assert [card["name"] for card in cards] == ["sampler+shapes", "uniform"]
    assert [card["temperature"] for card in cards] == [0.5, 0.5]
    monkeypatch.setattr(merging, "score_cases", _no_new_work(fetal_score.score_cases))
    assert merging.main([*command, "--folds", "ga25"]) == 0
    assert (out / "merging.md").read_text("utf-8") == page
    assert merging.main(["--study", str(scans), "--scans", str(scans)]) == 2
    capsys.readouterr()


def _no_new_work(score_cases):  # type: ignore[no-untyped-def]
    def only_kept(cases, segmenter, folder, protocol, *, say=lambda _: None):  # type: ignore[no-untyped-def]
        class Refusing:
            def __getattr__(self, name: str) -> object:
                if name == "segment":
                    raise AssertionError("segmented again")
                return getattr(segmenter, name)

        return score_cases(cases, Refusing(), folder, protocol, say=say)

    return only_kept


def test_what_cannot_be_run_is_said_before_anything_is_made(
    maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--maps", str(maps), "--out", str(tmp_path / "out")]
    assert main([*command, "--only", "ga22"]) == 2
    assert "give some of ga21, ga25, ga30" in capsys.readouterr().err
    assert main([*command, "--scans", str(tmp_path)]) == 2
    assert "no image with labels" in capsys.readouterr().err
    assert main([*command, "--arms", "both"]) == 2
    assert not (tmp_path / "out").exists()
