"""docs/parameters.md says what the recipes and presets in the code are."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthseg.configs import config_to_dict, flatten
from synthseg.generation import PRESETS
from synthseg.networks import UNet
from synthseg.training.recipe import Recipe, load_recipe, recipe_from_dict

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
NAMES = ("paper", "original")
# Tables of a recipe that the page lists key by key.
LISTED = ("data", "generation.grid", "generation.deformation", "generation.anatomy", "generation.mixture")
LISTED += ("generation.bias", "generation.intensity", "generation.acquisition", "task.damage", "network", "encoder")
LISTED += ("optimizer",)
# What a run needs and does not describe a method.
UNLISTED = {"data.bank"}


def rows() -> list[list[str]]:
    """Cells of every row under a header with our key."""
    found = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in PAGE.splitlines() if "|" in line]
    return [row for row in found if len(row) == 7 and row[0] != "original" and not set(row[0]) <= {":", "-"}]


def keyed() -> list[tuple[str, str, str]]:
    return [(row[3].strip("`"), row[4].strip("`"), row[5].strip("`")) for row in rows() if row[3] != "—"]


def recipe(name: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{name}.toml")


def plain(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


@pytest.mark.parametrize(("key", "paper", "original"), keyed())
def test_the_table_states_the_recipes_values(key: str, paper: str, original: str) -> None:
    for name, written in zip(NAMES, (paper, original), strict=True):
        values = flatten(recipe(name))
        assert key in values, f"{key}: no key of a recipe"
        assert json.loads(written) == plain(values[key])


def test_every_key_of_the_listed_tables_has_its_row_once() -> None:
    listed = [key for key, *_ in keyed()]
    twice = sorted({key for key in listed if listed.count(key) > 1})
    assert twice == ["task.predicted_probability"]  # S2's and D's
    wanted = {key for key in flatten(recipe("paper")) if key.rpartition(".")[0] in LISTED} - UNLISTED
    assert wanted - set(listed) == set()


def test_rows_say_what_the_code_and_the_paper_have() -> None:
    assert len(rows()) > 100
    for row in rows():
        assert row[1], row
        assert row[2], row
        assert (row[3] == "—") == (row[4] == row[5] == "—"), row


@pytest.mark.parametrize("name", NAMES)
def test_a_complete_recipe_has_its_preset_and_the_published_network(name: str) -> None:
    loaded = recipe(name)
    assert loaded.generation == PRESETS[name]()
    network = UNet(loaded.network)
    # Reference 4.2: SynthSeg 2.0, 13,242,849 values, 13,240,641 of them trained.
    trained = sum(parameter.numel() for parameter in network.parameters())
    kept = sum(tensor.numel() for key, tensor in network.state_dict().items() if "num_batches" not in key)
    assert (trained, kept) == (13_240_641, 13_242_849)


def test_the_complete_recipes_have_the_sources_schedules() -> None:
    paper, original = (recipe(name).optimizer for name in NAMES)
    assert (paper.steps, paper.wl2_steps) == (300_000, 0)
    assert (original.steps - original.wl2_steps, original.wl2_steps) == (50 * 10_000, 1 * 10_000)  # reference 5.3
    for ours in (paper, original):
        assert (ours.optimizer, ours.learning_rate, ours.schedule, ours.batch) == ("adam", 1e-4, "constant", 1)
        assert (ours.loss, ours.absent, ours.ema_decay, ours.clip_norm) == ("dice", "count", 0.0, None)
        assert (ours.precision, ours.accumulate, ours.warmup_steps) == ("float32", 1, 0)


def test_the_recipes_differ_where_the_presets_and_schedules_do_and_nowhere_else() -> None:
    paper, original = (flatten(recipe(name)) for name in NAMES)
    differing = {key for key in paper if paper[key] != original[key] and not key.startswith("generation.")}
    assert differing == {"optimizer.steps", "optimizer.wl2_steps", "output.name", "output.description"}


def test_toml_of_the_page_is_a_recipe(tmp_path: Path) -> None:
    blocks = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
    assert len(blocks) == 2
    lists = tmp_path / "labels_classes_priors"
    lists.mkdir()
    np.save(lists / "prior_means_t1.npy", np.array(PRESETS["t1"]().mixture.class_means).T)
    np.save(lists / "prior_stds_t1.npy", np.array(PRESETS["t1"]().mixture.class_stds).T)
    np.save(lists / "generation_classes_contrast_specific.npy", np.arange(25))
    made = [
        recipe_from_dict({"data": {"bank": "b.safetensors"}, **block}, where="parameters.md", folder=str(tmp_path))
        for block in blocks
    ]
    assert made[0].generation.mixture.class_means == PRESETS["t1"]().mixture.class_means
    assert len(made[0].generation.mixture.label_classes) == 25
    july = flatten(config_to_dict(made[1]))
    # Reference 10.2.
    assert (july["generation.mixture.mean_range"], july["generation.mixture.std_range"]) == ([25, 225], [5, 25])
    assert (july["generation.deformation.svf_max_std_mm"], july["generation.bias.max_std"]) == (3, 0.5)
    assert july["generation.intensity.gamma_std"] == 0.4
    assert july["optimizer.steps"] - july["optimizer.wl2_steps"] == 300 * 1000
