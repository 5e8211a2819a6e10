"""``synthseg fetal prepare``: files in, a bank's maps out; and the recipes that train on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import shared_dir
from fetal_helpers import fetal_head, save_map
from synthseg.anatomies.prepared import PrepareConfig, prepare_maps
from synthseg.anatomies.surroundings import SurroundingsSpec, surround
from synthseg.errors import ConfigError, LabelError, OutputError, ShapeError
from synthseg.generation import GenerativeModel
from synthseg.generation.write import open_bank
from synthseg.labels.protocol import load_protocol
from synthseg.training.recipe import load_recipe
from synthseg.volumes import read_volume, to_ras

ROOT = Path(__file__).resolve().parents[1]
FETA = load_protocol("feta-generation")
HEAD = fetal_head()
NEAR = SurroundingsSpec(margin_mm=18.0, closing_mm=8.0)
Command = Callable[..., tuple[int, str, str]]


def placed(path: Path) -> dict[tuple[float, ...], int]:
    """Labelled places of a map in space, brain and fluid only: what must not move."""
    volume = read_volume(path, labels=True)
    where = np.argwhere((volume.data > 0) & (volume.data < 8))
    world = where @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return {tuple(np.round(p, 3)): int(volume.data[tuple(w)]) for p, w in zip(world, where, strict=True)}


@pytest.mark.parametrize("turned", [False, True])
def test_versions_keep_the_brain_where_it_is_and_differ_around_it(tmp_path: Path, turned: bool) -> None:
    file = save_map(tmp_path / "maps" / "sub-01_feta.nii.gz", HEAD, turned=turned)
    config = PrepareConfig(surroundings=NEAR, versions=4)
    made = list(prepare_maps([file], tmp_path / "out", config))
    assert [each.path.name for each in made] == [f"sub-01_feta_v{n}.nii.gz" for n in (1, 2, 3, 4)]
    before = placed(file)
    tissue = {place: value for place, value in before.items() if value not in (2, 3)}  # but a cortex may be thicker
    seen = set()
    for each in made:
        after = placed(each.path)
        assert {place: after[place] for place in tissue} == tissue
        assert all(after[place] in (2, value) for place, value in before.items())
        assert {value for place, value in after.items() if place not in before} <= {1}
        seen.add(read_volume(each.path, labels=True).data.tobytes())
    assert len(seen) == 4
    assert len({each.how.partition(",")[0] for each in made}) >= 3  # kinds take turns


def test_a_version_depends_on_seed_and_name_alone(tmp_path: Path) -> None:
    first, second = (save_map(tmp_path / "maps" / f"{name}.nii.gz", HEAD) for name in ("a", "b"))
    config = PrepareConfig(surroundings=NEAR, versions=2)
    both = [each.path for each in prepare_maps([first, second], tmp_path / "both", config)]
    alone = [each.path for each in prepare_maps([second], tmp_path / "alone", config)]
    reseeded = list(prepare_maps([second], tmp_path / "other", PrepareConfig(surroundings=NEAR, versions=2, seed=1)))
    data = [read_volume(path, labels=True).data for path in (*both[2:], *alone)]
    assert all(np.array_equal(a, b) for a, b in zip(data[:2], data[2:], strict=True))
    assert not np.array_equal(data[0], read_volume(reseeded[0].path, labels=True).data)


def test_the_command_makes_maps_that_a_bank_and_the_generative_model_take(tmp_path: Path, command: Command) -> None:
    save_map(tmp_path / "maps" / "sub-01.nii.gz", HEAD)
    code, out, _ = command("fetal", "prepare", tmp_path / "maps", "-o", tmp_path / "out", "--versions", 3)
    assert code == 0
    assert [Path(line.partition(":")[0]).name for line in out.splitlines()][2:] == ["sub-01_v3.nii.gz", "prepared.tsv"]
    bank = open_bank(tmp_path / "out", FETA)
    recipe = load_recipe(ROOT / "recipes" / "fetal-cpu.toml")
    model = GenerativeModel(recipe.generation, bank)
    pair = model.sample(1, rng=torch.Generator().manual_seed(0))
    assert 2 <= int(pair.target.max()) <= 7
    assert len(model.tables.target_channel.unique()) == recipe.network.out_channels == 8


def test_images_give_surroundings_once_each_and_the_others_are_drawn(tmp_path: Path, command: Command) -> None:
    pytest.importorskip("sklearn")
    with_image = save_map(tmp_path / "maps" / "sub-01_dseg.nii.gz", HEAD)
    save_map(tmp_path / "maps" / "sub-02_dseg.nii.gz", HEAD)
    image = np.where(HEAD > 0, 500, 100 * (1 + np.indices(HEAD.shape)[0] // 8)).astype(np.float32)
    image[:4] = 0
    save_map(tmp_path / "scans" / "sub-01_T2w.nii.gz", image)
    arguments = ("--images", tmp_path / "scans", "--versions", 2)
    code, out, _ = command("fetal", "prepare", tmp_path / "maps", "-o", tmp_path / "out", *arguments)
    assert code == 0
    assert "from sub-01_T2w.nii.gz" in out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["prepared.tsv", "sub-01_dseg.nii.gz", "sub-02_dseg_v1.nii.gz", "sub-02_dseg_v2.nii.gz"]
    found = read_volume(tmp_path / "out" / "sub-01_dseg.nii.gz", labels=True)
    assert np.array_equal(found.data >= 10, (HEAD == 0) & (image > 0))
    assert len(np.unique(found.data[found.data >= 10])) == 4
    assert np.allclose(found.affine, read_volume(with_image, labels=True).affine)


def test_dhcp_maps_are_merged_on_the_way(tmp_path: Path, command: Command) -> None:
    to_dhcp = np.array([4, 1, 2, 3, 5, 6, 7, 8])  # FeTA's values as dHCP's, with dHCP's background around
    labels = to_dhcp[HEAD]
    labels[HEAD == 6] = 9  # amygdala: grey matter in FeTA
    save_map(tmp_path / "maps" / "sub-01.nii.gz", labels)
    code, _, _ = command(
        "fetal", "prepare", tmp_path / "maps", "-o", tmp_path / "out", "--versions", 1, "--protocol", "dhcp"
    )
    assert code == 0
    expected = save_map(tmp_path / "expected.nii.gz", np.where(HEAD == 6, 2, HEAD))
    found = placed(tmp_path / "out" / "sub-01_v1.nii.gz")
    assert all(found[place] in (2, value) for place, value in placed(expected).items())
    code, _, err = command("fetal", "prepare", tmp_path / "maps", "-o", tmp_path / "two")
    assert code == 1
    assert "sub-01" in err
    code, _, err = command("fetal", "prepare", tmp_path / "maps", "-o", tmp_path / "two", "--protocol", "adult")
    assert code == 2
    assert "feta, dhcp" in err


def test_a_cube_centres_the_map_and_keeps_it_in_place(tmp_path: Path) -> None:
    file = save_map(tmp_path / "maps" / "sub-01.nii.gz", HEAD)
    none = SurroundingsSpec(kinds=("none",), fluid_probability=0.0, cortex_probability=0.0)
    (made,) = prepare_maps([file], tmp_path / "out", PrepareConfig(surroundings=none, cube=24))
    assert read_volume(made.path, labels=True).data.shape == (24, 24, 24)
    assert placed(made.path) == placed(file)
    (lossy,) = prepare_maps([file], tmp_path / "quirk", PrepareConfig(surroundings=none, cube=24, drop_last_slab=True))
    assert len(placed(lossy.path)) < len(placed(file))
    with pytest.raises(ShapeError, match=r"sub-01.*for a cube of 12.*--cut"):
        list(prepare_maps([file], tmp_path / "small", PrepareConfig(surroundings=none, cube=12)))
    (small,) = prepare_maps([file], tmp_path / "small", PrepareConfig(surroundings=none, cube=12, cut=True))
    assert placed(small.path).items() < placed(file).items()
    with pytest.raises(ConfigError, match="drop_last_slab"):
        PrepareConfig(drop_last_slab=True)


def test_inputs_and_existing_results_are_never_replaced_unasked(tmp_path: Path) -> None:
    file = save_map(tmp_path / "maps" / "sub-01.nii.gz", HEAD)
    config = PrepareConfig(surroundings=NEAR)
    (made,) = prepare_maps([file], tmp_path / "out", config)
    for other, key in ((replace(config, seed=1), "seed"), (replace(config, cube=64), "settings")):
        with pytest.raises(OutputError, match=f"not the same {key}"):
            list(prepare_maps([file], tmp_path / "out", other))
    save_map(tmp_path / "out" / "sub-02_v1.nii.gz", HEAD)
    with pytest.raises(OutputError, match="does not list"):
        list(prepare_maps([save_map(tmp_path / "maps" / "sub-02.nii.gz", HEAD)], tmp_path / "out", config))
    before = made.path.read_bytes()
    (again,) = prepare_maps([file], tmp_path / "out", config, overwrite=True)
    assert again.path.read_bytes() == before
    with pytest.raises(OutputError, match="themselves"):
        list(prepare_maps([file], file.parent, config, images={file: file}, overwrite=True))
    with pytest.raises(OutputError, match="themselves"):
        list(prepare_maps([file], file.parent, config))
    save_map(file, np.where(HEAD == 7, 3, HEAD))
    with pytest.raises(OutputError, match="not the same inputs"):
        list(prepare_maps([file], tmp_path / "out", config))


def test_a_stopped_batch_goes_on_and_is_the_uninterrupted_one(tmp_path: Path) -> None:
    files = [save_map(tmp_path / "maps" / f"sub-0{n}.nii.gz", HEAD) for n in (1, 2)]
    config = PrepareConfig(surroundings=NEAR, versions=2)
    whole = [each.path.read_bytes() for each in prepare_maps(files, tmp_path / "whole", config)]
    batch = prepare_maps(files, tmp_path / "out", config)
    first = next(batch)
    batch.close()
    changed = first.path.stat().st_mtime_ns
    made = list(prepare_maps(files, tmp_path / "out", config))
    assert [each.resumed for each in made] == [True, False, False, False]
    assert made[0].how == first.how
    assert first.path.stat().st_mtime_ns == changed
    assert [each.path.read_bytes() for each in made] == whole
    assert all(each.resumed for each in prepare_maps(files, tmp_path / "out", config))
    # Another file's maps in the same folder leave the table's other rows alone, even made anew.
    list(prepare_maps(files[1:], tmp_path / "out", replace(config, versions=3), overwrite=True))
    assert all(each.resumed for each in prepare_maps(files, tmp_path / "out", config))


def test_a_map_that_fails_to_be_written_is_not_taken_for_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_map(tmp_path / "maps" / "sub-01.nii.gz", HEAD)
    config = PrepareConfig(surroundings=NEAR)
    list(prepare_maps([file], tmp_path / "out", config))

    def full(*_: object, **__: object) -> None:
        raise OutputError("disk", found="no space", fix="free some")

    with monkeypatch.context() as patch:
        patch.setattr("synthseg.volumes.write_volume", full, raising=False)
        with pytest.raises(OutputError, match="no space"):
            list(prepare_maps([file], tmp_path / "out", replace(config, seed=1), overwrite=True))
    (made,) = prepare_maps([file], tmp_path / "out", replace(config, seed=1))
    assert not made.resumed


def test_maps_with_images_show_fetas_tissues_and_nothing_else(tmp_path: Path) -> None:
    file = save_map(tmp_path / "maps" / "sub-01.nii.gz", np.where(HEAD == 5, 10, HEAD))  # prepared before
    image = save_map(tmp_path / "scans" / "sub-01.nii.gz", 1 + HEAD.astype(np.float32))
    with pytest.raises(LabelError, match=r"sub-01.*\[10\]"):
        list(prepare_maps([file], tmp_path / "out", PrepareConfig(), images={file: image}))


def test_an_image_on_another_grid_is_refused_by_name(tmp_path: Path) -> None:
    file = save_map(tmp_path / "maps" / "sub-01.nii.gz", HEAD)
    image = save_map(tmp_path / "scans" / "sub-01.nii.gz", HEAD.astype(np.float32), 2.01)
    with pytest.raises(ShapeError, match="scans"):
        list(prepare_maps([file], tmp_path / "out", PrepareConfig(), images={file: image}))


@pytest.mark.parametrize("name", ["fetal", "fetal-cpu"])
def test_recipes_train_fetas_eight_channels_and_say_what_they_show(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    assert recipe.network.out_channels == len(load_protocol("feta"))
    assert recipe.output.organ == "fetal brain"
    assert all(side % recipe.network.multiple == 0 for side in recipe.generation.grid.shape)


def test_the_references_recipe_has_its_numbers_per_voxel() -> None:
    recipe = load_recipe(ROOT / "recipes" / "fetal.toml")
    generation, voxel = recipe.generation, recipe.generation.grid.spacing_mm
    assert generation.grid.shape == (160, 160, 160)
    assert voxel == 0.5
    assert generation.deformation.svf_max_std_mm / voxel == 4
    assert voxel / generation.deformation.svf_node_mm == 0.04
    assert voxel / generation.bias.node_mm == 0.025
    assert (generation.deformation.rotation_deg, generation.anatomy.flip_probability) == (20, 0)
    assert generation.mixture.mean_range == (0, 250)
    assert generation.mixture.std_range == (0, 30)
    assert (generation.acquisition.native_probability, generation.acquisition.isotropic_probability) == (0.05, 0.095)
    assert not generation.inflation.enabled
    assert (recipe.optimizer.steps, recipe.optimizer.wl2_steps) == (21 * 5000, 5000)


def test_real_atlas_maps_get_surroundings_around_an_unchanged_brain() -> None:
    shared = shared_dir()
    if shared is None:
        pytest.skip("no real data")
    given, _ = to_ras(read_volume(shared / "data/training/fetal/sb_ga21_notoperated_feta.nii.gz", labels=True))
    found = surround(
        given.data, given.spacing_mm, SurroundingsSpec(), np.random.default_rng(0), kind="womb", fluid=True
    )
    counts, before = (np.bincount(data.ravel(), minlength=14) for data in (found.labels, given.data))
    assert np.array_equal(counts[2:8], before[2:8])
    assert counts[1] > 2 * before[1]  # unoperated: hardly any external CSF
    assert (counts[10:] > 0).sum() >= 2
