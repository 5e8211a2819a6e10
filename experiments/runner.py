"""Run a study: train its arms, segment the scans with each, write the tables."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.adapt import AdaptMethod
from experiments.anatomies import held_out_cases, split_by_ventricles
from experiments.atrophy import run_atrophy
from experiments.bayes.method import BayesMethod
from experiments.cases import cases_of
from experiments.methods import Method, NetworkMethod
from experiments.places import Places, find_places
from experiments.recipes import recipe_of
from experiments.scoring import score_method, write_long_table, write_summary
from experiments.study import Arm, Size, Study
from experiments.trainers import task_of

import synthseg
from synthseg.configs import config_to_dict
from synthseg.errors import TrainingError, UsageError
from synthseg.evaluation import Case, CaseFailure, CaseResult
from synthseg.files import atomic_file
from synthseg.training import Recipe, RunOptions, train

RECORD = "study.json"


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """How this sitting runs; nothing here changes what is computed, but for the order of sums on a device."""

    size: Size = "small"
    resume: bool = False
    device: str = "auto"
    threads: int | None = None
    max_minutes: float | None = None  # of each arm's training


def run_study(study: Study, arms: tuple[Arm, ...], given: Places, sitting: Sitting) -> Path:
    """Train, segment, score and write; returns the folder with ``summary.md``, ``scores.tsv`` and ``study.json``.

    Interrupted, the same call with ``resume`` goes on: from each arm's checkpoint, and from the last scored scan.

    Raises: UsageError for an output folder in use without ``resume``; TrainingError for training that was stopped
        early; and as recipes, training and inference do.
    """
    if (given.out / RECORD).is_file() and not sitting.resume:
        raise UsageError(given.out, found="an earlier run", fix="add --resume to continue it, or give another --out")
    record = _record(study, sitting)
    _write(record, given.out)
    places = find_places(sitting.size, given)
    # What is missing is said before the first arm has been trained, not after the last.
    recipes = {arm.name: recipe_of(study, arm, sitting.size, places) for arm in arms if arm.trained}
    cases = [] if study.atrophy else _cases(study, places, sitting.size)
    for arm in arms:
        if arm.trained:
            places.prepare(arm, study.evaluation.held_out, sitting.size)
    weights: dict[str, Path] = {}
    results: dict[str, list[CaseResult]] = {}
    failures: list[tuple[str, CaseFailure]] = []
    for arm in arms:
        if arm.trained:
            weights[arm.name] = _train(arm, recipes[arm.name], places, sitting, record)
    methods = {arm.name: partial(method_of, arm, weights, places, sitting) for arm in arms if arm.evaluate}
    if study.atrophy is not None:
        missed = run_atrophy(study.atrophy, methods, places, sitting.size, say=_say)
        record["failures"] = [{"arm": arm, "case": case, "reason": reason} for arm, case, reason in missed]
        _write(record, given.out)
        return given.out
    for name, make in methods.items():
        method = make()
        record["arms"].setdefault(name, {}).update(method.facts())
        outcomes = score_method(cases, method, given.out / "kept", say=partial(_say_of, name))
        results[name] = [one for one in outcomes if isinstance(one, CaseResult)]
        failures += [(name, one) for one in outcomes if isinstance(one, CaseFailure)]
    record["failures"] = [{"arm": a, "case": one.case.name, "reason": one.reason} for a, one in failures]
    write_long_table(study, results, given.out / "scores.tsv")
    write_summary(study, results, given.out / "summary.md", failures)
    _write(record, given.out)
    return given.out


def _cases(study: Study, places: Places, size: Size) -> list[Case]:
    """The scans to score: those at hand, and those of label maps held out of training."""
    found = cases_of(places.scans_folder(), study.evaluation, size)
    if study.evaluation.split_by_ventricles:
        found = split_by_ventricles(found)
    if study.evaluation.held_out:
        found += held_out_cases(places.bank, places.out, study.evaluation, size)
    return found


def method_of(arm: Arm, weights: Mapping[str, Path], places: Places, sitting: Sitting) -> Method:
    """What segments scans for an arm."""
    device, threads = sitting.device, sitting.threads
    if arm.method == "bayes":
        return BayesMethod.of_bank(places.bank_of(arm), kept=places.out / "kept", coarse=sitting.size == "toy")
    if arm.method == "adapt":
        assert arm.needs.structures is not None
        assert arm.needs.autoencoder is not None
        steps = 2 if sitting.size == "toy" else 100
        return AdaptMethod(weights[arm.needs.structures], weights[arm.needs.autoencoder], steps=steps, device=device)
    return NetworkMethod(arm.weights or weights[arm.name], arm.mode, device=device, threads=threads)


def _train(arm: Arm, recipe: Recipe, places: Places, sitting: Sitting, record: dict[str, Any]) -> Path:
    """Train an arm to its end, or go on with it; an arm that has reached it only writes its weights again."""
    folder = places.out / "arms" / arm.name
    options = RunOptions(
        out=folder,
        resume=sitting.resume,
        device=sitting.device,
        threads=sitting.threads,
        max_minutes=sitting.max_minutes,
    )
    _say(f"{arm.name}: {recipe.optimizer.steps} steps in {folder}")
    started = time.perf_counter()
    result = train(recipe, options, task_of(arm))
    record["arms"][arm.name] = {
        "recipe": config_to_dict(recipe),
        "steps": result.step,
        "finished": result.finished,
        "seconds_of_this_sitting": round(time.perf_counter() - started, 1),
    }
    _write(record, places.out)
    if not result.finished or result.weights is None:
        fix = "run the same command with --resume; scans are segmented when all arms are trained"
        raise TrainingError(f"arm {arm.name}", found=f"training stopped at step {result.step}", fix=fix)
    return result.weights


def _record(study: Study, sitting: Sitting) -> dict[str, Any]:
    return {
        "study": study.name,
        "size": sitting.size,
        "synthseg": synthseg.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and sitting.device != "cpu" else "cpu",
        "threads": sitting.threads or torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "arms": {},
    }


def _write(record: dict[str, Any], folder: Path) -> None:
    with atomic_file(folder / RECORD) as file:
        file.write(json.dumps(record, indent=1).encode())


def _say_of(arm: str, text: str) -> None:
    _say(f"{arm}: {text}")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
