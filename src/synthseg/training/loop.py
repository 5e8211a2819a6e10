"""The training loop: one for every task.

A step's random numbers depend on (seed, step, element) alone, so a resumed run continues the same sequence, and N
processes with batch b see the elements that one process with batch N b sees. On a CPU (same torch, same thread count) a
resumed run is the uninterrupted one bit for bit; on a GPU, where sums have no fixed order, up to rounding.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel

from synthseg.errors import TrainingError
from synthseg.training.alone import alone_in
from synthseg.training.checkpoint import Progress, list_checkpoints, load_checkpoint, read_index, save_checkpoint
from synthseg.training.distributed import World, join_world, share_batch_norm, spread
from synthseg.training.export import comparable_values, provenance, start_from
from synthseg.training.guard import StepGuard
from synthseg.training.logs import RunLog, duration
from synthseg.training.memory import explain_lack_of_memory
from synthseg.training.optimizers import make_optimizer
from synthseg.training.options import RunOptions, RunResult
from synthseg.training.prefetch import Prefetch
from synthseg.training.recipe import Recipe
from synthseg.training.resume import compare_recipes, means_other_losses
from synthseg.training.schedule import WeightAverage, learning_rate
from synthseg.training.signals import StopOnSignal
from synthseg.training.spikes import SpikeWatch, all_finite
from synthseg.training.task import Task
from synthseg.training.tasks import make_task
from synthseg.weights import load_weights, protocol_of, save_weights

MAX_SKIPPED_IN_ROW = 20  # steps with a loss that is not finite before the run is stopped


def train(
    recipe: Recipe, options: RunOptions, task_of: Callable[[Recipe, torch.device], Task] = make_task
) -> RunResult:
    """Train, or continue to train, until the recipe's steps, the time limit, or Ctrl-C.

    Args:
        recipe: what to train.
        options: where and for how long; ``resume`` continues from the newest checkpoint (from the start if none).
        task_of: makes the task; the recipe's ``[task]`` by default.
    Returns: the state reached, also of a run that was stopped early; ``weights`` is the exported file (averaged weights
        if the recipe averages).
    Raises: TrainingError for a run folder in use, or used before without ``resume``, unreadable inputs, too little
        memory, or a diverged loss; ConfigError for a recipe that does not fit its bank or the checkpoint to go on from.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    with join_world(options.device) as world, explain_lack_of_memory(recipe):
        _require_free(options)
        torch.manual_seed(recipe.optimizer.seed)  # initial weights only
        task = task_of(recipe, world.device)
        with StopOnSignal() as stop, alone_in(options.out, leads=world.leads):
            return _Session(recipe, options, world, task).run(stop)


def _require_free(options: RunOptions) -> None:
    if not options.resume and list_checkpoints(options.out):
        raise TrainingError(
            options.out,
            found="checkpoints of an earlier run",
            fix="add --resume to continue it, or give another folder",
        )


def _on(device: torch.device, network: nn.Module) -> nn.Module:
    """On a device, with the channels innermost: a third less time a step on CPUs, and what tensor cores want."""
    moved: nn.Module = network.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return moved


