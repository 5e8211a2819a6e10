"""From heart maps to scores: what goes into the bank, what the test scans look like, and one run of it all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cardiac_helpers import ROOT, heart, save_hearts  # makes experiments importable

# isort: split
from experiments.cardiac.__main__ import images_of, main
from experiments.cardiac.phantom import BLOOD, CONTRASTS, MYOCARDIUM, VENOUS, chest_around, draw_scan, heart_tissues
from experiments.cardiac.prepare import PrepareConfig, around_heart, on_spacing, prepare, read_heart

from synthseg.errors import ConfigError, LabelError, UsageError, VolumeError
from synthseg.evaluation import read_mapping
from synthseg.generation import LabelBank
from synthseg.labels import load_protocol
from synthseg.training import Recipe, RunOptions, load_recipe, train
from synthseg.training.options import RunResult
from synthseg.volumes import Volume, read_volume, write_volume
from synthseg.weights.card import read_card

HVSMR = load_protocol("hvsmr")
MAPPINGS = ROOT / "experiments" / "cardiac" / "mappings"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Protocols


def test_the_whole_heart_protocol_has_the_published_values_and_no_sides() -> None:
    protocol = load_protocol("whole-heart")
    assert protocol.values.tolist() == [0, 205, 420, 500, 550, 600, 820, 850]
    assert set(protocol.sides) == set(HVSMR.sides) == {"neutral"}
    assert protocol.topology_groups.tolist() == list(range(8))  # each structure is one piece
    assert HVSMR.by_value(2).topology == 0  # two ventricles with a whole septum between them are two pieces


def test_the_chambers_of_real_hearts_may_be_two_pieces(shared: Path) -> None:
    # Why the blood pool is in no topology group: its second piece is two fifths of it in one map of seven.
    from scipy.ndimage import label

    maps = sorted((shared / "data" / "training" / "cardiac").glob("hvsmr*.nii.gz"))
    pieces, _ = label(read_volume(maps[2], labels=True).data == 2)
    sizes = np.sort(np.bincount(pieces.ravel())[1:])
    assert sizes[-2] / sizes.sum() > 0.4


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("whole-heart-to-hvsmr", "whole-heart", "hvsmr"),
        ("mnms-to-whole-heart", None, "whole-heart"),
        ("acdc-to-whole-heart", None, "whole-heart"),
    ],
)
def test_mappings_lead_from_all_values_to_known_ones(name: str, source: str | None, target: str) -> None:
    mapping = read_mapping(MAPPINGS / f"{name}.tsv")
    values = load_protocol(source).values if source else np.arange(4)
    mapped = mapping.apply(values.reshape(1, 1, -1), np.ones(3), subject=name).ravel()
    assert set(mapped.tolist()) <= set(load_protocol(target).values.tolist())
    assert mapped[0] == 0
    assert (mapped[1:] != 0).all()


# Preparation


def test_a_map_on_its_own_grid_stays_as_it_is() -> None:
    labels = heart(side=26, spacing_mm=2.0)
    assert np.array_equal(on_spacing(labels, 2.0, HVSMR).data, labels.data)


def test_coarse_voxels_take_the_label_that_fills_most_of_them() -> None:
    data = np.zeros((12, 12, 12), dtype=np.int32)
    data[3:] = 2  # the border lies a quarter of the way into the second of four coarse voxels
    coarse = on_spacing(Volume(data, np.eye(4)), 2.0, HVSMR)
    assert coarse.spacing_mm.tolist() == [2.0, 2.0, 2.0]
    assert coarse.data[:, 3, 3].tolist() in ([0, 0, 2, 2, 2, 2], [0, 2, 2, 2, 2, 2])  # voxel 1 is half of each
    data[2] = 2
    assert on_spacing(Volume(data, np.eye(4)), 2.0, HVSMR).data[:, 3, 3].tolist() == [0, 2, 2, 2, 2, 2]


def test_the_margin_never_reaches_beyond_the_map() -> None:
    labels = heart(side=30, spacing_mm=4.0)
    cut = around_heart(labels, 12.0)
    where = np.argwhere(cut.data)
    assert (where.min(0) == 3).all()
    assert (np.array(cut.data.shape) - 1 - where.max(0) == 3).all()
    assert around_heart(labels, 1000.0).data.shape == labels.data.shape
    voxel = np.argwhere(cut.data == 64)[0]
    world = cut.affine @ [*voxel, 1]
    assert labels.data[tuple(np.rint(np.linalg.inv(labels.affine) @ world)[:3].astype(int))] == 64


def test_every_version_in_the_bank_is_the_same_heart_with_other_parts(tmp_path: Path) -> None:
    folder = save_hearts(tmp_path / "maps", count=2)
    config = PrepareConfig(protocol="hvsmr", spacing_mm=4.0, margin_mm=20.0, versions=4)
    bank = LabelBank.load(prepare(sorted(folder.iterdir()), tmp_path / "out", config))
    assert len(bank) == 8
    assert load_protocol(tmp_path / "out" / "protocol.tsv").labels == bank.protocol.labels
    expected = around_heart(heart(), 20.0).data
    seen = set()
    for version in range(4):
        index = bank.label_map(version).numpy()
        assert np.array_equal(bank.protocol.targets[index], expected)  # merged again, it is the map
        values = bank.protocol.values[index]
        parts = {target: len(np.unique(values[expected == target])) for target in (0, 1, 2)}
        assert 2 <= parts[0] <= 10  # a part may be missing from so small a map
        assert parts[1] == parts[2] == 2
        seen.add(index.tobytes())
    assert len(seen) == 4
    again = LabelBank.load(prepare(sorted(folder.iterdir()), tmp_path / "again", config))
    assert again.sha256 == bank.sha256


def test_sub_labels_follow_the_image_where_there_is_one(tmp_path: Path) -> None:
    folder = save_hearts(tmp_path / "maps", count=1)
    labels = heart()
    image = np.where(np.arange(30)[:, None, None] < 15, 10.0, 200.0) + np.zeros((30, 30, 30))
    noisy = image + np.random.default_rng(0).normal(0, 3, image.shape)
    scan = write_volume(replace(labels, data=noisy.astype(np.float32)), tmp_path / "scan.nii.gz")
    config = PrepareConfig(protocol="hvsmr", spacing_mm=4.0, margin_mm=1000.0, versions=1)
    bank = LabelBank.load(prepare([folder / "heart_0.nii.gz"], tmp_path / "out", config, images={"heart_0": scan}))
    values = bank.protocol.values[bank.label_map(0).numpy()]
    for target in (1, 2):  # split where the image is, not where the middle of the wall is
        dark = values[:15][labels.data[:15] == target]
        bright = values[15:][labels.data[15:] == target]
        assert (dark == target).mean() > 0.99
        assert (bright != target).mean() > 0.99


def test_what_the_image_does_not_show_is_no_dark_tissue(tmp_path: Path) -> None:
    folder = save_hearts(tmp_path / "maps", count=1)
    labels = heart()
    noisy = np.where(np.arange(30) < 15, 100.0, 200.0) + np.random.default_rng(0).normal(0, 3, (30, 30, 30))
    config = PrepareConfig(protocol="hvsmr", spacing_mm=4.0, margin_mm=1000.0, versions=1, background=(2, 2))
    cut = Volume(noisy[:26].astype(np.float32), labels.affine)  # ends before the map does, beside the heart
    scan = write_volume(cut, tmp_path / "scan.nii.gz")
    bank = LabelBank.load(prepare([folder / "heart_0.nii.gz"], tmp_path / "out", config, images={"heart_0": scan}))
    values = bank.protocol.values[bank.label_map(0).numpy()]
    dark = np.broadcast_to(np.arange(30) < 15, values.shape)
    seen = (labels.data == 0) & (np.arange(30) < 25)[:, None, None]
    assert (values[seen & dark] == 0).mean() > 0.99  # two parts, and none of them spent on what was not seen
    assert (values[seen & ~dark] != 0).mean() > 0.99
    elsewhere = labels.affine.copy()
    elsewhere[:3, 3] += 500
    scan = write_volume(Volume(cut.data, elsewhere), tmp_path / "other.nii.gz")
    with pytest.raises(VolumeError, match=r"other\.nii\.gz.* 0 % of what"):
        prepare([folder / "heart_0.nii.gz"], tmp_path / "out", config, images={"heart_0": scan})


def test_scans_are_found_by_name_and_none_at_all_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = [tmp_path / "maps" / f"heart_{n}.nii.gz" for n in range(2)]
    scans = save_hearts(tmp_path / "scans", count=1)
    assert images_of(maps, scans) == {"heart_0": scans / "heart_0.nii.gz"}
    assert "heart_1: no scan" in capsys.readouterr().out
    (scans / "heart_0.nii.gz").rename(scans / "other.nii.gz")
    with pytest.raises(UsageError, match="no scan with the name of a map"):
        images_of(maps, scans)


def test_maps_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    labels = heart()
    strange = write_volume(replace(labels, data=labels.data * 3), tmp_path / "strange.nii.gz")
    with pytest.raises(LabelError, match=r"strange\.nii\.gz"):
        read_heart(strange, HVSMR)
    empty = write_volume(replace(labels, data=labels.data * 0), tmp_path / "empty.nii.gz")
    with pytest.raises(LabelError, match=r"empty\.nii\.gz.*no structure"):
        read_heart(empty, HVSMR)
    with pytest.raises(ConfigError, match="1 version"):
        PrepareConfig(versions=0)


# Test scans


def test_every_structure_is_myocardium_or_blood() -> None:
    found = heart_tissues(load_protocol("whole-heart"))
    assert found == {205: MYOCARDIUM, 420: BLOOD, 500: BLOOD, 550: VENOUS, 600: VENOUS, 820: BLOOD, 850: VENOUS}
    with pytest.raises(LabelError, match="neither myocardium"):
        heart_tissues(load_protocol("tissue-groups"))


def test_the_chest_leaves_the_heart_as_it_is() -> None:
    labels = heart()
    tissue = chest_around(labels, HVSMR, rng=seeded())
    kinds = heart_tissues(HVSMR)
    for value, kind in kinds.items():
        assert (tissue[labels.data == value] == kind).all()
    assert not np.isin(tissue[labels.data == 0], [*kinds.values()]).any()
    assert len(np.unique(tissue[labels.data == 0])) >= 5


@pytest.mark.parametrize("contrast", list(CONTRASTS))
def test_scans_show_tissues_as_their_modality_does(contrast: str) -> None:
    labels = on_spacing(heart(), 2.0, HVSMR)
    scan = draw_scan(labels, HVSMR, contrast, rng=seeded())
    assert np.array_equal(scan.affine, labels.affine)
    blood, wall = (float(scan.data[labels.data == value].mean()) for value in (2, 1))
    assert (blood < wall) == (contrast == "mr-black-blood")
    if contrast == "ct":
        assert scan.data.min() < -900
        assert blood == pytest.approx(CONTRASTS["ct"].means[BLOOD], abs=40)
    else:
        assert scan.data.min() >= 0
    assert np.array_equal(scan.data, draw_scan(labels, HVSMR, contrast, rng=seeded()).data)
    assert not np.array_equal(scan.data, draw_scan(labels, HVSMR, contrast, rng=seeded(1)).data)


# Recipes and the whole


@pytest.mark.parametrize(("name", "protocol"), [("cardiac", "whole-heart"), ("cardiac-cpu", "hvsmr")])
def test_recipes_never_mirror_or_strip_a_heart(name: str, protocol: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    assert recipe.generation.anatomy.flip_probability == recipe.generation.anatomy.strip_probability == 0
    assert recipe.network.out_channels == len(load_protocol(protocol))
    assert recipe.output.organ == "heart"


TOY = """
[data]
bank = "bank.safetensors"
[generation.grid]
shape = [16, 16, 16]
spacing_mm = 8.0
focus = "brain"
[generation.anatomy]
flip_probability = 0.0
strip_probability = 0.0
[network]
features = 4
levels = 2
out_channels = 5
norm = "instance"
[optimizer]
steps = 4
learning_rate = 1e-2
[output]
name = "toy-heart"
organ = "heart"
ct_window = [-200.0, 600.0]
"""


def test_one_command_leads_from_maps_to_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps = save_hearts(tmp_path / "maps")
    recipe = tmp_path / "toy.toml"
    recipe.write_text(TOY)
    out = tmp_path / "out"
    arguments = ["--maps", str(maps), "--held-out", "heart_2", "--recipe", str(recipe), "--out", str(out)]
    arguments += ["--versions", "2", "--test-spacing", "4", "--contrasts", "mr", "ct"]
    assert main(arguments) == 0
    assert "| mr |" in capsys.readouterr().out
    card = read_card(out / "train" / "toy-heart.safetensors")
    assert (card["organ"], card["flip"], card["ct_window"]) == ("heart", False, [-200.0, 600.0])
    assert card["protocol"]["name"] == "hvsmr"  # sub-labels are merged again: the plain protocol of the maps
    rows = (out / "test" / "scores.tsv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 4  # two scans of four structures, and the header
    assert sorted(path.name for path in (out / "test" / "scans").iterdir()) == [
        "heart_2_ct.nii.gz",
        "heart_2_mr.nii.gz",
    ]
    truth = read_volume(out / "test" / "truth" / "heart_2.nii.gz", labels=True)
    assert np.array_equal(truth.data, heart().data)
    bank = LabelBank.load(out / "bank.safetensors")
    assert {name.split("-")[0] for name in bank.names} == {"heart_0", "heart_1"}  # the held-out map is not in it
    swapped = ["heart_1" if word == "heart_2" else word for word in arguments]  # its bank holds heart_1
    assert main(swapped) == 2
    assert "another --out" in capsys.readouterr().err
    assert main([*arguments, "--versions", "3"]) == 2
    assert "4 at 8 mm" in capsys.readouterr().err


def test_training_that_was_interrupted_is_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import experiments.cardiac.__main__ as command

    recipe = tmp_path / "toy.toml"
    recipe.write_text(TOY)

    def stopped(given: Recipe, options: RunOptions) -> RunResult:
        result = train(given, replace(options, max_minutes=0.0))
        assert not result.finished
        return result

    monkeypatch.setattr(command, "train", stopped)
    maps = save_hearts(tmp_path / "maps")
    arguments = ["--maps", str(maps), "--held-out", "heart_2", "--recipe", str(recipe), "--versions", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "out" / "test").exists()


def test_a_wrong_call_ends_with_2_and_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps = save_hearts(tmp_path / "maps", count=2)
    assert main(["--maps", str(maps), "--out", str(tmp_path / "out"), "--held-out", "heart_9"]) == 2
    assert "heart_9" in capsys.readouterr().err
    assert main(["--maps", str(maps), "--out", str(tmp_path / "out")]) == 2
    assert "--held-out" in capsys.readouterr().err
    assert main(["--maps", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "no such folder" in capsys.readouterr().err
