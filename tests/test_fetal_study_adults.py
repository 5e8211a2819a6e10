"""The sampler in the adult studies: maps held out, weights by shape, edited variants, groups by size of ventricles."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments are no part of the installed package

from experiments.anatomies import (  # noqa: E402
    VENTRICLES,
    held_out,
    held_out_cases,
    make_training_bank,
    make_weights,
    split_by_ventricles,
    ventricle_share,
)
from experiments.contrasts import CONTRASTS  # noqa: E402
from experiments.places import Places  # noqa: E402
from experiments.recipes import recipe_of  # noqa: E402
from experiments.study import Arm, Evaluation, load_study  # noqa: E402
from experiments.toy import head, toy_bank  # noqa: E402

from synthseg.errors import ConfigError  # noqa: E402
from synthseg.evaluation import Case  # noqa: E402
from synthseg.generation.bank import LabelBank  # noqa: E402
from synthseg.generation.map_weights import read_map_weights  # noqa: E402
from synthseg.labels import load_protocol  # noqa: E402
from synthseg.volumes import Volume, read_volume, write_volume  # noqa: E402


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_bank(tmp_path_factory.mktemp("bank") / "toy.safetensors", 4)


@given(n=st.integers(1, 60), share=st.floats(0, 0.99))
def test_held_out_maps_are_as_many_as_asked_for_and_all_over_the_bank(n: int, share: float) -> None:
    count = int(share * n)
    found = held_out(n, count)
    assert len(set(found)) == count
    assert all(0 <= position < n for position in found)
    gaps = np.diff([-1, *found, n])
    assert not count or gaps.max() - gaps.min() <= n / count / 2 + 1


def test_no_more_maps_than_there_are_can_be_held_out() -> None:
    with pytest.raises(ConfigError, match="give 0 to 3"):
        held_out(4, 4)
    with pytest.raises(ConfigError, match="0 or more maps"):
        Evaluation(held_out=-1)
    with pytest.raises(ConfigError, match="factors above 0"):
        Evaluation(ventricles=(0.0,))


def test_maps_held_out_are_in_no_arms_bank_whatever_it_edits(bank: Path, tmp_path: Path) -> None:
    given_ = LabelBank.load(bank)
    gone = given_.names[held_out(4, 1)[0]]
    plain = LabelBank.load(make_training_bank(bank, tmp_path, held=1, shapes=0))
    assert plain.names == tuple(name for name in given_.names if name != gone)
    for name in plain.names:
        ours, theirs = plain.names.index(name), given_.names.index(name)
        assert np.array_equal(plain.label_map(ours), given_.label_map(theirs))
    assert make_training_bank(bank, tmp_path, held=0, shapes=0) == bank


def test_edited_variants_stand_beside_their_maps_and_are_made_once(bank: Path, tmp_path: Path) -> None:
    path = make_training_bank(bank, tmp_path, held=3, shapes=2)
    found = LabelBank.load(path)
    (kept,) = [n for n in range(4) if n not in held_out(4, 3)]
    name = LabelBank.load(bank).names[kept]
    assert found.names == (name, f"{name}_shape-01", f"{name}_shape-02")
    maps = {found.label_map(n).numpy().tobytes() for n in range(3)}
    assert len(maps) == 3
    before = path.stat().st_mtime_ns
    assert make_training_bank(bank, tmp_path, held=3, shapes=2).stat().st_mtime_ns == before


@pytest.mark.parametrize("scheme", ["general", pytest.param("reference", marks=pytest.mark.slow)])
def test_the_map_that_is_unlike_the_others_is_drawn_more_often(scheme: str, tmp_path: Path) -> None:
    maps = [head(0) for _ in range(12)]  # as many as two clusters need
    rare = np.where(np.isin(maps[0], (2, 41)) & (np.indices(maps[0].shape)[2] > 22), 4, maps[0])  # white matter lost
    jitter = [np.where((m == 3) & (np.indices(m.shape)[1] < 6 + n // 2), 24, m) for n, m in enumerate(maps)]
    names = [f"common-{n}" for n in range(12)] + ["rare"]
    bank = LabelBank.from_maps([*jitter, rare], [(3.0,) * 3] * 13, names, load_protocol("synthseg-generation"))
    path = bank.save(tmp_path / "bank.safetensors")
    weights = read_map_weights(make_weights(path, scheme, tmp_path / "weights.tsv"))  # type: ignore[arg-type]
    assert list(weights) == names
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["rare"] == max(weights.values())
    assert weights["rare"] > 1.2 / 13


def test_arms_that_sample_or_edit_do_not_take_subsets_as_well() -> None:
    with pytest.raises(ConfigError, match="leave one of the two out"):
        Arm(name="a", maps=3, sampler="general")
    with pytest.raises(ConfigError, match="0 or more variants"):
        Arm(name="a", shapes=-1)


def test_the_studys_arms_differ_in_maps_and_weights_alone(bank: Path, tmp_path: Path) -> None:
    study, places = load_study("sampler"), Places(out=tmp_path, bank=bank)
    study = replace(study, evaluation=replace(study.evaluation, held_out=1))
    made = {arm.name: recipe_of(study, arm, "laptop", places) for arm in study.arms}
    assert made["uniform"].data.map_weights is None
    assert made["uniform"].data.bank == made["sampler"].data.bank
    assert made["shapes"].data.bank == made["sampler+shapes"].data.bank != made["uniform"].data.bank
    assert len({(one.data.bank, one.data.map_weights) for one in made.values()}) == len(made)
    assert len({(one.generation, one.network, one.optimizer) for one in made.values()}) == 1


def test_an_arms_weights_are_of_the_maps_that_it_trains_on(bank: Path, tmp_path: Path) -> None:
    study, places = load_study("sampler"), Places(out=tmp_path, bank=bank)
    study = replace(study, evaluation=replace(study.evaluation, held_out=2))
    arm = next(arm for arm in study.arms if arm.name == "sampler")
    places.prepare(arm, 2, "laptop")
    recipe = recipe_of(study, arm, "laptop", places)
    names = LabelBank.load(recipe.data.bank).names
    assert len(names) == 2
    assert recipe.weights_of(names) == pytest.approx((0.5, 0.5))


def test_test_scans_of_held_out_maps_have_the_ventricles_that_their_group_says(bank: Path, tmp_path: Path) -> None:
    evaluation = Evaluation(held_out=1, ventricles=(1.0, 1.5))
    cases = held_out_cases(bank, tmp_path, evaluation, "toy")
    assert len(cases) == 2 * len(CONTRASTS)
    assert {case.group for case in cases} == {
        f"held-out maps, {contrast}, ventricles x {factor}" for contrast in CONTRASTS for factor in ("1", "1.5")
    }
    own, wide = (
        next(read_volume(case.truth, labels=True).data for case in cases if case.group.endswith(f"x {factor}"))
        for factor in ("1", "1.5")
    )
    assert np.isin(wide, VENTRICLES).sum() > 1.25 * np.isin(own, VENTRICLES).sum()
    times = [case.image.stat().st_mtime_ns for case in cases]
    assert [case.image.stat().st_mtime_ns for case in held_out_cases(bank, tmp_path, evaluation, "toy")] == times


def test_groups_of_four_brains_are_split_by_their_ventricles(tmp_path: Path) -> None:
    cases = []
    for number, size in enumerate((3, 9, 5, 7, 1)):
        labels = np.full((10, 10, 10), 2, dtype=np.int32)
        labels[:size, 0, 0] = 4
        labels[0, 9] = 255  # not known: in neither
        truth = write_volume(Volume(labels, np.eye(4)), tmp_path / f"{number}.nii.gz")
        group = "brains" if number < 4 else "alone"
        changes = ("plain", "axial-5mm")
        cases += [Case(scan=str(number), image=truth, truth=truth, group=group, change=c) for c in changes]
    assert ventricle_share(tmp_path / "1.nii.gz") == pytest.approx(9 / 990)
    found = {(case.scan, case.change): case.group for case in split_by_ventricles(cases)}
    for change in ("plain", "axial-5mm"):
        assert [found[str(n), change] for n in range(5)] == [
            "brains, narrow ventricles",
            "brains, wide ventricles",
            "brains, narrow ventricles",
            "brains, wide ventricles",
            "alone",
        ]