class _Session:
    """One sitting of a run: state and the steps on it."""

    def __init__(self, recipe: Recipe, options: RunOptions, world: World, task: Task) -> None:
        self.recipe, self.options, self.world, self.task = recipe, options, world, task
        self.config = recipe.optimizer
        self.targets: list[int] = task.output_protocol.target_values.tolist()  # of each channel; a bad table fails here
        self.network = _on(world.device, task.build_network())
        self.optimizer = self._fresh_optimizer()
        self.average = WeightAverage(self.network, self.config.ema_decay) if self.config.ema_decay else None
        self.watch = SpikeWatch(self.config, self.network, self.average, world)
        self.progress = Progress()
        self.notes: list[str] = []
        self._restore()
        self.wrapped = self._wrap()
        self.log: RunLog | None = None
        if world.leads:
            self.log = RunLog(options.out, tensorboard=recipe.output.tensorboard, resume_step=self.progress.step)
        self.guard = StepGuard(self.network, world.device)
        self.prefetch = Prefetch(task.batch, world.device)
        self.first_step = self.logged_step = self.progress.step
        self.loss_sum, self.loss_count = 0.0, 0
        self.generation_seconds = 0.0

    def _fresh_optimizer(self) -> optim.Optimizer:
        return make_optimizer(self.config, self.network)

    def _restore(self) -> None:
        found = list_checkpoints(self.options.out) if self.options.resume else []
        if found:
            self._resume(found[-1])
        elif self.options.init is not None:
            weights = load_weights(self.options.init)
            theirs = comparable_values(protocol_of(weights), self.task.output_protocol)
            report = start_from(self.network, weights.tensors, theirs, self.targets)
            self.progress.started_from = provenance(weights)
            self.notes.append(f"started from {weights.name}: {report.sentence()}")
            if self.average:
                self.average.begin(self.network)

    def _resume(self, checkpoint: Path) -> None:
        facts = read_index(checkpoint)
        changes = compare_recipes(facts, self.recipe, self.targets, where=checkpoint.name)
        earlier: dict[str, Tensor] = {}
        load_checkpoint(checkpoint, self.network, self.optimizer, self.average.state if self.average else None, earlier)
        self.progress = Progress(**facts["progress"])
        if self.average:
            self.average.updates = facts.get("average_updates", self.progress.step)
        if "watch" in facts and not means_other_losses(facts, self.recipe):
            self.watch.load(earlier, facts["watch"])
        else:
            self.watch.restart(self.progress.step)
        self.notes += [f"resumed at step {self.progress.step} from {checkpoint.name}", *changes]
        if self.options.init is not None:
            self.notes.append("the weights to start from are not used again: the run goes on from its checkpoint")

    def _wrap(self) -> nn.Module:
        """What a step calls: compiled and spread over the processes; ``self.network`` keeps parameters and names."""
        network: nn.Module = self.network
        if self.config.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        if self.world.size == 1:
            return network
        share_batch_norm(network)
        ids = [self.world.device.index] if self.world.device.type == "cuda" else None
        return spread(network, ids)

    def run(self, stop: StopOnSignal) -> RunResult:
        """Steps until done or asked to stop, with checkpoints between."""
        started = time.monotonic()
        before = self.progress.seconds
        budget = None if self.options.max_minutes is None else 60 * self.options.max_minutes
        self._say(f"{self.config.steps} steps, {self.world.size} process(es) on {self.world.device}")
        for note in self.notes:
            self._say(note)
        torch.backends.cudnn.benchmark = True  # one crop size a run: the fastest kernels are looked for once
        try:
            self._steps(stop, started, before, budget)
        finally:
            self.prefetch.close()
        return self._finish()

    def _steps(self, stop: StopOnSignal, started: float, before: float, budget: float | None) -> None:
        last_saved = last_logged = started
        while self.progress.step < self.config.steps:
            self._step()
            now = time.monotonic()
            self.progress.seconds = before + now - started
            step = self.progress.step
            if step % self.recipe.output.log_every == 0 or step == self.config.steps:
                self._log(now - last_logged, stop)
                last_logged = now
            if self.recipe.data.validation and step % self.recipe.data.validate_every == 0:
                self._validate()
            due = now - last_saved > 60 * self.recipe.output.checkpoint_minutes
            out_of_time = budget is not None and now - started > budget
            if self.world.any(stop.asked or out_of_time):
                break
            if self.world.any(due):
                self._save()
                last_saved = time.monotonic()

    def _step(self) -> None:
        if self.config.wl2_steps and self.progress.step == self.config.wl2_steps:
            self.optimizer = self._fresh_optimizer()  # the original starts the Dice phase with a fresh optimiser
        if self.progress.step and self.progress.step in (self.config.wl2_steps, self.config.freeze_norm_step):
            self.watch.restart(self.progress.step)  # losses are other ones from here on
        rate = learning_rate(self.config, self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self._choose_statistics()
        self.guard.remember()
        losses = [self._micro_step(n) for n in range(self.config.accumulate)]
        loss = torch.stack(losses).mean()
        # infinity clips nothing: the norm is wanted in any case, since a finite loss can have a gradient that is not
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm or math.inf)
        bad = ~(loss.isfinite() & norm.isfinite()) | self.watch.too_large(norm)
        bad = self.world.any_on_device(bad)
        self.guard.step(self.optimizer, loss, bad)
        self.watch.add(loss, bad)
        # A CPU may be asked. On a GPU a step left out also moves the average once more towards the same weights.
        left_out = self.world.device.type == "cpu" and bool(bad)
        if left_out:
            self._say(f"step {self.progress.step}: loss {float(loss)}, gradient norm {float(norm)}: step left out")
        elif self.average:
            self.average.update(self.network)
        self.progress.step += 1
        self.progress.samples += self.config.batch * self.config.accumulate * self.world.size
        if left_out:
            self._tally()
        self._after_return(self.watch.judge(self.progress.step, self.optimizer))

    def _after_return(self, said: str | None) -> None:
        """What remains to be done when the watch has put an earlier state back."""
        if said is None:
            return
        self.progress.returns += 1
        self.guard.end_row()
        self._say(said)
        if self.watch.gives_up:
            self._save()  # the state that was put back
            raise TrainingError(
                self.options.out,
                found=f"a loss that leaps from the state of step {self.watch.kept.good} whatever the random numbers",
                fix="resume with a lower learning rate or a clip_norm; spike_factor = 0 lets it leap",
            )

    def _choose_statistics(self) -> None:
        """Batch norm by the batch's statistics, or from ``freeze_norm_step`` on by the running ones.

        With one pair a batch, a pair's own statistics are what the network learns to rely on, and at inference it never
        sees them: the last part of a run is spent as inference will be.
        """
        frozen = self.config.freeze_norm_step
        self.network.train()
        if frozen is not None and self.progress.step >= frozen:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _micro_step(self, number: int) -> Tensor:
        """Forward and backward of one micro-batch; gradients are averaged over micro-steps and processes."""
        config, world = self.config, self.world
        first = (number * world.size + world.rank) * config.batch
        begin = time.monotonic()
        batch = self.prefetch.take(self.progress.step, range(first, first + config.batch))
        self.generation_seconds += time.monotonic() - begin  # on a GPU: what the step waited for
        sharing: AbstractContextManager[None] = nullcontext()
        if isinstance(self.wrapped, DistributedDataParallel) and number < config.accumulate - 1:
            sharing = self.wrapped.no_sync()  # DDP decides in the forward pass, so that belongs inside too
        with sharing:
            loss = self.task.loss(self.wrapped, batch, self.progress.step)
            (loss / config.accumulate).backward()
        self._begin_next(number + 1)
        return loss.detach()

    def _begin_next(self, number: int) -> None:
        """The batch after the one whose step has just been launched."""
        config, world = self.config, self.world
        step, number = self.progress.step + number // config.accumulate, number % config.accumulate
        if step < config.steps:
            first = (number * world.size + world.rank) * config.batch
            self.prefetch.begin(step, range(first, first + config.batch))

    def _tally(self) -> None:
        """Read what happened since the last reading: with one process, the one place that waits for a GPU."""
        counts = self.guard.read()
        self.loss_sum += counts.loss_sum
        self.loss_count += counts.taken
        self.progress.skipped += counts.skipped
        if counts.skipped and self.world.device.type != "cpu":
            self._say(f"up to step {self.progress.step}: {counts.skipped} steps left out")
        if counts.worst_row >= MAX_SKIPPED_IN_ROW:
            why = f"{counts.worst_row} steps in a row without a finite loss and gradient"
            said = self.watch.go_back(self.progress.step, self.optimizer, why)
            if said is not None:
                return self._after_return(said)
            raise TrainingError(
                self.options.out,
                found=f"{counts.worst_row} steps in a row without a finite loss and gradient",
                fix="resume with a lower learning rate, clip_norm, or float32",
            )

    def _log(self, seconds: float, stop: StopOnSignal) -> None:
        self._tally()
        own = self.loss_sum / self.loss_count if self.loss_count else math.nan  # NaN if every step was left out
        mean = self.world.mean(torch.tensor(own, device=self.world.device)).item()
        step = self.progress.step
        per_step = seconds / (step - self.logged_step)
        rate = self.config.batch * self.config.accumulate * self.world.size / max(per_step, 1e-9)
        share = self.generation_seconds / max(seconds, 1e-9)
        self.logged_step = step
        self.loss_sum, self.loss_count, self.generation_seconds = 0.0, 0, 0.0
        if self.log is None:
            return
        lr, done = self.optimizer.param_groups[0]["lr"], self.progress
        numbers = {"learning_rate": lr, "samples_per_s": rate, "generation_share": share, "seconds": done.seconds}
        self.log.row(step=step, loss=mean, **numbers, skipped=done.skipped, returns=done.returns)
        left = duration(per_step * (self.config.steps - step))
        ending = " (stopping)" if stop.asked else ""
        self._say(f"step {step}/{self.config.steps} loss {mean:.4f} {rate:.2f} samples/s, {left} left{ending}")

    def _validate(self) -> None:
        if self.world.leads:
            scores = self.task.validate(self._best_network())
            self.progress.scores, self.progress.scores_step = scores, self.progress.step if scores else None
            if scores:
                self._say("validation " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
                assert self.log is not None
                self.log.row(step=self.progress.step, seconds=self.progress.seconds, dice=scores["dice"])
                if self.progress.best is None or scores["dice"] > self.progress.best:
                    self.progress.best = scores["dice"]
                    self._export("best")
        self.world.any(False)  # the others wait here

    def _best_network(self) -> nn.Module:
        """The averaged network if there is one, else the trained one."""
        if self.average is None:
            return self.network
        network = _on(self.world.device, self.task.build_network())
        network.load_state_dict(self.average.state)
        return network

    def _save(self) -> None:
        self._tally()
        if self.world.any(not all_finite(self.network, self.average)):
            self._say(f"step {self.progress.step}: weights that are not finite: the checkpoints before are kept")
            return
        self.watch.share()
        if self.world.leads:
            facts: dict[str, Any] = {"progress": dataclasses.asdict(self.progress), "recipe": self.recipe.to_dict()}
            facts["targets"] = self.targets
            if self.average:
                facts["average_updates"] = self.average.updates
            average = self.average.state if self.average else None
            keep, (earlier, facts["watch"]) = self.recipe.output.keep, self.watch.state()
            save_checkpoint(self.options.out, self.network, self.optimizer, average, facts, keep=keep, earlier=earlier)
        self.world.any(False)

    def _export(self, suffix: str = "") -> Path:
        name = self.recipe.output.name + (f"-{suffix}" if suffix else "")
        facts = {
            "steps": self.progress.step,
            "samples": self.progress.samples,
            "hours": round(self.progress.seconds / 3600, 3),
            "scores": self.progress.scores,
            "scores_step": self.progress.scores_step,
            "started_from": self.progress.started_from,
            "generation": self.recipe.to_dict()["generation"],
            "optimizer": self.recipe.to_dict()["optimizer"],
        }
        state = self.average.state if self.average else self.network.state_dict()
        return save_weights(self.options.out / f"{name}.safetensors", state, self.task.card(facts), half=True)

    def _finish(self) -> RunResult:
        finished = self.progress.step >= self.config.steps
        self._require_finite()
        unseen = self.progress.step > self.first_step and self.progress.step % self.recipe.data.validate_every
        if finished and self.recipe.data.validation and unseen:
            self._validate()
        self._save()
        weights = self._export() if self.world.leads else None
        if self.log is not None:
            state = "finished" if finished else "stopped; continue with --resume"
            self._say(f"{state} at step {self.progress.step}, {duration(self.progress.seconds)}; weights: {weights}")
            self.log.close()
        return RunResult(self.progress.step, finished, weights, dict(self.progress.scores))

    def _require_finite(self) -> None:
        """Go back to the last good state if the weights are no numbers. Raises: TrainingError if there is none."""
        if not self.world.any(not all_finite(self.network, self.average)):
            return
        said = self.watch.go_back(self.progress.step, self.optimizer, "weights that are not finite")
        self._after_return(said)
        if said is None:
            raise TrainingError(
                self.options.out,
                found="weights that are not finite (NaN or infinity)",
                fix="resume from an earlier checkpoint with a lower learning rate, clip_norm, or float32",
            )

    def _say(self, text: str) -> None:
        if self.log is not None:
            self.log.say(text)
