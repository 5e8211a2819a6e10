"""`synthseg bank` and `synthseg train` as a user meets them: from label maps on disk to weights that load."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from synthseg.generation import LabelBank
from synthseg.labels.protocol import load_protocol
from synthseg.training.checkpoint import list_checkpoints
from synthseg.training.recipe import load_recipe
from synthseg.training.validation import load_validation
from synthseg.weights import build_network, load_weights, protocol_of
from training_helpers import assert_same_bits, head, state_of, tiny_protocol

Command = Callable[..., tuple[int, str, str]]
SIZES = ((20, 24, 22), (22, 20, 24))
SPACING = (1.0, 1.0, 1.5)
RECIPE = """
[data]
bank = "bank.safetensors"
{data}
[generation.grid]
shape = [16, 16, 16]
[network]
features = 4
levels = 2
out_channels = 4
[optimizer]
steps = 4
learning_rate = 0.01
loss = "dice_ce"
absent = "skip"
seed = 5
[output]
name = "small"
checkpoint_minutes = 1000.0
log_every = 1
"""


def save(path: Path, values: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Path:
    """A volume whose first axis runs to the left, as many scanners write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing[0], *spacing[1:], 1.0])
    nib.save(nib.Nifti1Image(values[::-1], affine), path)
    return path


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Two box heads of 515 (bone), 2, 41 and 16, in a wide border of air."""
    for name, size in zip("ab", SIZES, strict=True):
        save(tmp_path / "maps" / f"{name}.nii.gz", np.pad(head(size), 5).astype(np.int32))
    return tmp_path / "maps"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The protocol of the maps as a file."""
    path = tmp_path / "tiny.tsv"
    path.write_text(tiny_protocol().to_table(), encoding="utf-8")
    assert load_protocol(path).labels == tiny_protocol().labels
    return path


@pytest.fixture
def recipe(tmp_path: Path, maps: Path, table: Path, command: Command) -> Path:
    """A recipe beside its bank."""
    assert command("bank", maps, "-o", tmp_path / "bank.safetensors", "--protocol", table)[0] == 0
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.format(data=""), encoding="utf-8")
    return path


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# bank


def test_a_folder_of_maps_becomes_a_bank_in_ras_without_empty_borders(
    tmp_path: Path, maps: Path, table: Path, command: Command
) -> None:
    out = tmp_path / "deep" / "bank.safetensors"
    code, said, err = command("bank", maps, "-o", out, "--protocol", table)
    assert (code, err) == (0, "read a.nii.gz read b.nii.gz")
    assert said == f"{out}: 2 maps, {out.stat().st_size / 1e6:.1f} MB, protocol tiny\n"
    bank = LabelBank.load(out)
    assert bank.names == ("a.nii.gz", "b.nii.gz")
    assert bank.protocol.labels == tiny_protocol().labels
    assert bank.spacing_mm.tolist() == [list(SPACING)] * 2
    for n, size in enumerate(SIZES):
        # One voxel of air stays around the head, which lies two voxels inside its own box.
        expected = head(size)[1:-1, 1:-1, 1:-1]
        np.testing.assert_array_equal(bank.protocol.values[bank.label_map(n).numpy()], expected)


def test_one_file_becomes_a_bank_of_one_map(tmp_path: Path, maps: Path, table: Path, command: Command) -> None:
    assert command("bank", maps / "b.nii.gz", "-o", tmp_path / "one.safetensors", "--protocol", table)[0] == 0
    assert LabelBank.load(tmp_path / "one.safetensors").names == ("b.nii.gz",)


def test_an_unknown_label_is_named_with_its_file_and_nothing_is_written(
    tmp_path: Path, maps: Path, table: Path, command: Command
) -> None:
    values = head()
    values[4, 5, 6] = 777
    save(maps / "c.nii.gz", values)
    code, _, err = command("bank", maps, "-o", tmp_path / "bank.safetensors", "--protocol", table)
    assert code == 1
    assert f"synthseg: {maps / 'c.nii.gz'}: found" in err
    assert "777" in err
    assert "protocol tiny" in err
    assert not list(tmp_path.glob("*bank*"))


