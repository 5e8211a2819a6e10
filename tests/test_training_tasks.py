"""The tasks of SynthSeg+: what their networks see and are asked for, against scipy, hand-made maps and closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from synthseg.errors import ConfigError
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GridPrior
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.metrics import dice
from synthseg.networks import UNet, UNetConfig
from synthseg.networks.hierarchy import GroupsFirst, one_hot, one_hot_argmax
from synthseg.training import Recipe, recipe_from_dict
from synthseg.training.export import comparable_values, start_from
from synthseg.training.losses import loss_function
from synthseg.training.task import Batch
from synthseg.training.task_config import DamagePrior
from synthseg.training.tasks import TASKS, make_task
from synthseg.training.tasks.corruption import damaged_groups, damaged_guide, dilated, eroded, with_blobs
from synthseg.training.tasks.groups import column_of_channels
from synthseg.training.tasks.parcels import NO_PARCEL, ParcelsTask
from synthseg.training.tasks.quality import QualityTask, group_dice
from synthseg.training.validation import ValidationSet
from synthseg.weights import save_weights

CPU = torch.device("cpu")
SIDE = 16
GRID = GridPrior(shape=(SIDE, SIDE, SIDE), spacing_mm=4.0)
UNDAMAGED = {
    "move_probability": 0.0,
    "morphology_probability": 0.0,
    "erosion_probability": 0.0,
    "blob_probability": 0.0,
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brain() -> np.ndarray:
    """A box brain of label values: two hemispheres with parcels (one voxel without), ventricles, cerebellum, stem."""
    values = np.zeros((24, 24, 24), dtype=np.int32)
    values[2:-2, 2:-2, 4:-2] = 24
    values[3:12, 3:21, 8:21], values[12:21, 3:21, 8:21] = 1028, 2028
    values[3:12, 3:12, 8:21], values[12:21, 3:12, 8:21] = 1011, 2011
    values[3, 3, 8] = 3
    values[5:12, 6:18, 10:18], values[12:19, 6:18, 10:18] = 2, 41
    values[9:12, 9:15, 12:15], values[12:15, 9:15, 12:15] = 4, 43
    values[8:16, 4:9, 4:8] = 8
    values[11:13, 10:13, 4:9] = 16
    return values


def recipe(folder: Path, kind: str, **tables: dict[str, Any]) -> Recipe:
    """A recipe for 16^3 voxels of 4 mm on two box brains with parcels."""
    if not (folder / "bank.safetensors").exists():
        maps = [brain(), np.ascontiguousarray(brain()[:, ::-1])]
        protocol = load_protocol("synthseg-generation-dk")
        LabelBank.from_maps(maps, [(3.0, 3.0, 3.0)] * 2, ["a", "b"], protocol).save(folder / "bank.safetensors")
    values: dict[str, dict[str, Any]] = {
        "task": {"kind": kind},
        "data": {"bank": "bank.safetensors"},
        "generation": {"grid": {"shape": [SIDE] * 3, "spacing_mm": 4.0, "focus": "brain", "jitter_mm": 4.0}},
        "network": {"features": 4, "levels": 2},
        "encoder": {"features": 4, "levels": 2, "kernel": 3},
    }
    channels = {"tissues": (1, 5), "denoiser": (5, 5), "guided": (6, 101), "parcels": (3, 69), "structures": (1, 101)}
    if kind in channels:
        values["network"] |= {"in_channels": channels[kind][0], "out_channels": channels[kind][1]}
    for table, keys in tables.items():
        values[table] = {**values.get(table, {}), **keys}
    return recipe_from_dict(values, where="recipe.toml", folder=str(folder))


def weights_of(folder: Path, kind: str, seed: int = 0, **tables: dict[str, Any]) -> str:
    """Random weights of a role, as a file in the recipe's folder."""
    task = make_task(recipe(folder, kind, **tables), CPU)
    torch.manual_seed(seed)
    name = f"{kind}-{seed}.safetensors"
    save_weights(folder / name, task.build_network().state_dict(), task.card({}))
    return name


# Damage, against scipy


