"""What a quality network predicts for clear images: measured, written into its card, and the measure of verdicts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chain_helpers import edit, make_yard
from inference_helpers import coarse_scan, run_scans
from outputs_helpers import GROUPS, cortex_model, quality_model
from synthseg.cohort.sidecars import _quality_columns
from synthseg.errors import ConfigError, WeightsError
from synthseg.inference import Segmenter, load_model, record
from synthseg.inference.quality import FAIL_BELOW, WARN_BELOW, Quality, own_limits
from synthseg.training.recipe import load_recipe
from synthseg.training.tasks import make_task
from synthseg.training.typical import calibrate_quality, clear
from synthseg.weights import build_network, load_weights, save_weights

CPU = torch.device("cpu")


@given(st.dictionaries(st.text(), st.floats(0, 1)))
def test_limits_are_shares_of_the_usual_and_never_above_the_published(typical: dict[str, float]) -> None:
    own = own_limits(typical)
    for name, value in typical.items():
        fail, warn = own.get(name, (FAIL_BELOW, WARN_BELOW))
        assert fail == pytest.approx(min(0.65, 0.8 * value), abs=1e-4)
        assert warn == pytest.approx(min(0.75, 0.9 * value), abs=1e-4)
    assert all(value < WARN_BELOW / 0.9 for name, value in typical.items() if name in own)


def test_each_group_is_held_against_its_own_limits() -> None:
    quality = Quality({"grey": 0.6, "white": 0.6, "csf": 0.7}, own={"grey": (0.4, 0.5), "csf": (0.6, 0.71)})
    assert quality.verdicts == {"grey": "pass", "white": "fail", "csf": "warn"}
    assert quality.verdict == "fail"
    assert quality.sentence == (
        "quality: fail: predicted Dice too low for white (0.60, limit 0.65): look at the result before using it"
    )
    doubtful = dataclasses.replace(quality, own={**quality.own, "white": (0.1, 0.61)})
    assert "too low for white (0.60, limit 0.61), csf (0.70, limit 0.71): look" in doubtful.sentence
    with pytest.raises(ValueError, match="not finite"):
        Quality({"a": 0.9}, own={"a": (float("nan"), 0.5)})


def test_limits_are_in_the_record_the_settings_and_the_sidecar(tmp_path: Path) -> None:
    scores = [0.6] * len(GROUPS)
    scorer = dataclasses.replace(quality_model(*scores), typical={GROUPS[0]: 0.7, GROUPS[1]: 0.62})
    scan = coarse_scan(tmp_path / "a.nii.gz")
    segmenter = Segmenter(cortex_model(), "fast", quality=scorer)
    outcome = run_scans(segmenter, [scan], tmp_path / "out").outcomes[0]
    kept = json.loads((tmp_path / "out" / "a_synthseg.json").read_text())
    limits = {GROUPS[0]: [0.56, 0.63], GROUPS[1]: [0.496, 0.558]}
    assert kept["quality"]["thresholds"] == {"fail_below": 0.65, "warn_below": 0.75, "groups": limits}
    assert kept["settings"]["quality"] == kept["quality"]["thresholds"]
    assert list(kept["quality"]["verdicts"].values())[:3] == ["warn", "pass", "fail"]
    assert record.recorded_quality(kept) == outcome.quality
    levels = _quality_columns(kept["quality"])["verdict"]["Levels"]
    assert levels["fail"] == f"below 0.65; {GROUPS[0]}: 0.56; {GROUPS[1]}: 0.496"
    other = Segmenter(cortex_model(), "fast", quality=quality_model(*scores))  # other limits: done again
    assert run_scans(other, [scan], tmp_path / "out").outcomes[0].status == "done"


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps, a recipe of a quality network with random structures to score, and random weights of it in halves."""
    folder = make_yard(tmp_path_factory.mktemp("yard"))
    for kind in ("structures", "quality"):
        path = folder / "parts" / f"{kind}.toml"
        if kind == "quality":
            edit(path, "[data]", '[task.weights]\nstructures = "structures.safetensors"\n[data]')
        task = make_task(load_recipe(path), CPU)
        torch.manual_seed(5)
        state = task.build_network().state_dict()
        save_weights(path.with_suffix(".safetensors"), state, task.card({"steps": 1}), half=kind == "quality")
    return folder


