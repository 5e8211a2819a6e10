"""What studies train besides the usual task: real images go through the pairs' own places; one acquisition; damage."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments are no part of the installed package

from experiments.real_images import ImageBank, find_pairs, images_beside, pack_pairs
from experiments.study import Arm, Slices
from experiments.trainers import ArmModel, AutoencoderTask

from synthseg.errors import TrainingError, VolumeError
from synthseg.generation.bank import LabelBank
from synthseg.labels import load_protocol
from synthseg.volumes import Volume
from synthseg.volumes.write import write_volume
from training_helpers import save_bank, tiny_protocol, tiny_recipe


def _bank_with_images(folder: Path) -> tuple[LabelBank, ImageBank]:
    """Images that show each label's value, so that where they come from can be read off."""
    bank = LabelBank.load(save_bank(folder, tiny_protocol()))
    values = torch.as_tensor(bank.protocol.values % 256).float()
    images = tuple(values[bank.label_map(n).long()] for n in range(len(bank)))
    return bank, ImageBank(images, bank.sha256)


def test_a_real_image_shows_the_voxels_that_its_labels_come_from(tmp_path):
    bank, images = _bank_with_images(tmp_path)
    still = {"scaling": 0.0, "rotation_deg": 0.0, "shearing": 0.0, "svf_max_std_mm": 0.0}
    recipe = tiny_recipe(
        tmp_path,
        generation={
            "grid": {"shape": [16, 16, 16]},
            "deformation": still,
            "anatomy": {"strip_probability": 0.0, "lesion_probability": 0.0, "flip_probability": 0.5},
        },
    )
    model = ArmModel(recipe, bank, Arm(name="real", trainer="real"), images)
    draw = model.draw(8, rng=torch.Generator().manual_seed(1))
    assert 0 < int(draw.anatomy.flip.sum()) < 8
    labels, image = model.mixture(draw)
    # a flip swaps left and right labels; the image of a left structure then lies where the right one's label is
    source = torch.where(
        draw.anatomy.flip.view(-1, 1, 1, 1), torch.as_tensor(bank.protocol.partner_index)[labels], labels
    )
    expected = torch.as_tensor(bank.protocol.values % 256).float()[source]
    torch.testing.assert_close(image[:, 0], expected, rtol=0, atol=1e-3)


def test_a_deformed_image_keeps_to_its_deformed_labels(tmp_path):
    bank, images = _bank_with_images(tmp_path)
    settings = {"grid": {"shape": [16, 16, 16]}, "anatomy": {"flip_probability": 0.0, "strip_probability": 0.0}}
    model = ArmModel(tiny_recipe(tmp_path, generation=settings), bank, Arm(name="real", trainer="real"), images)
    labels, image = model.mixture(model.draw(6, rng=torch.Generator().manual_seed(2)))
    expected = torch.as_tensor(bank.protocol.values % 256).float()[labels]
    same = (image[:, 0] - expected).abs() < 1.0
    assert float(same.float().mean()) > 0.6  # the rest are borders, where a linear image blends two labels
    pooled = [torch.nn.functional.max_pool3d(sign * expected[:, None], 5, 1, 2) * sign for sign in (1, -1)]
    within = (image <= pooled[0] + 1e-3) & (image >= pooled[1] - 1e-3)
    assert bool(within[..., 2:-2, 2:-2, 2:-2].all())  # never a value that no label nearby has


def test_a_stripped_pair_has_nothing_outside_its_labels(tmp_path):
    bank, images = _bank_with_images(tmp_path)
    settings = {"grid": {"shape": [16, 16, 16]}, "anatomy": {"strip_probability": 1.0, "strip_values": [515]}}
    model = ArmModel(tiny_recipe(tmp_path, generation=settings), bank, Arm(name="real", trainer="real"), images)
    labels, image = model.mixture(model.draw(3, rng=torch.Generator().manual_seed(3)))
    assert bool((image[:, 0][labels == 0] == 0).all())
    assert bool((labels == 0).any())


def test_one_acquisition_leaves_all_other_draws_alone(tmp_path):
    bank = LabelBank.load(save_bank(tmp_path))
    recipe = tiny_recipe(tmp_path)
    plain = ArmModel(recipe, bank, Arm(name="a")).draw(4, rng=torch.Generator().manual_seed(5))
    fixed = ArmModel(recipe, bank, Arm(name="b", slices=Slices(axis=2, spacing_mm=5.0))).draw(
        4, rng=torch.Generator().manual_seed(5)
    )
    assert fixed.acquisition.spacing_mm.tolist() == [[1.0, 1.0, 5.0]] * 4
    assert torch.equal(fixed.acquisition.spacing_mm, fixed.acquisition.thickness_mm)
    assert torch.equal(fixed.mixture.means, plain.mixture.means)
    assert torch.equal(fixed.deformation.velocity_mm, plain.deformation.velocity_mm)


def test_packed_images_belong_to_their_label_maps(tmp_path):
    protocol = load_protocol("synthseg-2.0")
    rng = np.random.default_rng(0)
    labels = np.zeros((20, 22, 18), dtype=np.int32)
    labels[6:14, 6:16, 5:13] = 2
    image = rng.random(labels.shape).astype(np.float32)
    turned = np.diag([-1.5, 1.5, 1.5, 1.0])  # a file that runs to the left
    write_volume(Volume(labels, turned), tmp_path / "one_aseg.nii.gz")
    write_volume(Volume(image, turned), tmp_path / "one_t1.nii.gz")
    packed = pack_pairs(find_pairs(tmp_path), protocol, tmp_path / "bank.safetensors")
    bank = LabelBank.load(packed)
    images = ImageBank.load(images_beside(packed), bank)
    shown = images.images[0][bank.label_map(0) == 1]
    upright = image[::-1][labels[::-1] == 2]
    assert float(np.corrcoef(shown.numpy(), upright)[0, 1]) > 0.999
    other = LabelBank.load(save_bank(tmp_path / "other"))
    with pytest.raises(TrainingError, match="images of another label bank"):
        ImageBank.load(images_beside(packed), other)


def test_an_image_on_another_grid_is_refused_by_name(tmp_path):
    write_volume(Volume(np.ones((8, 8, 8), np.int32), np.eye(4)), tmp_path / "x_aseg.nii.gz")
    write_volume(Volume(np.random.default_rng(0).random((8, 8, 9)), np.eye(4)), tmp_path / "x_t1.nii.gz")
    with pytest.raises(VolumeError, match=r"x_t1\.nii\.gz.*another grid"):
        pack_pairs(find_pairs(tmp_path), load_protocol("synthseg-2.0"), tmp_path / "b.safetensors")
    with pytest.raises(TrainingError, match="no NAME_t2"):
        find_pairs(tmp_path, "t2")


def test_the_autoencoder_sees_damaged_labels_and_answers_with_whole_ones(tmp_path):
    recipe = tiny_recipe(tmp_path, network={"in_channels": 4})
    task_config = dataclasses.replace(
        recipe.task, damage=dataclasses.replace(recipe.task.damage, blob_probability=1.0, blob_share=0.5)
    )
    task = AutoencoderTask(dataclasses.replace(recipe, task=task_config), torch.device("cpu"))
    batch = task.batch(0, [0, 1, 2, 3])
    assert batch.input.shape == (4, 4, 16, 16, 16)
    assert torch.equal(batch.input.sum(1), torch.ones(4, 16, 16, 16))
    damaged = batch.input.argmax(1) != batch.target
    assert 0.01 < float(damaged.float().mean()) < 0.6
    assert torch.isfinite(task.loss(task.build_network(), batch, 0))
