"""The papers' studies: every arm's recipe is valid and differs where it says, and every study runs, in the small."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments are no part of the installed package

from experiments.__main__ import main  # noqa: E402
from experiments.places import Places, find_places  # noqa: E402
from experiments.recipes import recipe_of, subset_weights  # noqa: E402
from experiments.study import SIZES, load_study, study_names  # noqa: E402
from experiments.toy import toy_bank, toy_priors, toy_scans  # noqa: E402

from synthseg.configs import config_to_dict  # noqa: E402
from synthseg.errors import ConfigError, UsageError, VolumeError  # noqa: E402
from synthseg.evaluation.measurements import read_measurements  # noqa: E402

ENDED_BY = {  # arms that a smoke test trains: enough to meet every kind
    "ablations": "synthseg,no-deformation",
    "label-maps": "maps-01-b,maps-20",
    "specific": "rc-t2-fine,r-axial-5mm",
    "rules": "random,rules",
    "resolution": "default",
    "sampler": "uniform,sampler+shapes",
}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Made-up label maps, scans and priors."""
    folder = tmp_path_factory.mktemp("toy")
    scans = toy_scans(folder / "scans")
    bank = toy_bank(folder / "bank.safetensors")
    return Places(out=folder, bank=bank, scans=scans, images=scans, priors=toy_priors(folder / "priors"))


@pytest.mark.parametrize("name", study_names())
def test_every_arm_has_a_recipe_of_every_size_and_no_two_are_the_same(name, toy):
    study = load_study(name)
    for size in SIZES:
        made = {arm.name: recipe_of(study, arm, size, toy) for arm in study.arms if arm.trained}
        facts = []
        for arm in study.arms:
            if arm.trained:
                plain = config_to_dict(made[arm.name])
                plain.pop("output")
                facts.append(json.dumps([plain, arm.trainer, config_to_dict(arm.slices) if arm.slices else None]))
        assert len(set(facts)) == len(facts)


def test_ablations_turn_off_what_they_say(toy):
    study = load_study("ablations")
    made = {arm.name: recipe_of(study, arm, "full", toy).generation for arm in study.arms}
    assert made["synthseg"].mixture.mean_range == (0.0, 255.0)
    assert made["tighter-priors"].mixture.mean_range == (10.0, 240.0)
    assert made["tightest-priors"].mixture.std_range == (1.0, 15.0)
    assert made["no-lesions"].anatomy.lesion_probability == 0
    assert made["no-bias"].bias.max_std == 0
    still = made["no-deformation"].deformation
    assert (still.scaling, still.rotation_deg, still.shearing, still.svf_max_std_mm) == (0, 0, 0, 0)


@given(small=st.integers(1, 20), large=st.integers(1, 20), draw=st.integers(0, 5))
def test_smaller_subsets_of_label_maps_lie_within_larger_ones(small, large, draw):
    small, large = sorted((small, large))
    few, many = (subset_weights(20, count, draw) for count in (small, large))
    assert (sum(few), sum(many)) == (small, large)
    assert all(one <= other for one, other in zip(few, many, strict=True))


def test_more_maps_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="21 of 20 label maps"):
        subset_weights(20, 21, 0)


def test_unknown_names_are_refused_by_name(capsys):
    with pytest.raises(UsageError, match="choose one of ablations"):
        load_study("ablation")
    assert main(["ablations", "--size", "toy", "--arms", "no-bone"]) == 2
    assert "no-bone" in capsys.readouterr().err


def test_a_wrong_key_of_an_arm_is_named(tmp_path):
    text = 'title="t"\nquestion="q"\nsource="s"\nreference="a"\n[[arm]]\nname="a"\nmap=3\n'
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown key 'map'.*did you mean 'maps'"):
        load_study(tmp_path / "own.toml")


def test_an_arm_is_run_with_the_arms_it_needs():
    study = load_study("methods")
    assert [arm.name for arm in study.chosen(["adapted"])] == ["t1-source", "autoencoder", "adapted"]


def test_missing_label_maps_and_images_are_said_to_be(tmp_path):
    study, places = load_study("t1-baseline"), Places(out=tmp_path, bank=tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match=r"none\.safetensors.*synthseg bank"):
        recipe_of(study, study.arms[0], "small", places)
    with pytest.raises(UsageError, match=r"no real images to train on.*--images"):
        recipe_of(study, study.arms[1], "small", places)
    specific = load_study("specific")
    with pytest.raises(ConfigError, match=r"prior 't2'.*synthseg priors estimate"):
        recipe_of(specific, specific.arms[-1], "small", places_with_bank(places, tmp_path))