@given(st.integers(0, 10**6))
def test_growing_and_eroding_are_what_scipy_makes_of_them(seed: int):
    mask = np.random.default_rng(seed).random((9, 8, 7)) < 0.3
    grown = dilated(torch.from_numpy(mask).float()).bool().numpy()
    np.testing.assert_array_equal(grown, ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 1)))
    full = ndimage.binary_dilation(mask, iterations=2)
    axis = np.arange(-2, 3)
    ball = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 <= 2.3**2
    np.testing.assert_array_equal(eroded(torch.from_numpy(full), 2.3).numpy(), ndimage.binary_erosion(full, ball))


def test_without_damage_a_guide_is_the_truth():
    groups = torch.randint(0, 5, (SIDE,) * 3, generator=rng())
    prior = DamagePrior(**UNDAMAGED)
    assert torch.equal(damaged_guide(groups, 5, prior, GRID, rng()), one_hot(groups[None], 5)[0])
    assert torch.equal(damaged_groups(groups, 5, prior, GRID, rng()), groups)


def test_a_damaged_guide_stays_near_the_truth_but_is_another():
    groups = torch.zeros((SIDE,) * 3, dtype=torch.int64)
    groups[3:13, 3:13, 3:13], groups[6:10, 6:10, 6:10] = 1, 3
    truth = one_hot(groups[None], 5)[0]
    guides = torch.stack([damaged_guide(groups, 5, DamagePrior(), GRID, rng(seed)) for seed in range(20)])
    assert set(guides.unique().tolist()) == {0.0, 1.0}
    shares = [dice(truth[1].int().numpy(), guide[1].int().numpy(), [1])[0] for guide in guides]
    assert min(shares) > 0.4  # one voxel is much of a shell of three
    assert np.mean(shares) < 0.99
    sums = guides.sum(1)
    assert (sums == 0).any()  # grown and shrunk apart from each other, groups overlap and leave holes
    assert (sums > 1).any()