def test_scans_and_their_truth_become_a_validation_set(tmp_path: Path, table: Path, command: Command) -> None:
    values = head((20, 22, 24))
    fine = np.kron(values, np.ones((2, 2, 2), dtype=np.int32))
    scans = tmp_path / "scans"
    for name, spacing in (("x", (1.0, 1.0, 1.0)), ("y", (1.0, 1.0, 1.0))):
        save(scans / f"{name}_t1.nii.gz", (fine * 2.0).astype(np.float32), spacing)
        save(scans / f"{name}_aseg.nii.gz", fine, spacing)
    out = tmp_path / "v.safetensors"
    code, said, _ = command("bank", scans, "-o", out, "--validation", "--spacing", 2, "--protocol", table)
    assert (code, said) == (0, f"{out}: 2 scans at 2 mm\n")
    loaded = load_validation(out, tiny_protocol(), 2.0)
    assert loaded.names == ("x_t1.nii.gz", "y_t1.nii.gz")
    channels = np.searchsorted(tiny_protocol().target_values, np.where(values == 515, 0, values))
    for image, target in zip(loaded.images, loaded.targets, strict=True):
        assert image.shape == target.shape == (20, 22, 24)
        np.testing.assert_array_equal(target.numpy(), channels)
        assert (float(image.min()), float(image.max())) == (0.0, 1.0)
    assert command("bank", scans, "-o", out, "--validation", "--protocol", table)[1].endswith("2 scans at 1 mm\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "bank.nii.gz"), "bank.nii.gz: found the ending '.gz'. Fix: name the bank something.safetensors"),
        (("-o", "b.safetensors", "--spacing", "2"), "--spacing: found 2 mm without --validation. Fix: leave it out"),
        (("-o", "b.safetensors", "--validation", "--spacing", "0"), "greater"),
    ],
)
def test_options_of_bank_that_would_do_nothing_or_are_wrong_are_exit_code_2(
    tmp_path: Path, maps: Path, command: Command, options: tuple[str, ...], message: str
) -> None:
    code, _, err = command("bank", maps, *(tmp_path / o if o.endswith(("gz", "rs")) else o for o in options))
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob("b*"))


def test_a_bank_of_a_bank_is_refused(tmp_path: Path, recipe: Path, command: Command) -> None:
    code, _, err = command("bank", recipe.parent / "bank.safetensors", "-o", tmp_path / "two.safetensors")
    assert code == 2
    assert "bank.safetensors: found a file named like a packed bank. Fix: give the label maps themselves" in err


# train


def test_a_recipe_is_trained_to_the_end_and_leaves_weights_that_load(
    tmp_path: Path, recipe: Path, command: Command
) -> None:
    out = tmp_path / "run"
    code, said, _ = command("train", recipe, "-o", out, "--device", "cpu", "--threads", 1)
    assert code == 0
    assert said == f"finished at step 4, weights in {out / 'small.safetensors'}\n"
    rows = rows_of(out)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert all(np.isfinite(float(row["loss"])) and float(row["learning_rate"]) == 0.01 for row in rows)
    assert [path.name for path in list_checkpoints(out)] == ["step-00000004"]

    weights = load_weights(out / "small.safetensors")
    assert weights.card["steps"] == 4
    assert weights.card["name"] == "small"
    assert weights.card["spacing_mm"] == 1.0
    assert weights.card["data"] == "2 label maps (a.nii.gz ... b.nii.gz), no real scan"
    assert protocol_of(weights).target_values.tolist() == [0, 2, 16, 41]
    network = build_network(weights)
    logits = network(torch.rand(1, 1, 16, 16, 16))
    assert logits.shape == (1, 4, 16, 16, 16)
    assert logits.isfinite().all()
    # Training has moved every weight away from the start, which the seed alone decides.
    torch.manual_seed(load_recipe(recipe).optimizer.seed)
    from synthseg.networks import UNet

    start = UNet(load_recipe(recipe).network).state_dict()
    moved = [name for name, tensor in network.state_dict().items() if name.endswith("weight")]
    assert moved
    assert all(not torch.allclose(network.state_dict()[name], start[name], atol=1e-3) for name in moved)


