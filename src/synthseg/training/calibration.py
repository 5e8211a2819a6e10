"""Weights learn which values go into their convolutions, from synthetic scans: what int8 needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from synthseg.configs import config_from_dict
from synthseg.engine.ranges import observe, to_card
from synthseg.errors import ConfigError, WeightsError
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GenerationConfig
from synthseg.generation.model import GenerativeModel
from synthseg.networks import UNet
from synthseg.training.recipe import load_recipe
from synthseg.training.task import Batch, element_generator
from synthseg.training.tasks import make_task
from synthseg.weights import build_network, load_weights, save_weights
from synthseg.weights.files import hash_tensors
from synthseg.weights.store import SUFFIX

CPU = torch.device("cpu")
STEP = 0  # whose elements the images are


def calibrate(
    name_or_path: str | Path,
    bank: Path,
    out: Path,
    *,
    images: int = 8,
    seed: int = 0,
    recipe: Path | None = None,
    role: str | None = None,
) -> dict[str, Any]:
    """Write weights again, their tensors as they were, with the key ``int8`` in their card.

    Args:
        bank: label maps to make synthetic images of, like those of the weights' training; no real scan is needed.
        out: the file to write; ends in ``.safetensors``.
        recipe: of the weights' training; needed where their card does not tell how images were made, and for networks
            that read more than an image.
        role: which network, as in ``load_weights``.
    Returns: the card as written.
    Raises: WeightsError for a network that is not a UNet or a bad suffix, ConfigError where a recipe is needed or does
        not fit, TrainingError for a file that is no bank, OutputError when the file cannot be written.
    """
    if out.suffix != SUFFIX:
        raise WeightsError(out, found=f"the suffix {out.suffix!r}", fix=f"name weights files *{SUFFIX}")
    weights = load_weights(name_or_path, role)
    subject = weights.path or weights.name
    network = build_network(weights)
    if not isinstance(network, UNet):
        found = f"{weights.card['architecture']['kind']!r}, which is always run in float"
        raise WeightsError(subject, found=found, fix="calibrate weights of another role than quality")
    if recipe is None:
        batches = card_batches(weights.card, bank, images, seed, subject)
    else:
        batches = recipe_batches(recipe, network, bank, images, seed)
    ranges = to_card(observe(network, (batch.input for batch in batches)))
    told = {"ranges": ranges, "images": images, "seed": seed, "from": f"synthetic images of the bank {bank.name}"}
    card = {**weights.card, "int8": told}
    half = hash_tensors(weights.tensors) != weights.card["sha256"]  # the file holds halves: written as halves again
    save_weights(out, weights.tensors, card, half=half)
    return card


def card_batches(card: dict[str, Any], bank: Path, count: int, seed: int, subject: str | Path) -> Iterator[Batch]:
    """Synthetic pairs by the card's own generative model, one by one.

    Raises: ConfigError for a card that does not tell how its images were made, or of a network that reads more.
    """
    if card["architecture"].get("in_channels", 1) != 1 or "generation" not in card:
        known = "generation" in card
        found = "a network that reads more than an image" if known else "a card that does not tell how images were made"
        raise ConfigError(subject, found=found, fix="give the recipe of its training: --recipe RECIPE.toml")
    config = config_from_dict(GenerationConfig, card["generation"], where=f"{subject}: generation")
    model = GenerativeModel(config, LabelBank.load(bank))
    for element in range(count):
        pair = model.sample(1, rng=element_generator(seed, STEP, element, CPU))
        yield Batch(pair.image, pair.target)


def recipe_batches(path: Path, network: UNet, bank: Path, count: int, seed: int) -> Iterator[Batch]:
    """What a recipe's network sees and should answer in training, one by one. Raises: ConfigError for another's."""
    recipe = load_recipe(path)
    data = dataclasses.replace(recipe.data, bank=str(bank.resolve()), validation=None)
    optimizer = dataclasses.replace(recipe.optimizer, seed=seed)
    task = make_task(dataclasses.replace(recipe, data=data, optimizer=optimizer), CPU)
    for element in range(count):
        batch = task.batch(STEP, [element])
        if not isinstance(batch, Batch) or batch.input.shape[1] != network.config.in_channels:
            found = "a task whose inputs are not those of the weights"
            raise ConfigError(path.name, found=found, fix="give the recipe that the weights were trained with")
        yield batch
