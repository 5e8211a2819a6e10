"""From an arm to the recipe it trains by."""

from __future__ import annotations

import random
from typing import Any

from experiments.anatomies import weights_table
from experiments.places import Places
from experiments.study import Arm, Size, Study, size_tables

from synthseg.errors import ConfigError
from synthseg.generation.bank import LabelBank
from synthseg.generation.priors import load_priors
from synthseg.training.recipe import Recipe, overlay, recipe_from_dict


def recipe_of(study: Study, arm: Arm, size: Size, places: Places) -> Recipe:
    """The size's recipe with the study's and the arm's changes, on the arm's maps and priors.

    Raises: ConfigError, UsageError naming what is wrong or missing.
    """
    tables = size_tables(size)
    toy = {"network": tables["network"], "optimizer": tables["optimizer"]} if size == "toy" else {}
    tables = overlay(overlay(tables, study.recipe), arm.recipe)
    tables = overlay(tables, toy)
    bank = places.bank_of(arm, study.evaluation.held_out).resolve()
    data: dict[str, Any] = {"bank": str(bank)}
    if arm.maps is not None:
        data["map_weights"] = subset_weights(len(LabelBank.load(bank)), arm.maps, arm.maps_draw)
    if arm.sampler != "uniform":  # made before training (Places.prepare)
        data["map_weights"] = str(weights_table(places.out, arm.name).resolve())
    changes: dict[str, Any] = {"data": data, "output": {"name": arm.name, "description": study.title}}
    if arm.prior is not None:
        changes["generation"] = {"mixture": _prior_table(places, arm.prior)}
    if arm.trainer == "autoencoder":
        changes["network"] = {"in_channels": tables["network"]["out_channels"]}
    return recipe_from_dict(overlay(tables, changes), where=f"{study.name}, arm {arm.name}")


def subset_weights(n_maps: int, count: int, draw: int) -> list[float]:
    """Weights of 1 for ``count`` maps and 0 for the others; of one draw, smaller subsets lie within larger ones.

    Raises: ConfigError for more maps than there are.
    """
    if not 1 <= count <= n_maps:
        raise ConfigError("arm.maps", found=f"{count} of {n_maps} label maps", fix=f"give 1 to {n_maps}")
    order = list(range(n_maps))
    random.Random(draw).shuffle(order)
    chosen = set(order[:count])
    return [float(n in chosen) for n in range(n_maps)]


def _prior_table(places: Places, name: str) -> dict[str, Any]:
    means, stds = load_priors(places.prior_of(name))
    return {"kind": "normal", "classes": "contrast", "class_means": means, "class_stds": stds}
