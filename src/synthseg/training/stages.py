"""Running a chain: stage after stage, each a run of its own folder, resumable anywhere.

A stage is finished when its newest checkpoint has reached the recipe's steps and its weights file is of that step.
Finished stages are passed over; a stage that began with other weights than the chain now gives it is refused.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthseg.configs import config_to_dict
from synthseg.errors import ConfigError, TrainingError, UsageError, WeightsError
from synthseg.files import atomic_file
from synthseg.training.chain import COLLECTED, Chain, Stage, place_of, require_files, with_weights
from synthseg.training.checkpoint import list_checkpoints, read_index
from synthseg.training.distributed import World, join_world
from synthseg.training.logs import duration
from synthseg.training.loop import train
from synthseg.training.options import RunOptions
from synthseg.training.recipe import Recipe
from synthseg.training.resume import changed_keys
from synthseg.training.signals import StopOnSignal
from synthseg.training.tasks.frozen import resolve
from synthseg.weights.card import read_card
from synthseg.weights.store import card_of, locate

_RECORD = "stage.json"  # in a stage's folder: {"inputs": hashes of all weights it began with, by "init" or role}
# After a stage has finished: logs and checkpoints; where inputs lie, since _RECORD says what they are.
_MAY_CHANGE = ("output.", "task.weights.")


@dataclass(frozen=True)
class ChainResult:
    """Where a chain stands when its session ends."""

    finished: bool
    stage: str  # the one reached
    step: int  # of that stage
    weights: dict[str, Path]  # of the finished stages, by name


def train_chain(chain: Chain, options: RunOptions) -> ChainResult:
    """Train, or continue to train, a chain until its end, the time limit (of all stages together), or Ctrl-C.

    Each stage runs in a folder of its name inside ``options.out``. The weights of finished stages are also copied into
    the folder ``weights`` there, which SYNTHSEG_WEIGHTS_DIR can name.

    Raises: UsageError for ``options.init``; TrainingError for a folder in use without ``resume``, and for a stage begun
        with other weights (to start from, or for its inputs) than it has now; ConfigError for a recipe that has changed
        since its stage finished, and for a bank or weights that a later stage would miss; all errors of
        :func:`synthseg.training.loop.train`.
    """
    if options.init is not None:
        fix = f"leave it out: the stages of {chain.path.name} name theirs with the key init"
        raise UsageError("--init", found="a chain of several networks to start", fix=fix)
    used = [stage.name for stage in chain.stages if list_checkpoints(options.out / stage.name)]
    if used and not options.resume:
        fix = "add --resume to continue it, or give another folder"
        raise TrainingError(options.out, found=f"checkpoints of an earlier run in {', '.join(used)}", fix=fix)
    require_files(chain)
    with join_world(options.device) as world, StopOnSignal() as stop:
        return _Sitting(chain, options, world, stop).run()


class _Sitting:
    """One sitting of a chain."""

    def __init__(self, chain: Chain, options: RunOptions, world: World, stop: StopOnSignal) -> None:
        self.chain, self.options, self.world, self.stop = chain, options, world, stop
        self.started = time.monotonic()
        self.weights: dict[str, Path] = {}
        self.shas: dict[str, str] = {}

    def run(self) -> ChainResult:
        stage, step, trained = self.chain.stages[0], 0, False
        for number, stage in enumerate(self.chain.stages, start=1):
            title = f"stage {number} of {len(self.chain.stages)}, {stage.name}"
            recipe = with_weights(stage.recipe, {key: self.weights[name] for key, name in _roles(stage)})
            done = self._finished_step(stage, recipe)
            if self.world.any(done is None):
                if self.world.any(self.stop.asked or (trained and self._minutes_left() == 0)):
                    return self._stopped(stage, _newest_step(self.options.out / stage.name))
                trained = True
                result = self._train(stage, recipe, title)
                step = result.step
                if not result.finished:
                    return self._stopped(stage, step)
            else:
                assert done is not None
                step = done
                self._say(f"{title}: finished at step {step}, passed over")
            self._collect(stage, recipe)
        where = f"; all weights in {self.options.out / COLLECTED}"
        self._say(f"chain finished, {duration(time.monotonic() - self.started)} in this sitting{where}")
        return ChainResult(True, stage.name, step, dict(self.weights))

    def _train(self, stage: Stage, recipe: Recipe, title: str) -> Any:
        """One stage by the ordinary loop; every process waits until the leader has written its weights."""
        folder = self.options.out / stage.name
        self._check_inputs(stage)
        init = self.weights[stage.needs["init"]] if "init" in stage.needs else stage.init
        self._say(f"{title}: {stage.source.name} -> {folder}")
        options = replace(self.options, out=folder, init=init, max_minutes=self._minutes_left())
        result = train(recipe, options)
        gc.collect()  # the finished stage's networks and optimiser, before the next one's
        self.world.any(False)
        return result

    def _finished_step(self, stage: Stage, recipe: Recipe) -> int | None:
        """The step a stage has finished at; None where there is something to train (or only weights to write).

        Raises: ConfigError if it has finished by another recipe; TrainingError if with other weights.
        """
        folder = self.options.out / stage.name
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            return None
        facts = read_index(checkpoints[-1])
        step = int(facts["progress"]["step"])
        if step < recipe.optimizer.steps:
            return None
        for key, (before, now) in changed_keys(facts, recipe).items():
            if not key.startswith(_MAY_CHANGE):
                fix = f"set it back, or remove {folder} to train the stage again"
                found = f"{now}, but the stage finished with {before}"
                raise ConfigError(place_of(self.chain, stage, key), found=found, fix=fix)
        self._check_inputs(stage)
        try:
            written = read_card(_weights_file(folder, recipe)).get("steps")
        except WeightsError:  # none yet: the loop has no step left to do and writes them
            return None
        return step if written == step else None

    def _check_inputs(self, stage: Stage) -> None:
        """All weights that make a stage must be those it began with; at its beginning they are written down.

        Raises: TrainingError for weights that have changed, come or gone since, and for a record that cannot be read.
        """
        folder = self.options.out / stage.name
        named = _named(stage)
        now = {key: self._sha(stage, key, text) for key, text in named.items()}
        record = folder / _RECORD
        if not list_checkpoints(folder):
            if self.world.leads:
                with atomic_file(record) as file:
                    file.write(json.dumps({"inputs": now}, indent=1).encode())
            return
        if not record.exists():  # trained by itself, not by a chain
            self._say(f"stage {stage.name} was begun outside this chain: what its inputs came from is not checked")
            return
        before = _read_record(record, folder)
        for key in dict.fromkeys([*before, *now]):
            if before.get(key) == now.get(key):
                continue
            place = place_of(self.chain, stage, key if key == "init" else f"task.weights.{key}")
            what = f"stage {stage.needs[key]}" if key in stage.needs else repr(named.get(key))
            if key not in now:
                found, fix = f"training begun with weights for {place}, which now names none", "name them again"
            elif key not in before:
                found, fix = f"training begun without weights for {place}, which now names {what}", "leave them out"
            else:
                found, fix = f"training begun with other weights of {what} than there are now", "bring those back"
            raise TrainingError(folder, found=found, fix=f"remove {folder} to train the stage again, or {fix}")

    def _sha(self, stage: Stage, key: str, text: str) -> str:
        """The hash of the weights behind a key: an earlier stage's, or those of a name or path."""
        if key in stage.needs:
            return self.shas[stage.needs[key]]
        return str(card_of(locate(resolve(stage.recipe, text)))["sha256"])

    def _collect(self, stage: Stage, recipe: Recipe) -> None:
        """Take note of a finished stage's weights, and copy them beside the others."""
        path = _weights_file(self.options.out / stage.name, recipe)
        self.weights[stage.name], self.shas[stage.name] = path, str(read_card(path)["sha256"])
        copy = self.options.out / COLLECTED / path.name
        if self.world.leads and not (copy.is_file() and _same_file(path, copy)):
            with atomic_file(copy) as target, path.open("rb") as source:
                shutil.copyfileobj(source, target)

    def _stopped(self, stage: Stage, step: int) -> ChainResult:
        self._say(f"chain stopped in stage {stage.name} at step {step}; continue with --resume")
        return ChainResult(False, stage.name, step, dict(self.weights))

    def _minutes_left(self) -> float | None:
        if self.options.max_minutes is None:
            return None
        return max(0.0, self.options.max_minutes - (time.monotonic() - self.started) / 60)

    def _say(self, text: str) -> None:
        if self.world.leads:
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _named(stage: Stage) -> dict[str, str]:
    """All weights that make a stage, as its files name them, by "init" or role."""
    begins = {} if stage.init is None else {"init": stage.init}
    return {**begins, **config_to_dict(stage.recipe.task.weights)}


def _read_record(record: Path, folder: Path) -> dict[str, str]:
    """The hashes a stage began with. Raises: TrainingError for a damaged record, and for one of an earlier release."""
    fix = f"remove {folder} to train the stage again, or remove {record} to go on without checking its inputs"
    try:
        facts = json.loads(record.read_text(encoding="utf-8"))
        if "inputs" not in facts and "weights" in facts:
            found = "a record of an earlier release, which does not list all weights that the stage began with"
            raise TrainingError(record, found=found, fix=fix)
        return {str(key): str(sha) for key, sha in facts["inputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(record, found=f"a damaged record ({error})", fix=fix) from error


def _roles(stage: Stage) -> list[tuple[str, str]]:
    return [(key, name) for key, name in stage.needs.items() if key != "init"]


def _newest_step(folder: Path) -> int:
    found = list_checkpoints(folder)
    return int(read_index(found[-1])["progress"]["step"]) if found else 0


def _weights_file(folder: Path, recipe: Recipe) -> Path:
    return folder / f"{recipe.output.name}.safetensors"


def _same_file(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()
