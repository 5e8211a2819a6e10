"""Weights of quality networks learn what they predict for clear images: the measure of their verdicts' limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from synthseg.errors import ConfigError, WeightsError
from synthseg.generation.config import GenerationConfig
from synthseg.training.recipe import Recipe, load_recipe
from synthseg.training.tasks.quality import QualityTask
from synthseg.weights import build_network, load_weights, protocol_of, save_weights
from synthseg.weights.card import require_role
from synthseg.weights.files import hash_tensors
from synthseg.weights.store import SUFFIX

CPU = torch.device("cpu")
STEP = 0  # whose elements the images are


def clear(generation: GenerationConfig) -> GenerationConfig:
    """The same brains and contrasts, imaged well: voxels of the map, no noise, no ghosts, nothing cut off."""
    return dataclasses.replace(
        generation,
        acquisition=dataclasses.replace(
            generation.acquisition,
            native_probability=1.0,
            isotropic_probability=0.0,
            spacings_mm=(),
            thicknesses_mm=(),
        ),
        noise=dataclasses.replace(generation.noise, probability=0.0),
        ghosts=dataclasses.replace(generation.ghosts, probability=0.0),
        surroundings=dataclasses.replace(generation.surroundings, cut_probability=0.0),
    )


def calibrate_quality(
    name_or_path: str | Path,
    bank: Path,
    out: Path,
    *,
    recipe: Path,
    images: int = 40,
    seed: int = 0,
    told: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Write a quality network's weights again, its tensors as they were, with ``typical_quality`` in their card.

    That is, by group, the median Dice it predicts for what the recipe's networks make of clear synthetic images, and
    the median of the true one (``true``), which nothing depends on. Limits of verdicts follow from the former
    (``inference.quality.own_limits``).

    Args:
        bank: label maps to make synthetic images of.
        out: the file to write; ends in ``.safetensors``; may be the weights' own.
        recipe: of the network's training, which names the networks whose results it scores.
        told: called after each image with their number so far and in all.
    Returns: the card as written.
    Raises: WeightsError for a network of another role or a bad suffix, ConfigError for a recipe of another task or with
        other groups, TrainingError for a file that is no bank, OutputError when the file cannot be written.
    """
    if out.suffix != SUFFIX:
        raise WeightsError(out, found=f"the suffix {out.suffix!r}", fix=f"name weights files *{SUFFIX}")
    weights = load_weights(name_or_path, "quality")
    require_role(str(weights.card.get("role")), ("quality",), weights.path or weights.name, where="in --quality")
    task = _task(load_recipe(recipe), bank, seed, recipe.name)
    groups = [label.name for label in protocol_of(weights).labels]
    if groups != [label.name for label in task.output_protocol.labels]:
        found = f"groups that are not those of {weights.name}"
        raise ConfigError(recipe.name, found=found, fix="give the recipe that the weights were trained with")
    network = build_network(weights).eval()
    predicted, true = [], []
    with torch.inference_mode():
        for element in range(images):
            batch = task.batch(STEP, [element])
            predicted.append(network(batch.input)[0].clamp(0, 1))
            true.append(batch.target[0])
            if told is not None:
                told(element + 1, images)
    scores, reached = (
        {name: round(float(value), 4) for name, value in list(zip(groups, row.tolist(), strict=True))[1:]}
        for row in (torch.stack(predicted).quantile(0.5, 0), torch.stack(true).quantile(0.5, 0))
    )
    source = f"clear synthetic images of the bank {bank.name}"
    typical = {"scores": scores, "true": reached, "images": images, "seed": seed, "from": source}
    card = {**weights.card, "typical_quality": typical}
    half = hash_tensors(weights.tensors) != weights.card["sha256"]  # the file holds halves: written as halves again
    save_weights(out, weights.tensors, card, half=half)
    return card


def _task(recipe: Recipe, bank: Path, seed: int, name: str) -> QualityTask:
    if recipe.task.kind != "quality":
        fix = "give the recipe of a quality network, e.g. recipes/plus/quality.toml"
        raise ConfigError(name, found=f"a task of kind {recipe.task.kind}", fix=fix)
    return QualityTask(
        dataclasses.replace(
            recipe,
            task=dataclasses.replace(recipe.task, cut_probability=0.0),
            data=dataclasses.replace(recipe.data, bank=str(bank.resolve()), validation=None),
            generation=clear(recipe.generation),
            optimizer=dataclasses.replace(recipe.optimizer, seed=seed),
        ),
        CPU,
    )
