"""Recipes: what a TOML file says is what the run does, and every mistake in it is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from synthseg.errors import ConfigError, SynthsegError, TrainingError, UsageError
from synthseg.generation.config import PRESETS, original, paper
from synthseg.training import SegmentationTask, load_recipe
from synthseg.training.distributed import join_world
from training_helpers import save_bank, tiny_protocol, tiny_recipe

REPOSITORY = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def recipe(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_can_be_read(path: Path):
    read = load_recipe(path)
    assert all(side % read.network.multiple == 0 for side in read.generation.grid.shape)
    assert read.path(read.data.bank).parent.resolve() == REPOSITORY / "banks"


def test_a_recipe_of_a_bank_alone_has_the_papers_defaults(tmp_path: Path):
    read = load_recipe(recipe(tmp_path, '[data]\nbank = "b.safetensors"\n'))
    assert read.generation == paper()
    assert read.path(read.data.bank) == tmp_path / "b.safetensors"
    assert (read.optimizer.learning_rate, read.optimizer.steps, read.optimizer.batch) == (1e-4, 300_000, 1)


def test_keys_overlay_the_preset_and_leave_their_neighbours(tmp_path: Path):
    text = '[data]\nbank = "b"\n[generation]\npreset = "original"\n[generation.mixture]\nmean_range = [1, 2]\n'
    read = load_recipe(recipe(tmp_path, text))
    base = original()
    assert read.generation == replace(base, mixture=replace(base.mixture, mean_range=(1.0, 2.0)))
    assert base.mixture.std_range == (0.0, 30.0)  # a value of the preset beside the one that changed


DATA = '[data]\nbank = "b"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            DATA + "[optimizer]\nlearningrate = 1\n",
            r"mine.toml.optimizer: found unknown key 'learningrate'.*did you mean",
        ),
        (DATA + "[optimiser]\nsteps = 1\n", r"mine.toml: found unknown key 'optimiser'. Fix: did you mean 'optimizer'"),
        (
            DATA + "[generation.bias]\nmaxstd = 1\n",
            r"mine.toml: generation.bias: found unknown key 'maxstd'.*'max_std'",
        ),
        (DATA + '[optimizer]\nsteps = "many"\n', r"mine.toml.optimizer.steps: found 'many'"),
        (DATA + "[optimizer]\nsteps = 0\n", r"optimizer.steps: found 0"),
        (DATA + "[optimizer]\nlearning_rate = nan\n", r"optimizer.learning_rate: found nan"),
        (DATA + "[optimizer]\nclip_norm = 0\n", r"optimizer.clip_norm: found 0.0"),
        (DATA + "[optimizer]\nwarmup_steps = -1\n", r"optimizer.warmup_steps: found -1. Fix: give at least 0"),
        (DATA + "[optimizer]\nema_decay = 1.0\n", r"optimizer.ema_decay: found 1.0"),
        (DATA + '[optimizer]\nschedule = "decay"\n', r"optimizer.decay_steps: found 0"),
        (DATA + '[optimizer]\nschedule = "step"\n', r"mine.toml.optimizer.schedule: found 'step'. Fix: choose one of"),
        (DATA + "[output]\nlog_every = 0\n", r"output.log_every: found 0. Fix: give at least 1"),
        (DATA + "validate_every = 0\n", r"data.validate_every: found 0. Fix: give at least 1"),
        (
            DATA + '[generation]\npreset = "papre"\n',
            r"generation.preset: found 'papre'. Fix: choose one of paper, original",
        ),
        (DATA + "[generation]\npreset = [1]\n", r"generation.preset: found \[1\]"),
        ("generation = 3\n" + DATA, r"mine.toml: generation: found 3. Fix: write a table"),
        ('folder = "x"\n' + DATA, r"unknown key 'folder'"),
        ("[optimizer]\nsteps = 3\n", r"mine.toml: found no value for data"),
        ("[data\n", r"mine.toml: found no readable TOML"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(recipe(tmp_path, text))
    assert caught.value.exit_code == 2


def test_bytes_that_are_no_text_are_no_traceback(tmp_path: Path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.toml: found no readable text file"):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent.toml: found no such file.*e.g. recipes/") as caught:
        load_recipe(tmp_path / "absent.toml")
    suggested = str(caught.value).split("e.g. ")[1]
    assert (REPOSITORY / suggested).is_file()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_spoken_of_and_read(tmp_path: Path, preset: str):
    assert f'"{preset}"' in (load_recipe.__doc__ or "")
    read = load_recipe(recipe(tmp_path, f'{DATA}[generation]\npreset = "{preset}"\n'))
    assert read.generation == PRESETS[preset]()


def test_a_missing_bank_is_named(tmp_path: Path):
    read = load_recipe(recipe(tmp_path, '[data]\nbank = "absent.safetensors"\n'))
    with pytest.raises(
        TrainingError, match=r"absent.safetensors: found no such file. Fix: make it with: synthseg bank"
    ):
        SegmentationTask(read, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generation": {"grid": {"shape": [16, 16, 17]}}},
            r"generation.grid.shape: found \[16, 16, 17\].*multiples of 2",
        ),
        ({"network": {"out_channels": 5}}, r"network.out_channels: found 1 inputs and 5 outputs.*tiny.*4 outputs"),
        ({"network": {"in_channels": 2}}, r"found 2 inputs and 4 outputs.*needs 1 input"),
        ({"data": {"map_weights": [1.0]}}, r"map_weights: found 1 weights for 2 maps"),
        ({"data": {"validation": "absent"}}, r"absent: found no such file"),
    ],
)
def test_a_recipe_that_does_not_fit_its_bank_says_what_does(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(SynthsegError, match=message):
        SegmentationTask(tiny_recipe(tmp_path, **changes), CPU)


def test_a_file_that_is_no_bank_is_named(tmp_path: Path):
    (tmp_path / "bank.safetensors").write_bytes(b"no bank at all")
    with pytest.raises(TrainingError, match=r"bank.safetensors: found a damaged file"):
        SegmentationTask(tiny_recipe(tmp_path), CPU)


def test_the_task_takes_protocol_and_maps_from_the_bank(tmp_path: Path):
    save_bank(tmp_path)
    task = SegmentationTask(tiny_recipe(tmp_path), CPU)
    assert task.bank.protocol == tiny_protocol()
    assert task.output_protocol.values.tolist() == [0, 2, 16, 41]
    assert task.output_protocol.name == "tiny-targets"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "mps", ""])
def test_an_unknown_device_is_refused(name: str):
    with pytest.raises(UsageError, match=r"device: found .*auto, cpu, cuda or cuda:N"), join_world(name):
        pytest.fail("joined")


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"device: found cuda:99, with \d+ GPU"), join_world("cuda:99"):
        pytest.fail("joined")
