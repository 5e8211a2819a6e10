"""``synthseg sublabels``: from label maps and images on disk to pairs to train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from generation_helpers import seeded, still
from synthseg.generation import GenerativeModel, LabelBank
from synthseg.generation.config import MixturePrior

Command = Callable[..., tuple[int, str, str]]
HEART = """# name: toy-heart
value\tname\tside\tpartner\tgeneration_class\tcontrast_class\ttarget\ttopology\tquality\tred\tgreen\tblue
0\tbackground\tneutral\t0\t0\t0\t0\t0\t0\t0\t0\t0
1\tmyocardium\tneutral\t1\t1\t1\t1\t0\t0\t200\t90\t70
2\tblood\tneutral\t2\t2\t2\t2\t0\t0\t220\t40\t40
"""


@pytest.fixture
def hearts(tmp_path: Path) -> Path:
    """Two hearts, the first with an image whose chest has three tissues."""
    (tmp_path / "heart.tsv").write_text(HEART, encoding="utf-8")
    affine = np.array([[0.0, 0, -1.5, 9], [-2.0, 0, 0, 3], [0, 1.5, 0, -4], [0, 0, 0, 1]])
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2 for n in (24, 26, 28)], indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    labels = np.where(radius < 5, 2, np.where(radius < 8, 1, 0)).astype(np.int16)
    chest = np.where(x < 0, 20.0, np.where(y < 0, 100, 180))
    image = np.where(labels == 0, chest, np.where(labels == 1, 70, 150)) + np.random.default_rng(0).normal(
        0, 5, x.shape
    )
    for number in (1, 2):
        path = tmp_path / "maps" / f"heart-{number}_seg.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.Nifti1Image(labels, affine).to_filename(path)
    (tmp_path / "images").mkdir()
    nib.Nifti1Image(image.astype(np.float32), affine).to_filename(tmp_path / "images" / "heart-1_ct.nii.gz")
    return tmp_path


def run(command: Command, hearts: Path, *more: object, out: str = "out") -> tuple[int, str, str]:
    return command("sublabels", hearts / "maps", "-o", hearts / out, "--protocol", hearts / "heart.tsv", *more)


def test_from_maps_and_an_image_to_training_pairs(command: Command, hearts: Path) -> None:
    code, out, err = run(command, hearts, "--images", hearts / "images", "--background", "3", "--seed", "2")
    assert code == 0, err
    assert "heart-1_seg.nii.gz: background in 3, by heart-1_ct.nii.gz" in " ".join(out.split())
    assert "heart-2_seg.nii.gz: background in 3, by geometry" in " ".join(out.split())
    given_, made = (nib.load(hearts / place / "heart-1_seg.nii.gz") for place in ("maps", "out"))
    np.testing.assert_array_equal(made.affine, given_.affine)
    parts, before = np.asarray(made.dataobj), np.asarray(given_.dataobj)
    np.testing.assert_array_equal(parts % 10, before)
    chest = np.where(np.arange(24)[:, None, None] < 12, 0, np.where(np.arange(26)[:, None] < 13, 10, 20))
    air = before == 0
    assert (parts == np.broadcast_to(chest, parts.shape))[air].mean() > 0.97

    table, bank = hearts / "out" / "protocol.tsv", hearts / "bank.safetensors"
    (hearts / "only").mkdir()
    (hearts / "out" / "heart-1_seg.nii.gz").rename(hearts / "only" / "heart-1_seg.nii.gz")
    assert command("bank", hearts / "only", "-o", bank, "--protocol", table)[0] == 0
    packed = LabelBank.load(bank)
    assert packed.protocol.target_values.tolist() == [0, 1, 2]
    mixture = MixturePrior(std_range=(0, 0), background_zero_probability=0, background_dark_probability=0)
    config = still((24, 24, 24), mixture=mixture)
    model = GenerativeModel(config, packed)
    draw = model.draw(1, rng=seeded(1))
    labels, image = model.mixture(draw)
    means = {
        int(v): image[0, 0][labels[0] == i].unique()
        for i, v in enumerate(packed.protocol.values)
        if bool((labels[0] == i).any())
    }
    assert {0, 10, 20} <= means.keys()
    assert all(len(found) == 1 for found in means.values())  # one Gaussian a part, here without noise
    assert len({float(found[0]) for found in means.values()}) == len(means)  # and no two alike
    target = model.apply(draw).target[0]
    assert bool((target == (packed.protocol.targets[labels[0].numpy()])).all())


def test_versions_differ_in_number_and_depend_on_seed_and_name_alone(command: Command, hearts: Path) -> None:
    assert run(command, hearts, "--versions", "3", "--background", "2-4", "--foreground", "1")[0] == 0
    counts = set()
    for version in (1, 2, 3):
        data = np.asarray(nib.load(hearts / "out" / f"heart-1_seg_v{version}.nii.gz").dataobj)
        counts.add(int(data[data % 10 == 0].max()) // 10 + 1)
    assert counts == {2, 3, 4}
    (hearts / "maps" / "heart-2_seg.nii.gz").unlink()
    again = ("--versions", "3", "--background", "2-4", "--foreground", "1")
    assert run(command, hearts, *again, out="again")[0] == 0
    assert run(command, hearts, *again, "--seed", "1", out="other")[0] == 0
    first, same, other = (
        np.asarray(nib.load(hearts / place / "heart-1_seg_v1.nii.gz").dataobj) for place in ("out", "again", "other")
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_usage_that_cannot_work_is_refused_in_words(command: Command, hearts: Path) -> None:
    assert "two such as 3-10" in run(command, hearts, "--background", "many")[2]
    assert "1 <= low <= high" in run(command, hearts, "--background", "5-2")[2]
    assert "label values" in run(command, hearts, "--keep", "1,x")[2]
    assert "no label with value 7" in run(command, hearts, "--keep", "7")[2]
    assert (
        "no image that fits"
        in run(command, hearts, "--images", hearts / "images", "--image-pattern", "*ct*", "--label-pattern", "*2*")[2]
    )
    assert "no such file or folder" in command("sublabels", hearts / "none", "-o", hearts / "out")[2]
    assert not (hearts / "out").exists()
    assert run(command, hearts)[0] == 0
    assert "an existing file" in run(command, hearts)[2]
    assert "the label maps or images themselves" in run(command, hearts, "--overwrite", out="maps")[2]
    assert "label values" in run(command, hearts, "--keep", "1,²")[2]
    alike = hearts / "images" / "heart-1_seg.nii.gz"  # results would take an image's name
    (hearts / "images" / "heart-1_ct.nii.gz").rename(alike)
    before = alike.read_bytes()
    _, _, err = run(command, hearts, "--images", hearts / "images", "--overwrite", out="images")
    assert "or images themselves" in err
    assert alike.read_bytes() == before
    unknown = command("sublabels", hearts / "maps" / "heart-1_seg.nii.gz", "-o", hearts / "x")  # not a head's labels
    assert unknown[0] == 1
    assert "heart-1_seg.nii.gz" in unknown[2]
    assert not (hearts / "x").exists()  # nor is a protocol left behind that would stop the next try
