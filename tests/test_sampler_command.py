"""``synthseg sampler``: from label maps on disk to a table that training takes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

from synthseg.generation.bank import LabelBank
from synthseg.generation.map_weights import match_weights, read_map_weights
from synthseg.labels import load_protocol

Command = Callable[..., tuple[int, str, str]]


def brain(radius: float, ventricle: float, seed: int) -> np.ndarray:
    """[22, 24, 21] FeTA values: shells of cortex and white matter around ventricles, a cerebellum and stem below."""
    shape = (22, 24, 21)
    x, y, z = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2) * 3
    r = np.sqrt(x**2 + y**2 + z**2) + noise
    labels = np.select([r < ventricle, r < radius - 2, r < radius, r < radius + 1.5], [4, 3, 2, 1], 0)
    labels[(np.abs(x) < 3) & (np.abs(y - 2) < 2) & (np.abs(z) < 2)] = 6
    labels[(labels > 0) & (z < -radius / 2) & (y < 0)] = 5
    labels[(labels > 0) & (z < -radius / 2) & (y >= 0) & (np.abs(x) < 3)] = 7
    return labels.astype(np.int16)


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Eight ordinary brains in two folders, and one with large ventricles in the second."""
    for number in range(9):
        folder = tmp_path / ("atlas" if number < 5 else "clinic")
        folder.mkdir(exist_ok=True)
        labels = brain(6.5 + 0.1 * number, 4.5 if number == 8 else 2.0, number)
        nib.Nifti1Image(labels, np.diag([0.8, 0.8, 0.8, 1])).to_filename(folder / f"subject-{number}.nii.gz")
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def run(command: Command, maps: Path, *more: object, out: str = "out") -> tuple[int, str, str]:
    return command("sampler", maps / "atlas", maps / "clinic", "-o", maps / out, "--protocol", "feta", *more)