def test_estimated_priors_are_found_by_name(tmp_path, toy):
    study = load_study("specific")
    assert toy.priors is not None
    (tmp_path / "t2").mkdir()
    (tmp_path / "t2" / "priors.tsv").write_bytes((toy.priors / "flair.tsv").read_bytes())
    given = Places(out=toy.out, bank=toy.bank, priors=tmp_path)
    mixture = recipe_of(study, study.arms[-1], "small", given).generation.mixture
    assert mixture.class_means[2][0] == 105.0  # white matter, as that table has it
    assert (mixture.kind, mixture.classes) == ("normal", "contrast")


def test_missing_scans_are_said_to_be_before_anything_is_trained(tmp_path, toy, capsys, monkeypatch):
    import experiments.runner as runner

    def no_training(*_args):
        raise AssertionError("trained first")

    monkeypatch.setattr(runner, "train", no_training)
    command = ["rules", "--bank", str(toy.bank), "--out", str(tmp_path), "--scans", str(tmp_path / "none")]
    assert main(command) == 2
    assert "--scans" in capsys.readouterr().err


def test_stopped_training_and_failed_scans_end_with_1(tmp_path, toy, capsys, monkeypatch):
    import experiments.runner as runner

    command = ["rules", "--bank", str(toy.bank), "--scans", str(toy.scans), "--device", "cpu", "--out", str(tmp_path)]
    weights = save_weights_for_nothing(tmp_path)
    monkeypatch.setattr(runner, "train", lambda *_: SimpleNamespace(step=7, finished=False, weights=weights))
    assert main(command) == 1
    assert "stopped at step 7" in capsys.readouterr().err
    monkeypatch.setattr(runner, "train", lambda *_: SimpleNamespace(step=9, finished=True, weights=weights))

    class Failing:
        key = "failing"

        def facts(self):
            return {}

        def segment(self, *_args, **_named):
            raise VolumeError("scan", found="nothing", fix="none")

    monkeypatch.setattr(runner, "method_of", lambda *_: Failing())
    assert main([*command, "--arms", "random", "--resume"]) == 1
    assert "failed: random, toy0_t1" in capsys.readouterr().err


def save_weights_for_nothing(folder: Path) -> Path:
    path = folder / "nothing.safetensors"
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("needs", "words"),
    [("", "needs: found not two arms"), ('needs = { structures = "a", autoencoder = "a" }', "not trained here")],
)
def test_adaptation_needs_two_trained_arms(tmp_path, needs, words):
    arms = f'[[arm]]\nname="a"\nweights="default"\n[[arm]]\nname="b"\nmethod="adapt"\n{needs}\n'
    (tmp_path / "own.toml").write_text('title="t"\nquestion="q"\nsource="s"\nreference="a"\n' + arms, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        load_study(tmp_path / "own.toml")


def places_with_bank(places: Places, folder: Path) -> Places:
    return Places(out=places.out, bank=toy_bank(folder / "bank.safetensors", 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_every_study_runs_at_toy_size(name, tmp_path, capsys):
    asked = ["--arms", ENDED_BY[name]] if name in ENDED_BY else []
    command = [name, "--size", "toy", "--out", str(tmp_path), "--device", "cpu", "--threads", "1", *asked]
    assert main(command) == 0, capsys.readouterr().err
    folder = tmp_path / name / "toy"
    record = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert record["study"] == name
    assert (folder / "summary.md").read_text(encoding="utf-8").startswith("# ")
    if name != "atrophy":
        arms = {arm.name for arm in load_study(name).chosen([n for n in ENDED_BY.get(name, "").split(",") if n])}
        evaluated = arms - {"autoencoder"}
        rows = read_measurements(folder / "scores.tsv")
        nothing = [one["arm"] for one in record["failures"] if "no structure anywhere" in one["reason"]]
        assert len(nothing) == len(record["failures"])  # after two steps a network may well find nothing
        assert {row.method for row in rows} | set(nothing) == evaluated
        assert all("sha256" in record["arms"][arm] or arm in ("bayes", "adapted") for arm in evaluated)


@pytest.mark.slow
def test_a_study_goes_on_where_it_was(tmp_path, capsys):
    command = ["rules", "--size", "toy", "--out", str(tmp_path), "--device", "cpu", "--arms", "random"]
    assert main(command) == 0
    folder = tmp_path / "rules" / "toy"
    first, scores = capsys.readouterr().out, (folder / "scores.tsv").read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "kept").rglob("*.json")}
    assert main(command) == 2  # another run in the same folder only when asked for
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().out == first
    assert (folder / "scores.tsv").read_bytes() == scores
    assert {path: path.stat().st_mtime_ns for path in (folder / "kept").rglob("*.json")} == kept
    assert find_places("toy", Places(out=folder, bank=Path())).bank.is_file()
