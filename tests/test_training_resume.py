"""A run that stopped and went on is, bit for bit, the run that never stopped; damage is named."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthseg.errors import ConfigError, TrainingError
from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import LabelProtocol
from synthseg.networks import UNet, UNetConfig
from synthseg.training import SegmentationTask
from synthseg.training.checkpoint import list_checkpoints, load_checkpoint, read_shards, save_checkpoint, write_shards
from synthseg.training.resume import compare_recipes
from training_helpers import assert_same_bits, cut, head, run, state_of, tiny_protocol, tiny_recipe

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": {"loss": "dice", "absent": "count"}},
    "average, clipping, warm-up": {"optimizer": {"ema_decay": 0.9, "clip_norm": 0.5, "warmup_steps": 5}},
    "accumulated batches": {"optimizer": {"batch": 2, "accumulate": 2}, "network": {"levels": 3}},
    "phases": {"optimizer": {"wl2_steps": 3, "ema_decay": 0.9}},  # resumed exactly at the fresh optimiser
    "bfloat16": {"optimizer": {"precision": "bfloat16", "schedule": "decay", "decay_steps": 1}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, name: str):
    recipe = tiny_recipe(tmp_path, **RECIPES[name])
    whole = run(recipe, tmp_path / "whole")
    if recipe.optimizer.schedule == "decay":  # it looks at the end: stop by other means
        run(recipe, tmp_path / "parts", task_of=stop_after(3))
    else:
        run(cut(recipe, 3), tmp_path / "parts")
    parts = run(recipe, tmp_path / "parts", resume=True)
    ours, index = state_of(tmp_path / "parts")
    theirs, other = state_of(tmp_path / "whole")
    assert_same_bits(ours, theirs)  # parameters, batch-norm statistics, average, both moments of Adam
    kinds = {key.split(".")[0] for key in ours} - {"average"}
    assert kinds == {"network", "optimizer"}
    assert index["param_groups"] == other["param_groups"]
    assert (parts.step, parts.finished, whole.step) == (6, True, 6)
    assert index["progress"]["samples"] == other["progress"]["samples"]


def stop_after(steps: int) -> Any:
    """A task that raises SIGTERM in its own process during the given step (1-based)."""
    import signal

    class Stopping(SegmentationTask):
        def loss(self, network: Any, batch: Any, step: int) -> torch.Tensor:
            if step == steps - 1:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)  # as schedulers do; must not cut the clean end short
            return super().loss(network, batch, step)

    return Stopping


def test_the_wl2_phase_ends_with_a_fresh_optimiser(tmp_path: Path):
    run(tiny_recipe(tmp_path, optimizer={"wl2_steps": 4}), tmp_path / "run")
    tensors, _ = state_of(tmp_path / "run")
    steps = {tensors[name].item() for name in tensors if name.endswith(".step")}
    assert steps == {2.0}  # Adam's own count: the two steps after the fourth


class Killed(Exception):
    """Stands for a power cut."""


def killed_at(step_of_death: int) -> Any:
    class Dying(SegmentationTask):
        def batch(self, step: int, elements: Any) -> Any:
            if step == step_of_death:
                raise Killed
            return super().batch(step, elements)

    return Dying


def test_a_kill_loses_only_the_steps_since_the_last_checkpoint(tmp_path: Path):
    recipe = tiny_recipe(tmp_path, optimizer={"ema_decay": 0.9}, output={"keep": 3})
    often = tiny_recipe(tmp_path, optimizer={"ema_decay": 0.9}, output={"checkpoint_minutes": 0.0, "keep": 3})
    with pytest.raises(Killed):
        run(often, tmp_path / "run", task_of=killed_at(5))
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"step-0000000{n}" for n in (3, 4, 5)]
    # What a kill in the middle of writing can leave: no index yet, or no name yet.
    (folder / "step-00000009").mkdir()
    (folder / ".step-00000006.123.part").mkdir()
    (folder / ".step-00000006.123.part" / "index.json").write_text("{}", encoding="utf-8")
    shutil.rmtree(folder / "step-00000005")
    run(recipe, tmp_path / "run", resume=True)
    run(recipe, tmp_path / "whole")
    assert_same_bits(state_of(tmp_path / "run")[0], state_of(tmp_path / "whole")[0])
    assert not list(folder.glob(".*.part"))  # swept with the next checkpoint
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open(encoding="utf-8")))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]  # steps 5 and 6 were done twice, and stand once


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    run(tiny_recipe(tmp_path, output={"checkpoint_minutes": 0.0, "keep": 2}), tmp_path / "run")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000005", "step-00000006"]


def test_a_folder_in_use_is_refused_without_resume(tmp_path: Path):
    recipe = cut(tiny_recipe(tmp_path), 1)
    run(recipe, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"run: found checkpoints of an earlier run. Fix: add --resume"):
        run(recipe, tmp_path / "run")


def test_resume_without_checkpoints_starts(tmp_path: Path):
    assert run(cut(tiny_recipe(tmp_path), 1), tmp_path / "run", resume=True).step == 1


def test_a_finished_run_resumed_does_nothing_twice(tmp_path: Path):
    recipe = cut(tiny_recipe(tmp_path), 2)
    run(recipe, tmp_path / "run")
    before, log = state_of(tmp_path / "run")[0], (tmp_path / "run" / "log.csv").read_text(encoding="utf-8")
    assert run(recipe, tmp_path / "run", resume=True).finished
    assert_same_bits(state_of(tmp_path / "run")[0], before)
    assert (tmp_path / "run" / "log.csv").read_text(encoding="utf-8") == log


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"features": 6}}, r"network.features: found 6, but 4 in step-00000001. Fix: set it back"),
        ({"network": {"levels": 3}}, r"network.levels: found 3, but 2 in"),
        ({"network": {"batch_norm_momentum": 0.1}}, r"network.batch_norm_momentum: found 0.1, but 0.01 in"),
        (
            {"generation": {"grid": {"shape": [16] * 3, "spacing_mm": 2.0}}},
            r"generation.grid.spacing_mm: found 2.0, but 1.0 in",
        ),
    ],
)
def test_another_network_or_spacing_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    run(cut(tiny_recipe(tmp_path), 1), tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        run(tiny_recipe(tmp_path, **changes), tmp_path / "run", resume=True)


def test_as_many_channels_of_other_labels_are_refused(tmp_path: Path):
    run(cut(tiny_recipe(tmp_path), 1), tmp_path / "run")
    rows = [replace(row, value=24, partner=24, target=24) if row.value == 16 else row for row in tiny_protocol().labels]
    maps = [np.where(head() == 16, 24, head())]
    other = LabelProtocol("tiny", "", tuple(rows))
    LabelBank.from_maps(maps, [(1.0, 1.0, 1.0)], ["one"], other).save(tmp_path / "bank.safetensors")
    message = r"data.bank: found a protocol with the targets \[0, 2, 24, 41\], but \[0, 2, 16, 41\] in step-00000001"
    with pytest.raises(ConfigError, match=message):
        run(tiny_recipe(tmp_path), tmp_path / "run", resume=True)


def test_what_else_changed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = cut(tiny_recipe(tmp_path), 1)
    run(recipe, tmp_path / "run")
    run(recipe, tmp_path / "run", resume=True)
    assert "recipe changed" not in capsys.readouterr().err
    grid = {"shape": [16] * 3}
    changed = tiny_recipe(
        tmp_path, generation={"grid": grid, "bias": {"max_std": 0.25}}, optimizer={"steps": 2, "clip_norm": 1.0}
    )
    assert run(replace(changed, folder=f"{tmp_path}/."), tmp_path / "run", resume=True).finished
    told = [line for line in capsys.readouterr().err.splitlines() if "recipe changed since step-00000001: " in line]
    assert len(told) == 1
    changes = sorted(told[0].split("step-00000001: ")[1].split("; "))
    before = recipe.generation.bias.max_std
    assert changes == [
        f"generation.bias.max_std {before} -> 0.25",
        "optimizer.clip_norm none -> 1.0",
        "optimizer.steps 1 -> 2",
    ]


def test_keys_that_came_or_went_with_a_release_do_not_stop_a_run(tmp_path: Path):
    recipe, targets = tiny_recipe(tmp_path), [0, 2, 16, 41]
    stored = recipe.to_dict()
    del stored["network"]["dropped_skips"]  # younger than the checkpoint
    del stored["optimizer"]["clip_norm" if "clip_norm" in stored["optimizer"] else "wl2_steps"]
    facts = {"recipe": stored, "targets": targets}
    assert compare_recipes(facts, recipe, targets, where="step-1") == []
    stored["output"]["colour"] = "blue"  # no longer known
    assert compare_recipes(facts, recipe, targets, where="step-1") == [
        "recipe changed since step-1: output.colour blue -> none"
    ]


def test_tensors_of_another_network_are_refused(tmp_path: Path):
    run(cut(tiny_recipe(tmp_path), 1), tmp_path / "run")
    network = UNet(UNetConfig(features=6, levels=2, out_channels=4))
    with pytest.raises(
        TrainingError, match=r"step-00000001: found another network .*Fix: keep the recipe's \[network\]"
    ):
        load_checkpoint(list_checkpoints(tmp_path / "run")[-1], network, torch.optim.Adam(network.parameters()), None)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def garble(file: Path) -> None:
    file.write_bytes(b"\xff" * 100)


@pytest.mark.parametrize("name", ["0000.safetensors", "index.json"])
@pytest.mark.parametrize("damage", [truncate, garble, Path.unlink])
def test_a_damaged_file_is_named_and_the_way_out_told(tmp_path: Path, name: str, damage: Any):
    recipe = cut(tiny_recipe(tmp_path), 1)
    run(recipe, tmp_path / "run")
    folder = list_checkpoints(tmp_path / "run")[-1]
    damage(folder / name)
    with pytest.raises(
        TrainingError, match=rf"{name}: found a damaged checkpoint .*Fix: it is the only one: copy it back"
    ):
        read_shards(folder, format_name="synthseg-checkpoint-1")
    if not (name == "index.json" and damage is Path.unlink):  # then it never was complete, and is passed over
        with pytest.raises(TrainingError, match=name):
            run(recipe, tmp_path / "run", resume=True)


def test_large_states_are_cut_into_shards_that_join_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("synthseg.training.checkpoint.SHARD_BYTES", 1000)
    rng = torch.Generator().manual_seed(0)
    tensors = {f"t{n}": torch.randn(n * 40, generator=rng) for n in range(1, 12)}  # 160 to 1760 bytes
    tensors |= {"count": torch.tensor(3), "half": torch.randn(3, 4, generator=rng).half().T}
    write_shards(tmp_path / "s", tensors, {"fact": [1, 2]}, format_name="f")
    assert len(list((tmp_path / "s").glob("*.safetensors"))) > 5
    read, index = read_shards(tmp_path / "s", format_name="f")
    assert_same_bits(read, tensors)
    assert index["fact"] == [1, 2]
    with pytest.raises(TrainingError, match=r"s: found format 'f'"):
        read_shards(tmp_path / "s", format_name="other")


def test_a_checkpoint_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "run").write_text("a file where the folder should be", encoding="utf-8")
    network = UNet(UNetConfig(features=1, levels=1))
    facts = {"progress": {"step": 1}}
    with pytest.raises(TrainingError, match=r"step-00000001: found no way to write it"):
        save_checkpoint(tmp_path / "run", network, torch.optim.Adam(network.parameters()), None, facts, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_restored_moments_lie_in_memory_as_their_parameters_do(tmp_path: Path):
    from synthseg.training.loop import _on

    recipe = cut(tiny_recipe(tmp_path, network={"levels": 3}), 2)
    run(recipe, tmp_path / "run")
    network = _on(torch.device("cpu"), UNet(recipe.network))
    optimizer = torch.optim.Adam(network.parameters())
    load_checkpoint(list_checkpoints(tmp_path / "run")[-1], network, optimizer, None)
    for parameter in network.parameters():
        moments = optimizer.state[parameter]
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()
        assert not moments["exp_avg"].requires_grad


@pytest.mark.parametrize("key", ["progress", "recipe", "targets", "param_groups"])
def test_an_index_without_what_a_run_needs_is_a_damaged_checkpoint(tmp_path: Path, key: str):
    run(cut(tiny_recipe(tmp_path), 1), tmp_path / "run")
    file = list_checkpoints(tmp_path / "run")[-1] / "index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    for gone in (key, "sha256", "index_sha256"):  # an index of before there were hashes
        del index[gone]
    file.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(TrainingError, match=rf"index.json: found a damaged checkpoint .*{key}"):
        run(tiny_recipe(tmp_path), tmp_path / "run", resume=True)
