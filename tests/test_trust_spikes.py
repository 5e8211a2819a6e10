"""A loss that leaps is recovered from: the run goes back, goes on with other numbers, and ends where others end."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthseg.errors import ConfigError, TrainingError
from synthseg.training import SegmentationTask, spikes
from synthseg.training.checkpoint import list_checkpoints
from synthseg.training.distributed import World
from synthseg.training.recipe import OptimizerConfig, Recipe
from synthseg.training.schedule import learning_rate
from synthseg.training.spikes import MOST_RETURNS, NORM_FACTOR, SpikeWatch
from training_helpers import LinearTask, assert_same_bits, cut, run, state_of, tiny_recipe

WINDOW, STEPS, SPIKE = 10, 120, 63


def recipe_of(folder: Path, **optimizer: Any) -> Recipe:
    """A run of a linear network whose loss is judged every ten steps."""
    given = {"steps": STEPS, "spike_window": WINDOW, "ema_decay": 0.9, **optimizer}
    return tiny_recipe(folder, optimizer=given, output={"log_every": WINDOW})


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def last_loss(out: Path) -> float:
    """Mean of the last twenty steps."""
    return sum(float(row["loss"]) for row in rows(out)[-2:]) / 2


def returns(out: Path) -> int:
    return int(state_of(out)[1]["progress"]["returns"])


@pytest.fixture
def fast_spike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate is ten thousand times too high for three steps."""

    def spiked(config: OptimizerConfig, step: int) -> float:
        return learning_rate(config, step) * (1e4 if SPIKE <= step < SPIKE + 3 else 1)

    monkeypatch.setattr("synthseg.training.loop.learning_rate", spiked)


class Poisoned(LinearTask):
    """One batch whose targets are a million times too large."""

    at: Sequence[int] = (SPIKE,)

    def batch(self, step: int, elements: Sequence[int]) -> tuple[Tensor, Tensor]:
        image, target = super().batch(step, elements)
        return image, target * (1e6 if step in self.at else 1)


class Raised(LinearTask):
    """Losses five times what they were from a step on, whatever the weights: nothing helps against that."""

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        return super().loss(network, batch, step) * (5 if step >= SPIKE else 1)


def flipped(step_of_flip: int) -> type[LinearTask]:
    """A task whose network gets infinite weights in one step, as a flipped bit in memory makes them."""

    class Flipped(LinearTask):
        def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
            loss = super().loss(network, batch, step)
            if step == step_of_flip:
                next(network.parameters()).data.view(-1)[0] = math.inf
            return loss

    return Flipped


# What a run does


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.usefixtures("fast_spike")
def test_a_learning_rate_spike_is_recovered_from(
    tmp_path: Path, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, optimizer=optimizer)
    run(recipe, tmp_path / "watched", task_of=LinearTask)
    assert "back to the state of step" in capsys.readouterr().err
    run(recipe_of(tmp_path, optimizer=optimizer, spike_factor=0), tmp_path / "left", task_of=LinearTask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthseg.training.loop.learning_rate", learning_rate)
        run(recipe, tmp_path / "undisturbed", task_of=LinearTask)
    undisturbed = last_loss(tmp_path / "undisturbed")
    assert last_loss(tmp_path / "watched") == pytest.approx(undisturbed, rel=0.05)
    assert last_loss(tmp_path / "left") > 1.5 * undisturbed
    assert [returns(tmp_path / name) for name in ("watched", "left", "undisturbed")] == [1, 0, 0]
    assert [row["returns"] for row in rows(tmp_path / "watched")] == ["0"] * 6 + ["1"] * 6


def test_a_poisoned_batch_is_left_out_and_the_optimiser_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spikes, "_NORM_STEPS", 20)
    recipe = recipe_of(tmp_path)
    run(cut(recipe, SPIKE), tmp_path / "before", task_of=Poisoned)
    run(cut(recipe, SPIKE + 1), tmp_path / "after", task_of=Poisoned)
    before, after = state_of(tmp_path / "before"), state_of(tmp_path / "after")
    held = {name for name in before[0] if not name.startswith("earlier.")}
    assert_same_bits({name: after[0][name] for name in held}, {name: before[0][name] for name in held})
    assert after[1]["progress"]["skipped"] == 1
    run(recipe, tmp_path / "after", task_of=Poisoned, resume=True)
    run(recipe, tmp_path / "undisturbed", task_of=LinearTask)
    assert last_loss(tmp_path / "after") == pytest.approx(last_loss(tmp_path / "undisturbed"), rel=0.05)
    assert rows(tmp_path / "after")[-1]["skipped"] == "1"