def test_blobs_take_their_share_and_only_known_groups():
    groups = torch.ones((SIDE,) * 3, dtype=torch.int64)
    changed = [with_blobs(groups, 5, DamagePrior(blob_share=0.3), GRID, rng(seed)) for seed in range(30)]
    shares = np.array([float((blob != groups).float().mean()) for blob in changed])
    assert shares.max() <= 0.31
    assert shares.mean() > 0.05
    assert set(torch.stack(changed).unique().tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(with_blobs(groups, 5, DamagePrior(blob_share=0.0), GRID, rng()), groups)


# Networks in a row


def test_the_largest_channel_becomes_one_and_ties_go_to_the_lowest():
    scores = torch.tensor([[1.0, 0.0, 2.0], [1.0, 3.0, 1.0]]).view(1, 2, 3, 1, 1)
    assert one_hot_argmax(scores)[0, :, :, 0, 0].tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


def test_the_hierarchy_is_its_networks_one_after_another():
    class Shift(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.roll(1, 1)

    tissues = nn.Conv3d(1, 3, 1)
    seen: list[torch.Tensor] = []

    class Last(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x

    image = torch.randn(1, 1, 4, 4, 4, generator=rng())
    GroupsFirst(tissues, Shift(), Last())(image)
    groups = (tissues(image).argmax(1) + 1) % 3
    assert torch.equal(seen[0][:, :1], image)
    assert torch.equal(seen[0][:, 1:].argmax(1), groups)
    assert torch.equal(seen[0][:, 1:].sum(1), torch.ones(1, 4, 4, 4))


# Tasks


def test_tissue_targets_are_the_groups_of_the_table(tmp_path: Path):
    plain = make_task(recipe(tmp_path, "structures"), CPU).batch(3, [0, 1])
    task = make_task(recipe(tmp_path, "tissues"), CPU)
    batch = task.batch(3, [0, 1])
    assert torch.equal(batch.input, plain.input)
    protocol = load_protocol("synthseg-generation-dk")
    group_of = {label.value: label.tissue for label in protocol.labels}
    values = protocol.target_values[plain.target.numpy()]
    np.testing.assert_array_equal(batch.target.numpy(), np.vectorize(group_of.get)(values))
    assert {0, 1, 2} <= set(batch.target.unique().tolist())


def test_the_denoiser_sees_what_s1_makes_of_the_image(tmp_path: Path):
    tissues = weights_of(tmp_path, "tissues")
    given_table = {"weights": {"tissues": tissues}, "predicted_probability": 1.0, "damage": UNDAMAGED}
    task = make_task(recipe(tmp_path, "denoiser", task={"kind": "denoiser", **given_table}), CPU)
    image = make_task(recipe(tmp_path, "tissues"), CPU).batch(0, [5])
    batch = task.batch(0, [5])
    assert torch.equal(batch.input, one_hot_argmax(task.tissues(image.input)))  # type: ignore[attr-defined]
    assert torch.equal(batch.target, image.target)


def test_the_guide_is_made_by_s1_and_d_or_from_the_truth(tmp_path: Path):
    tissues = weights_of(tmp_path, "tissues")
    denoiser = weights_of(tmp_path, "denoiser", task={"kind": "denoiser", "weights": {"tissues": tissues}})
    for predicted in (1.0, 0.0):
        table = {"kind": "guided", "weights": {"tissues": tissues, "denoiser": denoiser}, "damage": UNDAMAGED}
        task: Any = make_task(recipe(tmp_path, "guided", task={**table, "predicted_probability": predicted}), CPU)
        batch = task.batch(1, [2])
        groups = task.first.groups(batch.input[:, :1]).argmax(1) if predicted else task.group_of_channel[batch.target]
        assert torch.equal(batch.input[:, 1:].argmax(1), groups)


def test_labels_of_one_target_are_of_one_group_unless_they_have_no_target():
    given = load_protocol("freesurfer-dk")  # its labels without a target are of two tissue groups
    column = column_of_channels(given, given.tissue_groups, "tissue")
    of_value = {label.value: label.tissue for label in given.labels}
    assert column.tolist() == [of_value[value] for value in given.target_values.tolist()]
    plexus = next(row for row, label in enumerate(given.labels) if label.value == 31)  # a part of the ventricle, 4
    labels = list(given.labels)
    labels[plexus] = replace(labels[plexus], tissue=1)
    odd = LabelProtocol("odd", "", tuple(labels))
    message = r"protocol odd: found the target 4 in tissue group 3, but 31 in others\. Fix: give all labels of the targ"
    with pytest.raises(ConfigError, match=message):
        column_of_channels(odd, odd.tissue_groups, "tissue")
    assert column_of_channels(odd, odd.quality_groups, "quality").max() == 8


def test_a_target_without_a_row_is_told():
    labels = tuple(
        replace(label, target={4: 9004, 43: 9043}.get(label.target, label.target))
        for label in load_protocol("synthseg-2.0").labels
    )
    odd = LabelProtocol("odd", "", labels)
    with pytest.raises(ConfigError, match=r"protocol odd: found the target 9004 without a row.*its tissue group"):
        column_of_channels(odd, odd.tissue_groups, "tissue")


@pytest.mark.parametrize("kind", ["denoiser", "guided"])
def test_validating_leaves_frozen_networks_frozen(tmp_path: Path, kind: str):
    tissues = weights_of(tmp_path, "tissues")
    task: Any = make_task(recipe(tmp_path, kind, task={"kind": kind, "weights": {"tissues": tissues}}), CPU)
    image, target = torch.rand(SIDE, SIDE, SIDE, generator=rng()), torch.ones(SIDE, SIDE, SIDE, dtype=torch.uint8)
    task.validation = ValidationSet(("scan",), (image,), (target,), 4.0)
    network = task.build_network().train()
    scores = task.validate(network)
    assert 0 <= scores["dice"] <= 1
    frozen = task.tissues if kind == "denoiser" else task.first
    assert not any(module.training for module in frozen.modules())


def test_a_guided_network_starts_as_the_function_it_is_started_from():
    plain = UNet(UNetConfig(features=4, levels=2, out_channels=5)).eval()
    guided = UNet(UNetConfig(features=4, levels=2, out_channels=5, in_channels=6)).eval()
    start_from(guided, plain.state_dict(), [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    image = torch.rand(1, 1, 8, 8, 8, generator=rng())
    guide = torch.rand(1, 5, 8, 8, 8, generator=rng(1))
    torch.testing.assert_close(guided(torch.cat([image, guide], 1)), plain(image))


def test_groups_are_not_taken_for_structures_of_the_same_number():
    structures, groups = load_protocol("synthseg-2.0"), load_protocol("tissue-groups")
    shared = comparable_values(structures, groups)
    assert [value for value in shared if value >= 0] == [0]  # background is background
    assert comparable_values(structures, load_protocol("synthseg-1.0")).count(-1) == 1  # CSF


def test_parcels_are_asked_for_on_labelled_cortex_only(tmp_path: Path):
    task: Any = make_task(recipe(tmp_path, "parcels", task={"kind": "parcels", "damage": UNDAMAGED}), CPU)
    plain = make_task(recipe(tmp_path, "structures"), CPU).batch(0, [0])
    batch = task.batch(0, [0])
    values = load_protocol("synthseg-generation-dk").target_values[plain.target.numpy()]
    is_parcel = values > 1000
    channels = np.searchsorted(load_protocol("desikan-killiany").target_values, values)
    np.testing.assert_array_equal(batch.target.numpy(), np.where(is_parcel, channels, NO_PARCEL))
    np.testing.assert_array_equal(batch.input[:, 2].numpy(), is_parcel | np.isin(values, (3, 42)))
    np.testing.assert_array_equal(batch.input[:, 1].numpy(), 1 - batch.input[:, 2].numpy())


def test_the_cortex_of_a_parcel_networks_input_is_imperfect_at_its_rim(tmp_path: Path):
    task: Any = make_task(
        recipe(tmp_path, "parcels", task={"kind": "parcels", "damage": {"morphology_probability": 1}}), CPU
    )
    clean: Any = make_task(recipe(tmp_path, "parcels", task={"kind": "parcels", "damage": UNDAMAGED}), CPU)
    changed = 0
    for step in range(8):
        a, b = task.batch(step, [0]).input[0, 2], clean.batch(step, [0]).input[0, 2]
        rim = dilated(b) - (1 - dilated(1 - b))
        assert not ((a != b) & (rim == 0)).any()
        changed += int((a != b).sum())
    assert changed > 0


def test_the_parcel_loss_is_that_of_the_cortex_alone(tmp_path: Path):
    task = make_task(recipe(tmp_path, "parcels", optimizer={"loss": "dice_ce", "absent": "skip"}), CPU)
    assert isinstance(task, ParcelsTask)
    target = torch.full((1, 4, 4, 4), NO_PARCEL)
    target[0, :2, 1] = torch.randint(1, 69, (2, 4), generator=rng())
    logits = torch.randn(1, 69, 4, 4, 4, generator=rng(), requires_grad=True)

    class Given(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return logits

    loss = task.loss(Given(), Batch(torch.zeros(1, 3, 4, 4, 4), target), 0)
    known = target[0] != NO_PARCEL
    wanted = loss_function("dice_ce", logits[0][:, known][None].detach(), target[0][known][None], absent="skip")
    torch.testing.assert_close(loss.detach(), wanted)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[0].abs().sum(0) > 0).equal(known)
    nothing = task.loss(Given(), Batch(torch.zeros(1, 3, 4, 4, 4), torch.full((1, 4, 4, 4), NO_PARCEL)), 0)
    assert float(nothing.detach()) == 0


def test_quality_targets_are_the_dice_of_the_groups():
    predicted = torch.randint(0, 9, (2, 6, 5, 4), generator=rng())
    truth = torch.where(torch.rand(2, 6, 5, 4, generator=rng(1)) < 0.6, predicted, 8 - predicted)
    truth[truth == 5] = 4
    found = group_dice(predicted, truth, 9)
    for a, b, row in zip(predicted.numpy(), truth.numpy(), found, strict=True):
        scores = dice(a, b, list(range(9)))
        np.testing.assert_allclose(row.numpy(), np.nan_to_num(scores), rtol=1e-6)


@pytest.mark.parametrize("soft", [True, False])
def test_the_quality_network_reads_the_groups_of_a_segmentation(tmp_path: Path, soft: bool):
    structures = weights_of(tmp_path, "structures")
    tables = {"task": {"kind": "quality", "weights": {"structures": structures}, "cut_probability": 0.0}}
    task: Any = make_task(
        recipe(tmp_path, "quality", **tables, encoder={"expected_dice": soft, "features": 4, "kernel": 3}), CPU
    )
    assert isinstance(task, QualityTask)
    image = make_task(recipe(tmp_path, "structures"), CPU).batch(0, [0])
    posteriors = task.networks[0](image.input).softmax(1)
    protocol = load_protocol("synthseg-generation-dk")
    group_of = {label.value: label.quality for label in protocol.labels}
    groups = torch.zeros(1, 9, SIDE, SIDE, SIDE)
    for channel, value in enumerate(protocol.target_values.tolist()):
        groups[:, group_of[value]] += posteriors[:, channel]
    batch = task.batch(0, [0])
    torch.testing.assert_close(batch.input, groups if soft else one_hot_argmax(groups))
    truth = torch.tensor([group_of[v] for v in protocol.target_values.tolist()])[image.target]
    torch.testing.assert_close(batch.target, group_dice(groups.argmax(1), truth, 9))
    assert task.card({})["soft_inputs"] is soft
    loss = task.loss(task.build_network(), batch, 0)
    assert torch.isfinite(loss)


def test_a_cut_scan_is_empty_outside_a_box_of_at_least_the_given_side(tmp_path: Path):
    structures = weights_of(tmp_path, "structures")
    table = {"kind": "quality", "weights": {"structures": structures}, "cut_probability": 1.0, "cut_least_mm": 24.0}
    task: Any = make_task(recipe(tmp_path, "quality", task=table), CPU)
    sides = set()
    for seed in range(40):
        where = task._cut(torch.ones(1, 1, SIDE, SIDE, SIDE), rng(seed))[0, 0].nonzero()
        low, high = where.amin(0), where.amax(0) + 1
        assert len(where) == int((high - low).prod())  # a full box
        sides |= set((high - low).tolist())
    assert min(sides) == 6  # 24 mm
    assert max(sides) == SIDE


@pytest.mark.parametrize("kind", list(TASKS))
def test_a_card_says_what_the_network_is_for(tmp_path: Path, kind: str):
    needed = {"denoiser": "tissues", "quality": "structures"}.get(kind)
    named = {needed: weights_of(tmp_path, needed)} if needed else {}
    card = make_task(recipe(tmp_path, kind, task={"kind": kind, "weights": named}), CPU).card({"steps": 3})
    assert card["role"] == kind
    assert card["steps"] == 3
    assert ("inputs_from" in card) == (kind in ("denoiser", "guided", "quality"))


@pytest.mark.parametrize(
    ("kind", "tables", "message"),
    [
        ("denoiser", {}, "task.weights.tissues: found none"),
        ("quality", {}, "task.weights.structures: found none"),
        ("guided", {"network": {"in_channels": 1, "out_channels": 101, "features": 4, "levels": 2}}, "needs 6 input"),
        ("quality", {"encoder": {"in_channels": 5, "features": 4}}, "needs 9 input"),
        ("parcels", {"task": {"kind": "parcels", "predicted_probability": 2.0}}, "give a probability"),
    ],
)
def test_a_recipe_that_lacks_something_says_what(tmp_path: Path, kind: str, tables: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        make_task(recipe(tmp_path, kind, **tables), CPU)


def test_frozen_networks_of_another_voxel_size_are_refused(tmp_path: Path):
    grid = {"shape": [SIDE] * 3, "spacing_mm": 2.0}
    tissues = weights_of(tmp_path, "tissues", generation={"grid": grid})
    with pytest.raises(ConfigError, match=r"works at 2 mm.*give weights of 4 mm"):
        make_task(recipe(tmp_path, "denoiser", task={"kind": "denoiser", "weights": {"tissues": tissues}}), CPU)


def test_frozen_networks_for_something_else_are_refused(tmp_path: Path):
    structures = weights_of(tmp_path, "structures")
    with pytest.raises(ConfigError, match=r"whose role is structures.*give weights whose role is tissues"):
        make_task(recipe(tmp_path, "denoiser", task={"kind": "denoiser", "weights": {"tissues": structures}}), CPU)


def test_a_bank_without_parcels_is_refused(tmp_path: Path):
    protocol = load_protocol("synthseg-generation")
    plain = np.where(brain() > 2000, 42, np.where(brain() > 1000, 3, brain()))
    LabelBank.from_maps([plain], [(3.0,) * 3], ["a"], protocol).save(tmp_path / "bank.safetensors")
    with pytest.raises(ConfigError, match=r"none of whose targets is a parcel.*synthseg-generation-dk"):
        make_task(recipe(tmp_path, "parcels"), CPU)
