"""The loop: random streams, averaged gradients, steps that are not finite, stopping, and what the log says."""

from __future__ import annotations

import csv
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from synthseg.errors import OutputError, TrainingError, UsageError
from synthseg.training import RunOptions, SegmentationTask
from synthseg.training.logs import COLUMNS, RunLog, duration
from synthseg.training.memory import explain_lack_of_memory
from synthseg.training.task import element_generator
from synthseg.weights import load_weights
from training_helpers import LinearTask, assert_same_bits, cut, quiet, run, state_of, tiny_recipe

CPU = torch.device("cpu")


# Random streams


def test_an_element_is_the_same_in_any_batch_at_any_time(tmp_path: Path):
    task = SegmentationTask(tiny_recipe(tmp_path), CPU)
    together = task.batch(7, range(4))
    for element in (3, 0, 2):  # alone, in another order, by another task
        alone = SegmentationTask(tiny_recipe(tmp_path), CPU).batch(7, [element])
        assert torch.equal(alone.target[0], together.target[element])
        torch.testing.assert_close(alone.input[0], together.input[element], rtol=1e-5, atol=1e-6)
    torch.manual_seed(99)  # the global stream plays no part
    assert_same_bits(task.batch(7, range(4))._asdict(), together._asdict())


def test_steps_elements_and_seeds_have_streams_of_their_own(tmp_path: Path):
    task = SegmentationTask(tiny_recipe(tmp_path), CPU)
    other = SegmentationTask(tiny_recipe(tmp_path, optimizer={"seed": 6}), CPU)
    images = [task.batch(0, [0]), task.batch(0, [1]), task.batch(1, [0]), other.batch(0, [0])]
    flat = torch.stack([pair.input.flatten() for pair in images])
    assert (torch.cdist(flat, flat) + 9 * torch.eye(4) > 1).all()


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 10**6), st.integers(0, 10**4)), min_size=2, max_size=30))
def test_no_two_elements_share_a_seed(numbers: set[tuple[int, int, int]]):
    assert len({element_generator(*each, CPU).initial_seed() for each in numbers}) == len(numbers)


# Averaged gradients


def linear_weights(recipe: Any, out: Path) -> dict[str, Tensor]:
    run(recipe, out, task_of=LinearTask)
    tensors, _ = state_of(out)
    return {name: tensor for name, tensor in tensors.items() if name.startswith("network.")}


@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_steps_are_steps_of_the_whole_batch(tmp_path: Path, clip: float | None):
    # True of any network without batch norm and any loss that averages over elements. Batch norm sees micro-batches.
    optimizer = {} if clip is None else {"clip_norm": clip}
    whole = linear_weights(tiny_recipe(tmp_path, optimizer={"batch": 6, **optimizer}), tmp_path / "whole")
    parts = tiny_recipe(tmp_path, optimizer={"batch": 2, "accumulate": 3, **optimizer})
    accumulated = linear_weights(parts, tmp_path / "parts")
    for name, tensor in whole.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=1e-4, atol=1e-6)


def test_accumulation_counts_elements_on(tmp_path: Path):
    tasks: list[LinearTask] = []

    def task_of(recipe: Any, device: torch.device) -> LinearTask:
        tasks.append(LinearTask(recipe, device))
        return tasks[-1]

    recipe = cut(tiny_recipe(tmp_path, optimizer={"batch": 2, "accumulate": 3}), 2)
    run(recipe, tmp_path / "run", task_of=task_of)
    assert tasks[0].seen == [(step, [n, n + 1]) for step in (0, 1) for n in (0, 2, 4)]
    assert state_of(tmp_path / "run")[1]["progress"]["samples"] == 12


# Steps that are not finite


def failing(steps: Sequence[int], how: str) -> Any:
    """The tiny task with images, a loss or a gradient that is not a number at the given steps."""

    class Failing(SegmentationTask):
        def batch(self, step: int, elements: Sequence[int]) -> Any:
            pair = super().batch(step, elements)
            return pair._replace(input=pair.input * math.nan) if step in steps and how == "image" else pair

        def loss(self, network: nn.Module, batch: Any, step: int) -> Tensor:
            loss = super().loss(network, batch, step)
            if step in steps and how == "loss":
                return loss * math.inf
            if step in steps and how == "gradient":  # the root's slope at 0 is infinite, its value is not
                return loss + (loss - loss.detach()).abs().sqrt()
            return loss

    return Failing