def test_from_folders_to_a_table_a_summary_and_a_figure(command: Command, maps: Path) -> None:
    code, out, err = run(command, maps)
    assert code == 0, err
    weights = read_map_weights(maps / "out" / "weights.tsv")
    assert list(weights) == [f"subject-{n}.nii.gz" for n in range(9)]
    assert sum(list(weights.values())[:5]) == pytest.approx(0.5)  # each folder half of the draws
    assert sum(weights.values()) == pytest.approx(1)
    clinic = list(weights.values())[5:]
    assert clinic[3] == max(clinic)  # the large ventricles
    rows = rows_of(maps / "out" / "weights.tsv")
    assert [row["dataset"] for row in rows] == ["atlas"] * 5 + ["clinic"] * 4
    assert float(rows[8]["draws_per_1000"]) == pytest.approx(1000 * clinic[3], abs=0.01)
    features = rows_of(maps / "out" / "features.tsv")
    shares = [float(row["volume share: ventricles"]) for row in features]
    assert shares[8] == max(shares)
    volume = (np.asarray(nib.load(maps / "atlas" / "subject-0.nii.gz").dataobj) > 0).sum() * 0.8**3
    assert float(features[0]["volume"]) == pytest.approx(volume, rel=1e-4)
    facts = json.loads((maps / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [part["mass"] for part in facts["parts"]] == [0.5, 0.5]
    assert facts["settings"]["scheme"] == "general"
    assert "effective number of maps" in out
    picture = imread(maps / "out" / "figure.png")
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20


def test_a_second_run_says_the_same_and_measures_nothing_again(
    command: Command, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import synthseg.anatomies.sources as sources

    assert run(command, maps)[0] == 0
    names = ("weights.tsv", "features.tsv", "summary.json", "figure.png")
    before = {name: (maps / "out" / name).read_bytes() for name in names}
    code, _, err = run(command, maps)
    assert code == 1
    assert "weights.tsv: found an existing file" in err
    monkeypatch.setattr(sources, "measure_shapes", lambda *_, **__: pytest.fail("measured again"))
    assert run(command, maps, "--overwrite")[0] == 0
    assert {name: (maps / "out" / name).read_bytes() for name in names} == before


def test_a_bank_gets_the_weights_of_its_files_and_training_takes_them(command: Command, maps: Path) -> None:
    bank = maps / "atlas.safetensors"
    assert command("bank", maps / "atlas", "-o", bank, "--protocol", "feta")[0] == 0
    for out, source in (("a", [maps / "atlas", "--protocol", "feta"]), ("b", [bank])):
        code, _, err = command("sampler", *source, "-o", maps / out, "--no-figure")
        assert code == 0, err
    one, other = (read_map_weights(maps / out / "weights.tsv") for out in ("a", "b"))
    assert one == pytest.approx(other, rel=1e-6)
    assert len(match_weights(one, LabelBank.load(bank).names, subject="w")) == 5
    assert not (maps / "a" / "figure.png").exists()


def test_the_schemes_and_their_masses(command: Command, maps: Path) -> None:
    assert run(command, maps, "--scheme", "uniform", "--no-figure")[0] == 0
    uniform = read_map_weights(maps / "out" / "weights.tsv")
    np.testing.assert_allclose(list(uniform.values()), [0.1] * 5 + [0.125] * 4)
    assert run(command, maps, "--scheme", "reference", "--clusters", "2,2", "--no-figure", out="r")[0] == 0
    weights = np.array(list(read_map_weights(maps / "r" / "weights.tsv").values()))
    clusters = [row["cluster"] for row in rows_of(maps / "r" / "weights.tsv")]
    for part, members in (("atlas", range(5)), ("clinic", range(5, 9))):
        sizes = [sum(clusters[m] == clusters[n] for m in members) for n in members]
        np.testing.assert_allclose(weights[list(members)], 0.5 / (2 * np.array(sizes)), err_msg=part)
    assert run(command, maps, "--mass", "atlas=1,clinic=3", "--scheme", "uniform", "--no-figure", out="m")[0] == 0
    table = read_map_weights(maps / "m" / "weights.tsv")
    assert sum(list(table.values())[:5]) == pytest.approx(0.25)


def test_settings_come_from_a_file_and_options_override_it(command: Command, maps: Path) -> None:
    text = 'scheme = "general"\n[strength]\ntemper = 0.5\nuniform = 0.0\n[family]\nsiblings = "(subject)-.*"\n'
    (maps / "s.toml").write_text(text, encoding="utf-8")
    more = ("--settings", maps / "s.toml", "--uniform", 0.3, "--shapes", "2,3,ventricles=4", "--no-figure")
    assert run(command, maps, *more)[0] == 0
    facts = json.loads((maps / "out" / "summary.json").read_text(encoding="utf-8"))
    assert facts["settings"]["strength"]["temper"] == 0.5
    assert facts["settings"]["strength"]["uniform"] == 0.3
    assert facts["shapes"] == {"grey matter": [2], "white matter": [3], "ventricles": [4]}
    assert [part["anatomies"] for part in facts["parts"]] == [1, 1]
    weights = list(read_map_weights(maps / "out" / "weights.tsv").values())
    np.testing.assert_allclose(weights, [0.1] * 5 + [0.125] * 4)  # one family a folder shares its half


def test_no_result_of_another_run_is_replaced_unasked(command: Command, maps: Path) -> None:
    (maps / "out").mkdir()
    (maps / "out" / "summary.json").write_text("mine", encoding="utf-8")
    code, _, err = run(command, maps, "--no-figure")
    assert code != 0
    assert "summary.json: found an existing file" in err
    assert (maps / "out" / "summary.json").read_text(encoding="utf-8") == "mine"


def test_shapes_of_another_protocol_point_to_the_option(command: Command, maps: Path) -> None:
    code, _, err = command("sampler", maps / "atlas", "-o", maps / "out", "--scheme", "reference", "--no-figure")
    assert code == 2
    assert "--protocol" in err


def test_a_folder_with_a_tab_in_its_name_keeps_the_tables_columns(command: Command, maps: Path) -> None:
    (maps / "clinic").rename(maps / "cli\tnic")
    places = (maps / "atlas", maps / "cli\tnic", "--protocol", "feta")
    assert command("sampler", *places, "-o", maps / "out", "--no-figure")[0] == 0
    assert {row["dataset"] for row in rows_of(maps / "out" / "weights.tsv")} == {"atlas", "cli nic"}


def test_a_map_whose_name_begins_like_a_comment_is_refused(command: Command, maps: Path) -> None:
    file = next((maps / "atlas").iterdir())
    file.rename(file.with_name(f"#{file.name}"))
    code, _, err = run(command, maps, "--no-figure")
    assert code == 2
    assert "leading #" in err


def test_datasets_can_be_read_off_the_names(command: Command, maps: Path) -> None:
    more = ("--datasets", r"subject-([0-4])?", "--scheme", "uniform", "--no-figure")
    assert run(command, maps, *more)[0] == 0
    found = {row["dataset"] for row in rows_of(maps / "out" / "weights.tsv")}
    assert found == {"0", "1", "2", "3", "4", "subject-"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--scheme", "paper"], 2, "sampler: scheme: found 'paper'"),
        (["--density", "gauss"], 2, "density.kind: found 'gauss'"),
        (["--clusters", "three"], 2, "--clusters: found 'three'"),
        (["--density", "kmeans", "--clusters", "9"], 2, "found 9 clusters of 5 anatomies"),
        (["--mass", "half"], 2, "--mass: found 'half'"),
        (["--mass", "atlas=1"], 2, "found atlas for the data sets atlas, clinic"),
        (["--shapes", "2,99"], 2, "found 99, which is no structure of feta"),
        (["--datasets", "(sb|crl)"], 2, "which subject-0.nii.gz does not fit"),
        (["--settings", "absent.toml"], 2, "absent.toml: found no such file"),
        (["--temper", "-1"], 2, "strength.temper: found -1.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    command: Command, maps: Path, options: list[str], code: int, message: str
) -> None:
    got, _, err = run(command, maps, *options, "--no-figure")
    assert (got, message in err) == (code, True), err
    assert not (maps / "out" / "weights.tsv").exists()


def test_places_without_label_maps_are_named(command: Command, maps: Path) -> None:
    empty = maps / "empty"
    empty.mkdir()
    assert "empty: found no label maps in this folder" in command("sampler", empty, "-o", maps / "o")[2]
    assert "absent: found no such file or folder" in command("sampler", maps / "absent", "-o", maps / "o")[2]
    bank = LabelBank.from_maps([brain(7, 2, 0)], [(1, 1, 1)], ["m"], load_protocol("feta"))
    bank.save(maps / "b.safetensors")
    code, _, err = command("sampler", maps / "b.safetensors", maps / "atlas", "-o", maps / "o")
    assert code == 2
    assert "found a bank beside other label maps" in err
    code, _, err = command("sampler", maps / "atlas", "-o", maps / "o")  # adult values by default
    assert code == 1
    assert "subject-0.nii.gz" in err
    assert "synthseg-generation" in err


@pytest.mark.parametrize("missing", ["skimage", "sklearn"])
def test_a_missing_package_is_named_with_its_extra(
    command: Command, maps: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    import synthseg.anatomies.packages as packages

    plain = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == missing else plain(name))
    code, _, err = run(command, maps, "--density", "mixture", "--no-figure")
    assert code == 2
    assert "synthseg[sampling]" in err
    assert {"skimage": "scikit-image", "sklearn": "scikit-learn"}[missing] in err


def test_help_loads_neither_torch_nor_the_extra() -> None:
    import subprocess
    import sys

    script = "import sys\nfrom synthseg.cli import main\n"
    script += "try:\n    main(['sampler', '--help'])\nexcept SystemExit:\n    pass\n"
    script += "print({'torch', 'sklearn', 'skimage'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")