def test_without_the_rule_one_batch_stops_learning_for_good(tmp_path: Path) -> None:
    run(recipe_of(tmp_path, spike_factor=0), tmp_path / "left", task_of=Poisoned)
    run(recipe_of(tmp_path), tmp_path / "undisturbed", task_of=LinearTask)
    left, undisturbed = (state_of(tmp_path / name)[0] for name in ("left", "undisturbed"))
    second = [name for name in left if name.endswith("exp_avg_sq")]
    assert all(left[name].max() > 1e6 * undisturbed[name].max() for name in second)


@pytest.mark.parametrize("stop", [SPIKE - 2, SPIKE + 1, SPIKE + WINDOW - 2, SPIKE + WINDOW, SPIKE + 2 * WINDOW])
@pytest.mark.usefixtures("fast_spike")
def test_a_run_stopped_anywhere_goes_back_where_the_whole_one_does(tmp_path: Path, stop: int) -> None:
    recipe = recipe_of(tmp_path)
    run(recipe, tmp_path / "whole", task_of=LinearTask)
    run(cut(recipe, stop), tmp_path / "parts", task_of=LinearTask)
    run(recipe, tmp_path / "parts", task_of=LinearTask, resume=True)
    assert_same_bits(state_of(tmp_path / "parts")[0], state_of(tmp_path / "whole")[0])
    (ours, theirs) = (state_of(tmp_path / name)[1] for name in ("parts", "whole"))
    assert ours["watch"] == theirs["watch"]
    assert (returns(tmp_path / "whole"), returns(tmp_path / "parts")) == (1, 1)


def test_a_healthy_run_is_the_same_with_and_without_the_watch(tmp_path: Path) -> None:
    run(recipe_of(tmp_path), tmp_path / "watched", task_of=LinearTask)
    run(recipe_of(tmp_path, spike_factor=0), tmp_path / "plain", task_of=LinearTask)
    watched, plain = (state_of(tmp_path / name)[0] for name in ("watched", "plain"))
    assert not any(name.startswith("earlier.") for name in plain)
    assert_same_bits({name: watched[name] for name in plain}, plain)