@pytest.mark.parametrize("how", ["image", "loss", "gradient"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(
    tmp_path: Path, how: str, clip: float | None, capsys: pytest.CaptureFixture[str]
):
    optimizer = {"ema_decay": 0.9} | ({} if clip is None else {"clip_norm": clip})
    recipe = tiny_recipe(tmp_path, optimizer=optimizer)
    run(cut(recipe, 3), tmp_path / "before")
    run(cut(recipe, 4), tmp_path / "after", task_of=failing([3], how))
    before, after = state_of(tmp_path / "before"), state_of(tmp_path / "after")
    assert_same_bits(after[0], before[0])  # batch norm's statistics, average and Adam's moments included
    assert (after[1]["progress"]["step"], after[1]["progress"]["skipped"]) == (4, 1)
    assert "step 3: loss" in capsys.readouterr().err
    run(recipe, tmp_path / "after", resume=True)  # and goes on
    weights = load_weights(tmp_path / "after" / "synthseg.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.tensors.values())


def test_an_interval_of_left_out_steps_logs_no_loss_of_zero(tmp_path: Path):
    run(cut(tiny_recipe(tmp_path), 3), tmp_path / "run", task_of=failing([1], "loss"))
    losses = [float(row["loss"]) for row in rows(tmp_path / "run")]
    assert [math.isnan(loss) for loss in losses] == [False, True, False]
    assert losses[0] > 0


def test_twenty_in_a_row_stop_the_run_with_a_way_out(tmp_path: Path):
    recipe = tiny_recipe(tmp_path, optimizer={"steps": 50}, network={"features": 1})
    with pytest.raises(
        TrainingError, match=r"run: found 20 steps in a row without a finite loss.*Fix: resume with a lower"
    ):
        run(recipe, tmp_path / "run", task_of=failing(range(5, 50), "loss"))
    bad = [n for n in range(5, 43) if n != 24]  # 19, a good one, 18
    assert run(recipe, tmp_path / "broken", task_of=failing(bad, "loss")).finished


# Stopping


def test_the_time_limit_ends_with_checkpoint_and_weights(tmp_path: Path):
    result = run(tiny_recipe(tmp_path), tmp_path / "run", max_minutes=0.0)
    assert (result.step, result.finished) == (1, False)
    assert result.weights is not None
    assert load_weights(result.weights).card["steps"] == 1
    assert run(tiny_recipe(tmp_path), tmp_path / "run", resume=True, max_minutes=60).step == 6


def test_a_second_interrupt_is_obeyed_at_once_and_the_handlers_come_back(tmp_path: Path):
    class Interrupted(SegmentationTask):
        def loss(self, network: nn.Module, batch: Any, step: int) -> Tensor:
            if step == 2:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
            return super().loss(network, batch, step)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    often = tiny_recipe(tmp_path, output={"checkpoint_minutes": 0.0})
    with pytest.raises(KeyboardInterrupt):
        run(often, tmp_path / "run", task_of=Interrupted)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert state_of(tmp_path / "run")[1]["progress"]["step"] == 2


@pytest.mark.parametrize("threads", [0, -1])
def test_a_number_of_threads_below_one_is_refused(threads: int):
    with pytest.raises(UsageError, match=rf"threads: found {threads}. Fix: give at least 1"):
        RunOptions(out=Path("run"), threads=threads)


@pytest.mark.parametrize("minutes", [-1.0, math.nan])
def test_a_time_limit_in_the_past_is_refused(minutes: float):
    with pytest.raises(UsageError, match=r"max_minutes: found .*Fix: give 0 or more"):
        RunOptions(out=Path("run"), max_minutes=minutes)


# Out of memory


def raising(error: BaseException) -> Any:
    class Greedy(SegmentationTask):
        def loss(self, network: nn.Module, batch: Any, step: int) -> Tensor:
            if step == 2:
                raise error
            return super().loss(network, batch, step)

    return Greedy


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_a_message_with_a_way_out(tmp_path: Path, error: BaseException):
    recipe = tiny_recipe(tmp_path, optimizer={"batch": 2}, output={"checkpoint_minutes": 0.0})
    way = r"a smaller generation.grid.shape \(now 16 x 16 x 16\), or a smaller optimizer.batch \(now 2\)"
    with pytest.raises(TrainingError, match=rf"memory: found too little.*Fix: try {way}.*--resume goes on") as caught:
        run(recipe, tmp_path / "run", task_of=raising(error))
    assert "\n" not in str(caught.value)
    smaller = tiny_recipe(tmp_path, optimizer={"batch": 1, "accumulate": 2})
    assert run(smaller, tmp_path / "run", resume=True).finished  # what the message says does work


def test_torch_itself_out_of_memory_is_recognised(tmp_path: Path):
    with (
        pytest.raises(TrainingError, match=r"memory: found too little for a step \(.*allocate"),
        explain_lack_of_memory(tiny_recipe(tmp_path)),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_another_error_is_not_taken_for_lack_of_memory(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"^something else$"):
        run(tiny_recipe(tmp_path), tmp_path / "run", task_of=raising(RuntimeError("something else")))


# The log


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Clock:
    """Time that passes only while a batch is made: a second each."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_counts_the_steps_that_were_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr("synthseg.training.loop.time.monotonic", clock)

    class Slow(SegmentationTask):
        def batch(self, step: int, elements: Sequence[int]) -> Any:
            clock.now += 1.0
            return super().batch(step, elements)

    recipe = tiny_recipe(tmp_path, optimizer={"batch": 2, "steps": 7}, output={"log_every": 3})
    run(cut(recipe, 2), tmp_path / "run", task_of=Slow)
    run(recipe, tmp_path / "run", task_of=Slow, resume=True)
    logged = rows(tmp_path / "run")
    assert [int(row["step"]) for row in logged] == [2, 3, 6, 7]  # intervals of 2, 1, 3 and 1 steps
    assert {float(row["samples_per_s"]) for row in logged} == {2.0}
    assert {float(row["generation_share"]) for row in logged} == {1.0}
    assert [float(row["seconds"]) for row in logged] == [2.0, 3.0, 6.0, 7.0]


def test_the_log_is_cut_back_to_the_step_resumed_from(tmp_path: Path):
    log = RunLog(tmp_path, tensorboard=False, resume_step=0, stream=quiet())
    for step in (10, 20, 30):
        log.row(step=step, loss=1 / step)
    with log.path.open("a", encoding="utf-8") as file:
        file.write("4")  # a line that a power cut left
    with log.path.open("ab") as file:
        file.write(b"\n\xff\xfe\n" + bytes(100))  # and what a disk made of others
    resumed = RunLog(tmp_path, tensorboard=False, resume_step=20, stream=quiet())
    resumed.row(step=25, dice=0.5)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20", "25"]
    assert tuple(rows(tmp_path)[0]) == COLUMNS
    assert rows(tmp_path)[2]["loss"] == ""
    fresh = RunLog(tmp_path, tensorboard=False, resume_step=0, stream=quiet())
    assert rows(tmp_path) == []
    fresh.close()


def test_tensorboard_gets_every_number(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(cut(tiny_recipe(tmp_path, output={"tensorboard": True}), 4), tmp_path / "run")
    run(tiny_recipe(tmp_path, output={"tensorboard": True}), tmp_path / "run", resume=True)
    files = sorted((tmp_path / "run" / "tensorboard").glob("events*"))
    assert len(files) == 2
    board = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = {event.step: event.value for event in board.Scalars("loss")}
    assert losses == {int(row["step"]): pytest.approx(float(row["loss"]), rel=1e-5) for row in rows(tmp_path / "run")}
    assert {"learning_rate", "samples_per_s", "generation_share", "seconds"} <= set(board.Tags()["scalars"])


def test_a_missing_tensorboard_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"output.tensorboard: found no tensorboard.*synthseg\[tensorboard\]"):
        run(tiny_recipe(tmp_path, output={"tensorboard": True}), tmp_path / "run")


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError, match=r"run: found no way to write into it \(File exists\)"):
        run(tiny_recipe(tmp_path), tmp_path / "run")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0m00s"), (185.9, "3m05s"), (3720, "1h02m"), (360000, "100h00m")])
def test_durations_are_short(seconds: float, text: str):
    assert duration(seconds) == text


# A compiled network


def test_a_compiled_run_learns_what_the_plain_one_does_under_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled = []
    real = torch.compile

    def without_code_generation(network: nn.Module) -> Any:  # all but the C++ compiler, which is not everywhere
        compiled.append(network)
        return real(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_code_generation)
    run(tiny_recipe(tmp_path), tmp_path / "plain")
    assert compiled == []
    run(tiny_recipe(tmp_path, optimizer={"compile": True}), tmp_path / "compiled")
    assert len(compiled) == 1
    plain, fused = (state_of(tmp_path / name)[0] for name in ("plain", "compiled"))
    assert plain.keys() == fused.keys()
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-4)
