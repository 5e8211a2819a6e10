"""``synthseg priors``: pairs on disk measured, and what a recipe makes of the files."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from generation_helpers import PROTOCOL
from prior_helpers import by_scipy
from synthseg.errors import LabelError
from synthseg.generation import load_priors
from synthseg.generation.prior_files import ClassColumn, acquisition_lines
from synthseg.labels.protocol import LabelProtocol
from synthseg.training.recipe import generation_config, recipe_from_dict

Command = Callable[..., tuple[int, str, str]]
TABLE = """# name: toy
value\tname\tside\tpartner\tgeneration_class\tcontrast_class\ttarget\ttopology\tquality\tred\tgreen\tblue
0\tbackground\tneutral\t0\t0\t0\t0\t0\t0\t0\t0\t0
2\tleft matter\tleft\t41\t1\t1\t2\t0\t0\t9\t9\t9
41\tright matter\tright\t2\t2\t1\t41\t0\t0\t9\t9\t9
14\tfluid\tneutral\t14\t3\t2\t14\t0\t0\t9\t9\t9
77\tlesion\tneutral\t77\t4\t3\t0\t0\t0\t9\t9\t9
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images and their label maps of the toy protocol; the third image on a finer, shifted grid."""
    (tmp_path / "toy.tsv").write_text(TABLE, encoding="utf-8")
    protocol = LabelProtocol.from_table(TABLE, "toy")
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])  # left first
    for number in range(3):
        rng = np.random.default_rng(number)
        field = [ndimage.gaussian_filter(rng.standard_normal((24, 25, 26)), 2) for _ in range(4)]
        index = np.argmax(field, axis=0)
        image = np.array([10.0, 150, 160, 60])[index] + rng.normal(0, 4, index.shape)
        save(tmp_path / "labels" / f"sub-{number}_aseg.nii.gz", protocol.values[index].astype(np.int16), affine)
        at = affine
        if number == 2:
            image, at = image.repeat(2, 0).repeat(2, 1).repeat(2, 2), affine @ np.diag([0.5, 0.5, 0.5, 1])
            at[:3, 3] -= 0.25 * affine[:3, :3].sum(1)
        save(tmp_path / "images" / f"sub-{number}_T1w.nii.gz", image.astype(np.float32), at)
    return tmp_path


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.Nifti1Image(data, affine).to_filename(path)


def run(command: Command, folder: Path, *more: object, out: str = "out") -> tuple[int, str, str]:
    places = (folder / "images", folder / "labels", "-o", folder / out, "--protocol", folder / "toy.tsv")
    return command("priors", "estimate", *places, *more)


def test_files_pair_by_name_and_a_recipe_takes_the_result(command: Command, folder: Path) -> None:
    code, _, err = run(command, folder)
    assert code == 0, err
    assert "sub-2_T1w.nii.gz: interpolated from voxels of 0.5 x 0.5 x 1 mm" in err
    assert "classes that no image of some dataset shows" in err  # lesions
    means, stds = np.load(folder / "out" / "prior_means.npy"), np.load(folder / "out" / "prior_stds.npy")
    assert means.shape == stds.shape == (2, 4)
    assert np.argsort(means[0, :3]).tolist() == [0, 2, 1]
    written = (folder / "out" / "priors.toml").read_text(encoding="utf-8")
    config = generation_config(tomllib.loads(written)["generation"], folder=folder / "out")
    assert (config.mixture.kind, config.mixture.classes) == ("normal", "contrast")
    np.testing.assert_array_equal(config.mixture.class_means, means.T)
    np.testing.assert_array_equal(config.mixture.class_stds, stds.T)
    table = load_priors(folder / "out" / "priors.tsv")
    np.testing.assert_allclose(table, [means.T, stds.T], rtol=1e-5)
    rows = (folder / "out" / "images.tsv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 3 * 3
    assert "lesion" in command("priors", "show", folder / "out" / "priors.tsv", "--protocol", folder / "toy.tsv")[1]


def test_the_acquisition_becomes_a_recipes_table(command: Command, folder: Path) -> None:
    assert run(command, folder)[0] == 0
    written = tomllib.loads((folder / "out" / "acquisition.toml").read_text(encoding="utf-8"))
    assert written["generation"]["acquisition"]["spacings_mm"] == [[0.5, 0.5, 1], [1, 1, 2], [1, 1, 2]]
    recipe = recipe_from_dict({"data": {"bank": "b"}, **written}, where="r.toml")
    assert recipe.generation.acquisition.spacings_mm[1] == (1.0, 1.0, 2.0)
    assert command("priors", "acquisition", folder / "images", "-o", folder / "a.toml")[0] == 0
    assert tomllib.loads((folder / "a.toml").read_text(encoding="utf-8")) == written


def test_rows_of_voxel_sizes_keep_their_shares() -> None:
    lines = acquisition_lines([(1.0, 1.0, 5.001)] * 6 + [(0.5, 0.5, 3.0)] * 3)
    rows = tomllib.loads(lines)["generation"]["acquisition"]["spacings_mm"]
    assert rows == [[0.5, 0.5, 3], [1, 1, 5], [1, 1, 5]]


def test_the_original_rules_from_files_are_scipys_too(command: Command, folder: Path) -> None:
    (folder / "images" / "sub-2_T1w.nii.gz").unlink()
    (folder / "labels" / "sub-2_aseg.nii.gz").unlink()
    assert run(command, folder, "--original", "--classes", "random")[0] == 0
    protocol = LabelProtocol.from_table(TABLE, "toy")
    wanted = []
    for number in range(2):
        image = nib.load(folder / "images" / f"sub-{number}_T1w.nii.gz").get_fdata()
        labels = protocol.index_of(np.asarray(nib.load(folder / "labels" / f"sub-{number}_aseg.nii.gz").dataobj))
        wanted.append(by_scipy(image, labels, protocol.generation_classes, scale=1.0))
    per_image = np.stack(wanted)  # [images, 2, K]
    for name, row in (("prior_means", 0), ("prior_stds", 1)):
        values = per_image[:, row]
        np.testing.assert_allclose(np.load(folder / "out" / f"{name}.npy"), [values.mean(0), values.std(0)], rtol=1e-6)


def test_datasets_and_channels_get_rows_of_their_own(command: Command, folder: Path) -> None:
    for number in range(2):
        image = nib.load(folder / "images" / f"sub-{number}_T1w.nii.gz")
        both = np.stack([image.get_fdata(), 200 - image.get_fdata()], -1).astype(np.float32)
        save(folder / "two" / f"sub-{number}_both.nii.gz", both, image.affine)
    (folder / "images" / "sub-2_T1w.nii.gz").unlink()
    (folder / "labels" / "sub-2_aseg.nii.gz").unlink()
    table = ("--protocol", folder / "toy.tsv", "-o")
    code, _, err = command(
        "priors", "estimate", folder / "two", folder / "labels", *table, folder / "c", "--channels", 2
    )
    assert code == 0, err
    channels = np.load(folder / "c" / "prior_means.npy")
    more = ("--also-images", folder / "images", "--also-labels", folder / "labels")
    assert run(command, folder, *more)[0] == 0
    datasets = np.load(folder / "out" / "prior_means.npy")
    assert channels.shape == datasets.shape == (4, 4)
    np.testing.assert_array_equal(datasets[:2], datasets[2:])
    np.testing.assert_allclose(channels[:2], datasets[:2])
    assert channels[2, 2] > channels[2, 1]  # bright fluid in the second
    assert (folder / "c" / "priors-2.tsv").exists()


def test_a_class_list_of_the_originals_goes_with_its_priors(command: Command, folder: Path) -> None:
    np.save(folder / "classes.npy", np.array([0, 1, 1, 2, 1]))
    assert run(command, folder, "--classes", folder / "classes.npy")[0] == 0
    written = tomllib.loads((folder / "out" / "priors.toml").read_text(encoding="utf-8"))
    config = generation_config(written["generation"], folder=folder / "out")
    assert config.mixture.label_classes == (0, 1, 1, 2, 1)
    assert len(config.mixture.class_means) == 3
    with pytest.raises(LabelError, match=r"5 classes for the 54 labels"):
        ClassColumn.of(PROTOCOL, str(folder / "classes.npy"))


def test_usage_that_cannot_work_is_refused_in_words(command: Command, folder: Path) -> None:
    assert "grid" in run(command, folder, "--original")[2]  # sub-2
    assert "rules of its own" in run(command, folder, "--original", "--mad-scale", "raw")[2]
    assert "choose one of 'normal', 'raw'" in run(command, folder, "--mad-scale", "half")[2]
    assert "not [X, Y, Z, 2]" in run(command, folder, "--channels", 2)[2]
    assert "--also-labels" in run(command, folder, "--also-images", folder / "images")[2]
    (folder / "labels" / "sub-1_aseg.nii.gz").rename(folder / "labels" / "other_aseg.nii.gz")
    code, _, err = run(command, folder)
    assert code == 2
    assert "sub-1_T1w.nii.gz" in err
    assert not (folder / "out").exists()


def test_files_are_not_replaced_unasked(command: Command, folder: Path) -> None:
    assert run(command, folder)[0] == 0
    assert "an existing file" in run(command, folder)[2]
    assert run(command, folder, "--overwrite")[0] == 0


def test_what_cannot_be_written_is_said_before_anything_is_measured(command: Command, folder: Path) -> None:
    assert run(command, folder)[0] == 0
    code, _, err = run(command, folder)
    assert code == 1
    assert "read sub-" not in err
    (folder / "taken").write_text("", encoding="utf-8")
    code, _, err = run(command, folder, out="taken")
    assert (code, "taken: found a file" in err, "read sub-" in err) == (1, True, False)


def test_label_maps_without_a_label_are_refused(command: Command, folder: Path) -> None:
    for path in (folder / "labels").iterdir():
        save(path, np.zeros((24, 25, 26), np.int16), np.diag([-1.0, 1.0, 2.0, 1.0]))
    code, _, err = run(command, folder)
    assert code == 1
    assert "nothing but background" in " ".join(err.split())


def test_an_image_of_something_else_is_refused(command: Command, folder: Path) -> None:
    path = folder / "images" / "sub-0_T1w.nii.gz"
    image = nib.load(path)
    away = image.affine.copy()
    away[:3, 3] += 20
    save(path, image.get_fdata().astype(np.float32), away)
    code, _, err = run(command, folder)
    assert code == 1
    assert "sub-0_T1w.nii.gz: found an image that shows" in err
