"""Every fold and arm in turn: maps, weights, bank, training, scores."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.fetal.cases import atlas_cases, held_out_cases, reached_factors
from experiments.fetal.config import Arm, FetalConfig
from experiments.fetal.doors import map_weights
from experiments.fetal.prepare import Shape, entry_weights, make_bank, shapes_of
from experiments.fetal.report import write_report
from experiments.fetal.score import Results, score_cases
from experiments.fetal.subjects import Fold, folds_of, read_subjects

import synthseg
from synthseg.configs import config_to_dict
from synthseg.errors import TrainingError, UsageError
from synthseg.evaluation import Case, CaseFailure, CaseResult
from synthseg.files import atomic_file
from synthseg.generation import LabelBank
from synthseg.inference import Segmenter
from synthseg.labels import load_protocol
from synthseg.training import Recipe, RunOptions, load_recipe, train

RECORD = "study.json"


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """Where everything is, and how this sitting runs."""

    maps: Path
    out: Path
    recipe: Path
    folds: str = "ages"
    scans: Path | None = None  # atlas images with labels
    steps: int | None = None  # instead of the recipe's
    mode: str = "fast"  # of inference
    device: str = "auto"
    threads: int | None = None
    max_minutes: float | None = None  # of each training
    only: tuple[str, ...] = ()  # folds of this sitting: several processes can share the work


def run_study(arms: Sequence[Arm], config: FetalConfig, sitting: Sitting) -> tuple[Path, int]:
    """Train and score every arm on every fold; returns the page with the tables, and how many scans failed.

    Interrupted, the same call goes on: from each training's checkpoint, and from the last scored scan.

    Raises: UsageError for maps, folds or scans that are not there, and for a folder that holds another study;
        TrainingError for training that was stopped early; and as training and inference do.
    """
    recipe = _recipe(sitting)
    subjects = read_subjects(sitting.maps)
    folds = folds_of(subjects, sitting.folds)
    chosen = _chosen(folds, sitting.only)
    atlas = [] if sitting.scans is None else atlas_cases(sitting.scans)
    if sitting.scans is not None and not atlas:
        found = "no image with labels"
        raise UsageError(sitting.scans, found=found, fix="give NAME_t2.nii.gz with NAME_feta.nii.gz")
    _same_study(_facts(recipe, config, sitting, folds), sitting.out / RECORD)
    results: Results = {arm.name: {} for arm in arms}
    failures: list[tuple[str, CaseFailure]] = []
    tested: list[Case] = []
    for fold in chosen:
        say(f"{fold.name}: maps, edits and test scans")
        shapes = _shapes(fold, arms, recipe, config, sitting)
        cases = [*held_out_cases(fold, sitting.out / "test", config), *atlas]
        tested += cases
        for arm in arms:
            weights = _train(fold, arm, shapes, recipe, config, sitting)
            scored, missed = _score(fold, arm, weights, cases, config, sitting)
            results[arm.name][fold.name] = scored
            failures += [(f"{fold.name}, {arm.name}", one) for one in missed]
    told = told_of(folds, chosen, recipe.optimizer.steps)
    return write_report(results, failures, sitting.out, reached_factors(tested), told), len(failures)


def told_of(folds: Sequence[Fold], chosen: Sequence[Fold], steps: int) -> list[str]:
    """What the page says of what was run: which folds of how many, and what that means for its numbers."""
    ages = sorted({one.weeks for fold in chosen for one in fold.held_out})
    maps = sum(len(fold.held_out) for fold in chosen)
    lines = [
        f"{len(chosen)} of {len(folds)} folds ({', '.join(fold.name for fold in chosen)}), {steps:,} steps an arm;"
        f" {maps} held-out maps of {', '.join(map(str, ages))} weeks."
    ]
    if len(chosen) < len(folds):
        rest = ", ".join(fold.name for fold in folds if fold not in chosen)
        lines.append(f"**Not the whole study**: {rest} not in this page. Run again without `--only` for all.")
    if len(chosen) == 1:
        lines.append("One fold: all scores of an arm are one network's. Read no interval or p as more than that.")
    return lines


def _recipe(sitting: Sitting) -> Recipe:
    recipe = load_recipe(sitting.recipe)
    if sitting.steps is None:
        return recipe
    return replace(recipe, optimizer=replace(recipe.optimizer, steps=sitting.steps))


def _chosen(folds: Sequence[Fold], names: Sequence[str]) -> list[Fold]:
    known = {fold.name: fold for fold in folds}
    for name in names:
        if name not in known:
            raise UsageError("--only", found=repr(name), fix=f"give some of {', '.join(known)}")
    return [fold for fold in folds if not names or fold.name in names]


def _shapes(
    fold: Fold, arms: Sequence[Arm], recipe: Recipe, config: FetalConfig, sitting: Sitting
) -> dict[str, tuple[Shape, ...]]:
    """The training maps of a fold and their edited variants: of its training subjects only."""
    edited = config.edited if any(arm.shapes for arm in arms) else 0
    spacing = recipe.generation.grid.spacing_mm
    out = sitting.out / "maps"
    return {one.name: shapes_of(one, out, config, spacing, edited=edited) for one in fold.training}


def _train(
    fold: Fold,
    arm: Arm,
    shapes: Mapping[str, Sequence[Shape]],
    recipe: Recipe,
    config: FetalConfig,
    sitting: Sitting,
) -> Path:
    """Train an arm on a fold's maps to its end, or go on with it."""
    folder = sitting.out / fold.name
    bank = make_bank(arm, shapes, folder / "banks", config)
    weights = None
    if arm.sampler:
        files = [shape.path for own in shapes.values() for shape in (own if arm.shapes else own[:1])]
        of_map = map_weights(files, load_protocol(config.protocol), config)
        with atomic_file(folder / "weights" / f"{arm.name}.json") as file:
            file.write(json.dumps(of_map, indent=1).encode())
        weights = tuple(entry_weights(LabelBank.load(bank).names, of_map, bank))
    data = replace(recipe.data, bank=str(bank.resolve()), map_weights=weights)
    output = replace(recipe.output, name=arm.name, description=f"fetal study, without {fold.name}")
    options = RunOptions(
        out=folder / "arms" / arm.name,
        resume=True,
        device=sitting.device,
        threads=sitting.threads,
        max_minutes=sitting.max_minutes,
    )
    say(f"{fold.name}, {arm.name}: {recipe.optimizer.steps} steps in {options.out}")
    result = train(replace(recipe, data=data, output=output), options)
    if not result.finished or result.weights is None:
        fix = "run the same command again: it goes on"
        raise TrainingError(f"{fold.name}, {arm.name}", found=f"training stopped at step {result.step}", fix=fix)
    return result.weights