def test_a_loss_that_leaps_again_and_again_stops_the_run_in_its_last_good_state(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    with pytest.raises(TrainingError, match=r"run: found a loss that leaps from the state of step 60 .*lower learning"):
        run(recipe, tmp_path / "run", task_of=Raised)
    tensors, index = state_of(tmp_path / "run")
    assert index["progress"]["returns"] == MOST_RETURNS + 1
    run(cut(recipe, 60), tmp_path / "sixty", task_of=Raised)
    then = state_of(tmp_path / "sixty")[0]
    held = [name for name in then if not name.startswith("earlier.")]
    assert_same_bits({name: tensors[name] for name in held}, {name: then[name] for name in held})
    lower = recipe_of(tmp_path, learning_rate=1e-3)  # what the message says to do works, and begins a new account
    assert run(lower, tmp_path / "run", task_of=Raised, resume=True).finished


def test_infinite_weights_are_never_saved_over_good_ones_nor_exported(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, optimizer={"steps": 8}, output={"checkpoint_minutes": 0.0, "keep": 2})
    with pytest.raises(TrainingError, match=r"run: found weights that are not finite .*Fix: resume from an earlier"):
        run(recipe, tmp_path / "run", task_of=flipped(4))
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000003", "step-00000004"]
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.parametrize("at", [SPIKE, STEPS - 2])
def test_infinite_weights_are_put_back_where_there_are_good_ones(tmp_path: Path, at: int) -> None:
    assert run(recipe_of(tmp_path), tmp_path / "run", task_of=flipped(at)).finished
    tensors, index = state_of(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())
    assert index["progress"]["returns"] == 1


def test_another_loss_of_the_recipe_is_no_leap(tmp_path: Path) -> None:
    optimizer = {"steps": 12, "wl2_steps": 6, "spike_window": 2, "loss": "dice_ce"}
    run(tiny_recipe(tmp_path, optimizer=optimizer), tmp_path / "run")
    assert returns(tmp_path / "run") == 0
    assert state_of(tmp_path / "run")[1]["watch"]["good"] == 10  # counted from the sixth on


def test_an_overflow_in_bfloat16_is_left_out(tmp_path: Path) -> None:
    class Bright(SegmentationTask):
        def batch(self, step: int, elements: Sequence[int]) -> Any:
            pair = super().batch(step, elements)
            return pair._replace(input=pair.input * (1e38 if step == 2 else 1))

    recipe = tiny_recipe(tmp_path, optimizer={"precision": "bfloat16", "ema_decay": 0.9, "steps": 4})
    run(recipe, tmp_path / "run", task_of=Bright)
    tensors, index = state_of(tmp_path / "run")
    assert index["progress"]["skipped"] == 1
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_a_log_of_before_there_were_these_columns_is_gone_on_with(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    run(cut(recipe, 20), tmp_path / "run", task_of=LinearTask)
    log = tmp_path / "run" / "log.csv"
    log.write_text("".join(f"{line.rsplit(',', 2)[0]}\n" for line in log.read_text(encoding="utf-8").splitlines()))
    run(cut(recipe, 30), tmp_path / "run", task_of=LinearTask, resume=True)
    assert [(row["step"], row["returns"]) for row in rows(tmp_path / "run")] == [("10", ""), ("20", ""), ("30", "0")]


# The watch itself


def watch_of(**optimizer: Any) -> SpikeWatch:
    config = OptimizerConfig(**{"spike_window": 2, **optimizer})
    return SpikeWatch(config, nn.Linear(2, 2), None, World())


def test_a_lasting_change_of_gradients_is_followed_within_a_few_steps() -> None:
    watch = watch_of()
    assert not any(bool(watch.too_large(torch.tensor(1.0))) for _ in range(150))
    left_out = [bool(watch.too_large(torch.tensor(1e6))) for _ in range(40)]
    assert left_out[0]
    assert left_out == sorted(left_out, reverse=True)
    assert sum(left_out) < 20  # a longer row would stop the run


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_norms_that_are_not_finite_are_the_guards_business(norm: float) -> None:
    watch = watch_of()
    for _ in range(120):
        watch.too_large(torch.tensor(2.0))
    assert not bool(watch.too_large(torch.tensor(norm)))
    assert bool(watch.too_large(torch.tensor(2.1 * NORM_FACTOR)))
    assert not bool(watch.too_large(torch.tensor(1.9 * NORM_FACTOR)))


def test_no_norm_is_too_large_when_the_watch_is_off() -> None:
    watch = watch_of(spike_factor=0.0)
    for _ in range(120):
        watch.too_large(torch.tensor(1.0))
    assert not bool(watch.too_large(torch.tensor(1e9)))


@pytest.mark.parametrize(("key", "value"), [("spike_factor", 0.5), ("spike_factor", math.nan), ("spike_window", 1)])
def test_values_out_of_range_name_their_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"optimizer\.{key}: found {value}"):
        OptimizerConfig(**{key: value})