def calibrated(yard: Path, out: Path, **options: Any) -> dict[str, Any]:
    parts = yard / "parts"
    given: dict[str, Any] = {"recipe": parts / "quality.toml", "images": 5, "seed": 4, **options}
    return calibrate_quality(parts / "quality.safetensors", yard / "maps.safetensors", out, **given)


def test_the_card_says_the_median_of_what_is_predicted_for_clear_images(yard: Path, tmp_path: Path) -> None:
    heard = []
    card = calibrated(yard, tmp_path / "q.safetensors", told=lambda *numbers: heard.append(numbers))
    assert heard == [(n, 5) for n in range(1, 6)]

    recipe = load_recipe(yard / "parts" / "quality.toml")
    recipe = dataclasses.replace(
        recipe,
        generation=clear(recipe.generation),
        task=dataclasses.replace(recipe.task, cut_probability=0.0),
        optimizer=dataclasses.replace(recipe.optimizer, seed=4),
    )
    task = make_task(recipe, CPU)
    network = build_network(load_weights(yard / "parts" / "quality.safetensors")).eval()
    rows = []
    with torch.no_grad():
        for element in range(5):
            batch = task.batch(0, [element])
            rows.append(network(batch.input)[0].clamp(0, 1).numpy())
    told = card["typical_quality"]["scores"]
    np.testing.assert_allclose(list(told.values()), np.median(rows, axis=0)[1:], atol=1e-4)

    before = load_weights(yard / "parts" / "quality.safetensors")
    after = load_weights(tmp_path / "q.safetensors")
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())
    assert (tmp_path / "q.safetensors").stat().st_size < 1.2 * (yard / "parts" / "quality.safetensors").stat().st_size
    assert load_model(tmp_path / "q.safetensors", role="quality").typical == told


def test_clear_images_are_not_blurred_noisy_or_cut(yard: Path) -> None:
    generation = clear(load_recipe(yard / "parts" / "quality.toml").generation)
    assert generation.acquisition.native_probability == 1
    assert generation.noise.probability == generation.ghosts.probability == 0
    assert generation.surroundings.cut_probability == 0


def test_what_does_not_fit_is_refused(yard: Path, tmp_path: Path) -> None:
    parts, out = yard / "parts", tmp_path / "q.safetensors"
    with pytest.raises(ConfigError, match=r"tissues\.toml: found a task of kind tissues.*quality\.toml"):
        calibrated(yard, out, recipe=parts / "tissues.toml")
    with pytest.raises(WeightsError, match=r"the suffix '\.h5'"):
        calibrated(yard, tmp_path / "q.h5")
    with pytest.raises(WeightsError, match="structures"):
        calibrate_quality(
            parts / "structures.safetensors", yard / "maps.safetensors", out, recipe=parts / "quality.toml"
        )
    assert not out.exists()


@pytest.mark.parametrize("told", [{"scores": {"ear": 0.5}}, {"scores": {"cerebellum": 2}}, {"scores": [1]}, 7])
def test_a_card_that_says_something_else_is_refused(yard: Path, tmp_path: Path, told: object) -> None:
    weights = load_weights(yard / "parts" / "quality.safetensors")
    save_weights(tmp_path / "odd.safetensors", weights.tensors, {**weights.card, "typical_quality": told})
    with pytest.raises(WeightsError, match=r"typical_quality = .*not a Dice for each group.*calibrate --quality"):
        load_model(tmp_path / "odd.safetensors", role="quality")


def test_the_command(yard: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    words = [
        "weights",
        "calibrate",
        yard / "parts" / "quality.safetensors",
        "--quality",
        "--bank",
        yard / "maps.safetensors",
    ]
    out = tmp_path / "q.safetensors"
    code, said, _ = command(*words, "-o", out, "--recipe", yard / "parts" / "quality.toml", "-n", 2)
    assert code == 0
    assert "toy-quality predicts for clear images" in said
    assert "cerebellum: 0." in said
    code, _, err = command(*words, "-o", out)
    assert code == 2
    assert "--recipe: found none with --quality" in err
    code, _, err = command(*words, "-o", out, "--temperature")
    assert code == 2
    assert "--temperature as well" in err
