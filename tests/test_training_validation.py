"""Validation scores against counts made by hand, and sets that are packed, read back, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from synthseg.errors import TrainingError, VolumeError
from synthseg.inference.config import InferenceConfig
from synthseg.inference.prepare import prepare
from synthseg.training import SegmentationTask
from synthseg.training.validation import (
    IGNORED,
    ValidationSet,
    channels_of,
    find_pairs,
    load_validation,
    pack_validation,
    validate,
)
from synthseg.volumes import read_volume
from training_helpers import head, run, state_of, tiny_protocol, tiny_recipe

CPU = torch.device("cpu")
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])
UNKNOWN = 77  # a value that the protocol does not know


def write_pair(folder: Path, name: str, values: np.ndarray, affine: np.ndarray = AFFINE, contrast: str = "t1") -> None:
    folder.mkdir(exist_ok=True)
    image = values % 7 + np.random.default_rng(0).random(values.shape)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), folder / f"{name}_{contrast}.nii.gz")
    nib.save(nib.Nifti1Image(values.astype(np.int32), affine), folder / f"{name}_aseg.nii.gz")


def labelled() -> np.ndarray:
    values = head((13, 18, 15))
    values[5, 6:9, 8] = UNKNOWN
    return values


class Fixed(nn.Module):
    """Answers what it was told, whatever the image; channels grow by the padded shape it is given."""

    def __init__(self, answer: np.ndarray, channels: int) -> None:
        super().__init__()
        self.answer, self.channels = answer, channels
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        answer = torch.zeros(x.shape[2:], dtype=torch.long)
        a, b, c = self.answer.shape
        answer[:a, :b, :c] = torch.from_numpy(self.answer)
        answer[a:] = self.channels - 1  # the padding is all wrong, and must not count
        return nn.functional.one_hot(answer, self.channels).movedim(-1, 0)[None].float()


def dice_by_hand(predicted: np.ndarray, values: np.ndarray) -> float:
    known = values != UNKNOWN
    channel_of = {0: 0, 515: 0, 2: 1, 16: 2, 41: 3}
    truth = np.vectorize(lambda v: channel_of.get(v, -1))(values)
    scores = []
    for channel in (1, 2, 3):
        a, b = (predicted == channel) & known, (truth == channel) & known
        if b.any():
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


@pytest.mark.parametrize("packed", [False, True])
def test_dice_is_that_of_counting_and_unknown_values_do_not_count(tmp_path: Path, packed: bool):
    values = labelled()
    write_pair(tmp_path / "scans", "a", values)
    without_stem = np.where(values == 16, 0, values)
    write_pair(tmp_path / "scans", "b", without_stem, contrast="flair")
    place = tmp_path / "scans"
    if packed:
        place = pack_validation(place, tiny_protocol(), 1.0).save(tmp_path / "packed" / "v.safetensors")
    scans = load_validation(place, tiny_protocol(), 1.0)
    predicted = np.random.default_rng(1).integers(0, 4, values.shape)
    predicted[:8] = np.clip(channels_of(values, tiny_protocol())[:8], 0, 3)  # partly right
    network = Fixed(predicted, 4).train()
    scores = validate(network, scans, CPU, 8)
    expected = {"dice.a_t1.nii.gz": dice_by_hand(predicted, values)}
    expected["dice.b_flair.nii.gz"] = dice_by_hand(predicted, without_stem)
    assert expected["dice.a_t1.nii.gz"] != expected["dice.b_flair.nii.gz"]
    expected["dice"] = sum(expected.values()) / 2
    assert scores == pytest.approx(expected, abs=1e-12)
    assert network.shapes == [(1, 1, 16, 24, 16)] * 2
    assert network.training  # as it was


def test_changing_ignored_voxels_changes_nothing():
    target = torch.randint(0, 4, (4, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    target[0] = IGNORED
    scans = ValidationSet(("x",), (torch.zeros(4, 4, 4),), (target,), 1.0)
    answer = target.numpy().astype(np.int64) % 4
    one, other = answer.copy(), answer.copy()
    one[0], other[0] = 1, 2
    scores = [validate(Fixed(each, 4), scans, CPU, 1)["dice"] for each in (one, other)]
    assert scores == [1.0, 1.0]


def test_values_become_channels_and_everything_else_is_ignored():
    values = np.array([0, 515, 2, 16, 41, 3, -1, 10**9, 516])
    assert channels_of(values, tiny_protocol()).tolist() == [0, 0, 1, 2, 3] + [IGNORED] * 4


def test_images_arrive_on_the_working_grid_between_zero_and_one(tmp_path: Path):
    flipped = np.diag([-2.0, 2.0, 2.0, 1.0])  # stored right to left, at 2 mm
    write_pair(tmp_path / "scans", "a", head((12, 14, 16)), flipped)
    scans = load_validation(tmp_path / "scans", tiny_protocol(), 4.0)
    assert scans.images[0].shape == scans.targets[0].shape == (6, 7, 8)
    assert scans.images[0].min() == 0
    assert scans.images[0].max() == 1
    left, right = (int((scans.targets[0][half] == 1).sum()) for half in (slice(0, 3), slice(3, 6)))
    assert right > left  # index 0 of the file is the subject's right


@pytest.mark.parametrize("spacing", [1.03, 1.0])
def test_scans_are_prepared_as_inference_prepares_them(tmp_path: Path, spacing: float):
    # 1.03 mm is within inference's tolerance of 1 mm: what is scored must not be resampled either.
    values = head((62, 64, 61))
    write_pair(tmp_path / "scans", "a", values, np.diag([spacing, spacing, spacing, 1.0]))
    scans = load_validation(tmp_path / "scans", tiny_protocol(), 1.0)
    prepared = prepare(
        read_volume(tmp_path / "scans" / "a_t1.nii.gz"), spacing_mm=1.0, multiple=1, config=InferenceConfig()
    )
    assert torch.equal(scans.images[0], prepared.image[0, 0])
    assert np.array_equal(scans.targets[0].numpy(), channels_of(values, tiny_protocol()))


def test_a_scan_without_contrast_is_refused_as_inference_refuses_it(tmp_path: Path):
    write_pair(tmp_path, "a", labelled())
    dark = np.zeros((13, 18, 15), np.float32)
    dark[6, 6, 6] = 1  # an image, but beyond the percentiles
    nib.save(nib.Nifti1Image(dark, AFFINE), tmp_path / "a_t1.nii.gz")
    with pytest.raises(VolumeError, match=r"a_t1.nii.gz: found no contrast"):
        load_validation(tmp_path, tiny_protocol(), 1.0)


def test_packing_keeps_everything_but_the_last_bits(tmp_path: Path):
    write_pair(tmp_path / "scans", "a", labelled())
    made = pack_validation(tmp_path / "scans", tiny_protocol(), 1.0)
    read = load_validation(made.save(tmp_path / "v.safetensors"), tiny_protocol(), 1.0)
    assert (read.names, read.spacing_mm, read.target_values) == (made.names, 1.0, (0, 2, 16, 41))
    torch.testing.assert_close(read.images[0], made.images[0], rtol=0, atol=2**-12)
    assert torch.equal(read.targets[0], made.targets[0])


def test_pairs_are_found_by_their_exact_names(tmp_path: Path):
    names = [
        "s_1_t1.nii.gz",
        "s_1_aseg.nii.gz",
        "s_1_2_t1.nii.gz",
        "s_1_2_seg.nii",
        "v1.5[a]_pd.nii",
        "v1.5[a]_seg.nii.gz",
    ]
    for name in [*names, "lonely_t1.nii.gz", "s_1_notes.nii.gz", "s_1_ct.nii.gz"]:  # no CT: see the module
        (tmp_path / name).touch()
    found = {(scan.name, truth.name) for scan, truth in find_pairs(tmp_path)}
    assert found == {(names[0], names[1]), (names[2], names[3]), (names[4], names[5])}


def packed_file(folder: Path) -> Path:
    write_pair(folder / "scans", "a", labelled())
    return pack_validation(folder / "scans", tiny_protocol(), 1.0).save(folder / "v.safetensors")


def test_a_set_of_another_spacing_is_refused(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"v.safetensors: found scans at 1.0 mm. Fix: pack them again at 2.0 mm"):
        load_validation(packed_file(tmp_path), tiny_protocol(), 2.0)


def test_a_set_of_other_labels_is_refused(tmp_path: Path):
    import dataclasses

    table = tiny_protocol()
    labels = tuple(dataclasses.replace(r, target=0) if r.value == 16 else r for r in table.labels)
    fewer = dataclasses.replace(table, labels=labels)
    with pytest.raises(TrainingError, match=r"v.safetensors: found targets \[0, 2, 16, 41\], not \[0, 2, 41\]"):
        load_validation(packed_file(tmp_path), fewer, 1.0)


def test_a_file_that_is_no_set_is_refused(tmp_path: Path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(TrainingError, match=r"other.safetensors: found format None, no validation set"):
        load_validation(tmp_path / "other.safetensors", tiny_protocol(), 1.0)
    (tmp_path / "text.safetensors").write_text("not at all", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"text.safetensors: found no readable validation set"):
        load_validation(tmp_path / "text.safetensors", tiny_protocol(), 1.0)


def test_a_folder_without_pairs_tells_how_to_name_them(tmp_path: Path):
    with pytest.raises(
        TrainingError, match=r"found no pairs of scan and label map. Fix: name them NAME_t1.nii.gz.*not ct"
    ):
        load_validation(tmp_path, tiny_protocol(), 1.0)


def test_scan_and_label_map_on_different_grids_are_refused(tmp_path: Path):
    write_pair(tmp_path, "a", labelled())
    moved = AFFINE.copy()
    moved[0, 3] = 30.0
    nib.save(nib.Nifti1Image(labelled(), moved), tmp_path / "a_aseg.nii.gz")
    with pytest.raises(TrainingError, match=r"a_aseg.nii.gz: found shape .*30 mm away.*one grid"):
        load_validation(tmp_path, tiny_protocol(), 1.0)
    nib.save(nib.Nifti1Image(labelled()[:-4], AFFINE), tmp_path / "a_aseg.nii.gz")
    with pytest.raises(TrainingError, match=r"a_aseg.nii.gz: found shape \(9, 18, 15\)"):
        load_validation(tmp_path, tiny_protocol(), 1.0)


@pytest.mark.parametrize("value", [0, UNKNOWN])
def test_a_truth_with_nothing_to_score_is_named(tmp_path: Path, value: int):
    write_pair(tmp_path, "empty", np.full((8, 8, 8), value))
    with pytest.raises(TrainingError, match=r"empty_t1.nii.gz: found a label map without any label to score"):
        load_validation(tmp_path, tiny_protocol(), 1.0)


def validated(tmp_path: Path, **optimizer: Any) -> Any:
    packed_file(tmp_path)
    return tiny_recipe(
        tmp_path, data={"validation": "v.safetensors", "validate_every": 2}, optimizer={"steps": 5, **optimizer}
    )


def test_a_run_validates_on_time_and_at_its_end_and_keeps_the_best(tmp_path: Path):
    answers = iter([0.5, 0.7, 0.6])

    class Told(SegmentationTask):
        def validate(self, network: nn.Module) -> dict[str, float]:
            assert super().validate(network)["dice"] >= 0  # the true one works
            return {"dice": next(answers)}

    import csv

    from synthseg.weights import load_weights

    result = run(validated(tmp_path), tmp_path / "run", task_of=Told)
    with (tmp_path / "run" / "log.csv").open(encoding="utf-8") as file:
        dice = [(int(row["step"]), float(row["dice"])) for row in csv.DictReader(file) if row["dice"]]
    assert dice == [(2, 0.5), (4, 0.7), (5, 0.6)]
    assert result.scores == {"dice": 0.6}
    assert load_weights(tmp_path / "run" / "synthseg-best.safetensors").card["steps"] == 4
    assert state_of(tmp_path / "run")[1]["progress"]["best"] == 0.7


def test_validation_scores_the_averaged_network_and_does_not_touch_the_run(tmp_path: Path):
    recipe = validated(tmp_path, ema_decay=0.9)
    plain = tiny_recipe(tmp_path, optimizer={"steps": 5, "ema_decay": 0.9})
    seen: list[dict[str, Tensor]] = []

    class Watched(SegmentationTask):
        def validate(self, network: nn.Module) -> dict[str, float]:
            seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
            return super().validate(network)

    run(recipe, tmp_path / "with", task_of=Watched)
    run(plain, tmp_path / "without")
    ours, theirs = state_of(tmp_path / "with")[0], state_of(tmp_path / "without")[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(seen[-1][name], ours[f"average.{name}"]) for name in seen[-1])
    again = run(recipe, tmp_path / "with", resume=True)  # a finished run is not scored once more
    assert len(seen) == 3
    assert again.finished


def write_smooth_pair(folder: Path, name: str = "a") -> np.ndarray:
    """A box of tissue in a large empty field of view."""
    folder.mkdir(exist_ok=True)
    values = np.zeros((60, 50, 64), dtype=np.int32)
    values[25:40, 20:35, 22:46] = np.where(np.arange(25, 40) < 32, 2, 41)[:, None, None]
    values[30:35, 25:30, 15:22] = 16
    image = values + np.random.default_rng(0).random(values.shape)
    nib.save(nib.Nifti1Image(np.where(values > 0, image, 0).astype(np.float32), AFFINE), folder / f"{name}_t1.nii.gz")
    nib.save(nib.Nifti1Image(values, AFFINE), folder / f"{name}_aseg.nii.gz")
    return values


def test_scans_are_cut_to_the_head_after_their_intensities_are_set(tmp_path: Path):
    values = write_smooth_pair(tmp_path / "scans")
    scans = load_validation(tmp_path / "scans", tiny_protocol(), 1.0)
    prepared = prepare(
        read_volume(tmp_path / "scans" / "a_t1.nii.gz"), spacing_mm=1.0, multiple=1, config=InferenceConfig()
    )
    margin = slice(25 - 10, 40 + 10), slice(20 - 10, 35 + 10), slice(15 - 10, 46 + 10)
    assert torch.equal(scans.images[0], prepared.image[0, 0][margin])
    assert np.array_equal(scans.targets[0].numpy(), channels_of(values, tiny_protocol())[margin])
    read = load_validation(scans.save(tmp_path / "v.safetensors"), tiny_protocol(), 1.0)
    assert (read.crop_margin_mm, scans.crop_margin_mm) == (10.0, 10.0)


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_conditions_are_packed_beside_the_plain_scan_and_stay_on_its_labels(tmp_path: Path, spacing: float):
    write_smooth_pair(tmp_path / "scans")
    conditions = ("plain", "axial-5mm", "coronal-3mm", "inverted", "stripped")
    made = pack_validation(tmp_path / "scans", tiny_protocol(), spacing, conditions)
    scans = load_validation(made.save(tmp_path / "v.safetensors"), tiny_protocol(), spacing)
    assert scans.names == ("a_t1.nii.gz", *(f"a_t1.nii.gz@{condition}" for condition in conditions[1:]))
    assert scans.conditions == conditions
    inside = [
        image[(target != 0) & (target != IGNORED)] for image, target in zip(scans.images, scans.targets, strict=True)
    ]
    outside = [image[target == 0] for image, target in zip(scans.images, scans.targets, strict=True)]
    counts = {int((target == 3).sum()) for target in scans.targets}
    assert len(counts) == 1  # cut, but never into a label
    for tissue, air in zip(inside, outside, strict=True):
        assert tissue.mean() > air.mean() + 0.3  # thick slices lie where the labels are
    left = [float(image[target == 1].mean() - image[target == 3].mean()) for image, target in pairs_of(scans)]
    assert left[0] < -0.1  # 2 is darker than 41
    assert left[3] > 0.1  # and brighter once inverted


def pairs_of(scans: ValidationSet) -> list[tuple[Tensor, Tensor]]:
    return list(zip(scans.images, scans.targets, strict=True))


def test_slices_that_end_beyond_the_scan_are_fitted_to_its_labels(tmp_path: Path):
    write_pair(tmp_path / "scans", "a", labelled())  # 15 voxels: three slices of 7 mm end at 14 of them, or at 21
    for condition in ("axial-7mm", "axial-4mm", "coronal-4mm"):
        scans = pack_validation(tmp_path / "scans", tiny_protocol(), 1.0, (condition,))
        assert scans.images[0].shape == scans.targets[0].shape == (13, 18, 15)


def test_means_are_told_by_condition():
    target = torch.randint(0, 4, (4, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    other = target.flip(0)
    names = ("a_t1", "b_t1", "a_t1@inverted", "b_t1@inverted")
    scans = ValidationSet(names, (torch.zeros(4, 4, 4),) * 4, (target, target, target, other), 1.0)
    scores = validate(Fixed(target.numpy().astype(np.int64), 4), scans, CPU, 1)
    assert list(scores) == ["dice", "dice@plain", "dice@inverted", *(f"dice.{name}" for name in names)]
    assert scores["dice@plain"] == 1.0
    assert scores["dice@inverted"] == pytest.approx((1 + scores["dice.b_t1@inverted"]) / 2)
    assert scores["dice"] == pytest.approx((3 + scores["dice.b_t1@inverted"]) / 4)
    assert scores["dice.b_t1@inverted"] < 0.9


def test_sets_packed_before_there_were_conditions_are_read(tmp_path: Path):
    import json

    from safetensors import safe_open

    path = packed_file(tmp_path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["validation"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["conditions"], header["crop_margin_mm"], header["sha256"]
    save_file(tensors, path, metadata={"validation": json.dumps(header)})
    scans = load_validation(path, tiny_protocol(), 1.0)
    assert (scans.names, scans.conditions, scans.crop_margin_mm) == (("a_t1.nii.gz",), ("plain",), None)


@pytest.mark.parametrize("condition", ["rotated-x-3", "shifted"])
def test_conditions_that_move_the_head_are_refused(tmp_path: Path, condition: str):
    write_smooth_pair(tmp_path / "scans")
    with pytest.raises(TrainingError, match=rf"a_t1.nii.gz: found the condition {condition}, which moves the head"):
        pack_validation(tmp_path / "scans", tiny_protocol(), 1.0, (condition,))


def test_the_command_packs_conditions(tmp_path: Path, command: Any):
    write_smooth_pair(tmp_path / "scans")
    out = tmp_path / "v.safetensors"
    validation = ("bank", tmp_path / "scans", "-o", out, "--validation")
    code, said, _ = command(*validation, "--spacing", 2, "--conditions", "plain, axial-5mm,inverted,plain")
    assert (code, said.strip()) == (0, f"{out}: 3 scans at 2 mm")
    code, _, error = command(*validation, "--conditions", "sideways")
    assert code == 2
    assert "change of a scan: found 'sideways'" in error
    code, _, error = command("bank", tmp_path / "scans", "-o", out, "--conditions", "plain")
    assert code == 2
    assert "--conditions: found 'plain' without --validation" in error