def test_a_run_that_its_time_limit_stopped_resumes_to_the_same_bits(
    tmp_path: Path, recipe: Path, command: Command
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ends = ("--device", "cpu", "--threads", 1)
    assert command("train", recipe, "-o", whole, *ends)[0] == 0
    code, said, err = command("train", recipe, "-o", parts, *ends, "--max-minutes", 0)
    assert code == 0  # stopped, but with all that is needed to go on
    assert said == f"stopped early (--resume goes on) at step 1, weights in {parts / 'small.safetensors'}\n"
    assert "stopped; continue with --resume at step 1" in err
    assert load_weights(parts / "small.safetensors").card["steps"] == 1
    assert [row["step"] for row in rows_of(parts)] == ["1"]

    code, _, err = command("train", recipe, "-o", parts, *ends)
    assert code == 1
    assert f"{parts}: found checkpoints of an earlier run. Fix: add --resume to continue it" in err
    code, said, err = command("train", recipe, "-o", parts, *ends, "--resume")
    assert code == 0
    assert said.startswith("finished at step 4")
    assert "resumed at step 1 from step-00000001" in err
    assert [row["step"] for row in rows_of(parts)] == ["1", "2", "3", "4"]
    assert [row["loss"] for row in rows_of(parts)] == [row["loss"] for row in rows_of(whole)]
    assert_same_bits(state_of(parts)[0], state_of(whole)[0])
    assert_same_bits(load_file(parts / "small.safetensors"), load_file(whole / "small.safetensors"))


def test_a_recipe_with_validation_scores_real_scans(
    tmp_path: Path, recipe: Path, table: Path, command: Command
) -> None:
    values = head((20, 22, 24))
    save(tmp_path / "scans" / "x_t1.nii.gz", values.astype(np.float32), (1.0, 1.0, 1.0))
    save(tmp_path / "scans" / "x_aseg.nii.gz", values, (1.0, 1.0, 1.0))
    packed = tmp_path / "v.safetensors"
    assert command("bank", tmp_path / "scans", "-o", packed, "--validation", "--protocol", table)[0] == 0
    recipe.write_text(RECIPE.format(data='validation = "v.safetensors"\nvalidate_every = 2'), encoding="utf-8")
    out = tmp_path / "run"
    assert command("train", recipe, "-o", out, "--device", "cpu", "--threads", 1)[0] == 0
    scored = {row["step"]: float(row["dice"]) for row in rows_of(out) if row["dice"]}
    assert set(scored) == {"2", "4"}
    best = load_weights(out / "small-best.safetensors").card
    assert best["scores"]["dice"] == pytest.approx(max(scored.values()), rel=1e-4)
    assert str(best["steps"]) == max(scored, key=lambda step: scored[step])
    assert 0 <= best["scores"]["dice"] == best["scores"]["dice.x_t1.nii.gz"] <= 1


def test_the_run_folder_is_named_after_the_recipe(
    tmp_path: Path, recipe: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, _ = command("train", recipe, "--device", "cpu", "--threads", 1, "--max-minutes", 0)
    assert code == 0
    assert said.endswith(f"weights in {Path('runs') / 'small' / 'small.safetensors'}\n")


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("steps = 4", "stepps = 4", 2, "small.toml.optimizer: found unknown key 'stepps'. Fix: did you mean 'steps'?"),
        ("out_channels = 4", "out_channels = 33", 2, "network.out_channels: found 1 inputs and 33 outputs"),
        ("bank.safetensors", "absent.safetensors", 1, "absent.safetensors: found no such file"),
        ("[16, 16, 16]", "[15, 16, 16]", 2, "generation.grid.shape: found [15, 16, 16]"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_one_message(
    tmp_path: Path, recipe: Path, command: Command, old: str, new: str, code: int, message: str
) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert old in text
    recipe.write_text(text.replace(old, new), encoding="utf-8")
    got, _, err = command("train", recipe, "-o", tmp_path / "run", "--device", "cpu")
    assert got == code
    assert message in err
    assert not list_checkpoints(tmp_path / "run")