def _score(
    fold: Fold, arm: Arm, weights: Path, cases: Sequence[Case], config: FetalConfig, sitting: Sitting
) -> tuple[list[CaseResult], list[CaseFailure]]:
    segmenter = Segmenter(str(weights), sitting.mode, device=sitting.device, threads=sitting.threads)
    kept = sitting.out / fold.name / "kept"
    outcomes = score_cases(
        cases, segmenter, kept, config.protocol, say=lambda text: say(f"{fold.name}, {arm.name}: {text}")
    )
    found = [one for one in outcomes if isinstance(one, CaseResult)]
    return found, [one for one in outcomes if isinstance(one, CaseFailure)]


def _facts(recipe: Recipe, config: FetalConfig, sitting: Sitting, folds: Sequence[Fold]) -> dict[str, Any]:
    """Everything that what is kept depends on, but for the arms, which may be added one by one."""
    plain = config_to_dict(recipe)
    for table, key in (("data", "bank"), ("output", "name"), ("output", "description")):
        plain[table].pop(key)
    plain.pop("folder")
    maps = {one.name: hashlib.sha256(one.path.read_bytes()).hexdigest() for fold in folds for one in fold.held_out}
    return {
        "study": "fetal",
        "synthseg": synthseg.__version__,
        "recipe": plain,
        "config": config_to_dict(config),
        "folds": {fold.name: [one.name for one in fold.held_out] for fold in folds},
        "maps": maps,
        "mode": sitting.mode,
    }


def _same_study(facts: Mapping[str, Any], path: Path) -> None:
    """Keep what this study is; a folder of another one is refused, or its maps and scores would be mixed.

    Raises: UsageError naming the first thing that differs.
    """
    new = json.loads(json.dumps(facts))
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = None
    if isinstance(old, dict):
        differs = [key for key in new if old.get(key) != new[key] and key != "synthseg"]
        if differs:
            fix = "give another --out, or the maps and settings of before"
            raise UsageError(path, found=f"a study with another {differs[0]}", fix=fix)
    with atomic_file(path) as file:
        file.write(json.dumps(new, indent=1).encode())


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
