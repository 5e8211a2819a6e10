"""With every optional stage off, seeds give the draws and pairs they gave before there were any."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from generation_helpers import pull_back, seeded, small_bank
from synthseg.errors import TrainingError
from synthseg.generation import PRESETS, GenerationConfig, GenerativeModel, PairDraw
from synthseg.generation.acquisition import apply_acquisition, draw_acquisition
from synthseg.generation.anatomy import draw_anatomy, edit_labels, map_center, sample_labels
from synthseg.generation.config import (
    ClustersPrior,
    FieldOfViewPrior,
    GhostsPrior,
    InflationPrior,
    MorphologyPrior,
    NoisePrior,
    PartialVolumePrior,
    SurroundingsPrior,
)
from synthseg.generation.deformation import displacement_field, draw_deformation
from synthseg.generation.draws import OPTIONAL, Off
from synthseg.generation.intensity import (
    apply_bias,
    apply_gamma,
    draw_bias,
    draw_gamma,
    draw_mixture,
    sample_mixture,
    stretch_percentiles,
)

BANK = small_bank()
ON = {
    "partial_volume": PartialVolumePrior(positions=2),
    "clusters": ClustersPrior(probability=1),
    "morphology": MorphologyPrior(probability=1, size_range=(0.9, 1.1)),
    "surroundings": SurroundingsPrior(drop_probability=1, cut_probability=1, void_probability=1, patch_probability=1),
    "field_of_view": FieldOfViewPrior(probability=1),
    "noise": NoisePrior(probability=1),
    "ghosts": GhostsPrior(probability=1),
    "inflation": InflationPrior(probability=1),
}

# Made by the code before the optional stages (commit d075bcb, on a CPU): the mean of each tensor of a draw and of
# its pair, elements weighted from 0.5 to 1.5 so that their order counts. Not digests, since the last bits of normal
# numbers differ between processors.
GOLDEN: dict[str, dict[str, float]] = {
    "paper": {
        "anatomy.map_index": 0.5,
        "anatomy.donor_index": 1,
        "anatomy.corner_mm": -13.3611,
        "anatomy.flip": 0.166667,
        "anatomy.strip": 0,
        "anatomy.strip_csf": 0.5,
        "anatomy.lesions": 0,
        "anatomy.paste": 1,
        "deformation.affine": 0.323959,
        "deformation.translation_mm": 0,
        "deformation.velocity_mm": 0.0189223,
        "mixture.means": 120.857,
        "mixture.stds": 19.269,
        "mixture.noise": 0.0147336,
        "bias.log_gain": -0.0578971,
        "gamma.log_gamma": -0.488684,
        "acquisition.spacing_mm": 3.40019,
        "acquisition.thickness_mm": 2.68711,
        "acquisition.jitter": 1.00023,
        "image": 0.356689,
        "target": 2.10583,
    },
    "original": {
        "anatomy.map_index": 0.5,
        "anatomy.donor_index": 1,
        "anatomy.corner_mm": -13.3611,
        "anatomy.flip": 0.166667,
        "anatomy.strip": 0,
        "anatomy.strip_csf": 0.5,
        "anatomy.lesions": 1,
        "anatomy.paste": 0,
        "deformation.affine": 0.323959,
        "deformation.translation_mm": 0,
        "deformation.velocity_mm": 0.0189223,
        "mixture.means": 118.488,
        "mixture.stds": 16.5163,
        "mixture.noise": 0.0147336,
        "bias.log_gain": -0.0578971,
        "gamma.log_gamma": -0.488684,
        "acquisition.spacing_mm": 3.29033,
        "acquisition.thickness_mm": 2.83332,
        "acquisition.jitter": 1.00023,
        "image": 0.328096,
        "target": 2.0988,
    },
    "t1": {
        "anatomy.map_index": 0.5,
        "anatomy.donor_index": 1,
        "anatomy.corner_mm": -13.3611,
        "anatomy.flip": 0.166667,
        "anatomy.strip": 0,
        "anatomy.strip_csf": 0.5,
        "anatomy.lesions": 0,
        "anatomy.paste": 1,
        "deformation.affine": 0.323959,
        "deformation.translation_mm": 0,
        "deformation.velocity_mm": 0.0189223,
        "mixture.means": 94.314,
        "mixture.stds": 31.3976,
        "mixture.noise": 0.00639993,
        "bias.log_gain": 0.112249,
        "gamma.log_gamma": -0.399877,
        "acquisition.spacing_mm": 3.31626,
        "acquisition.thickness_mm": 2.62551,
        "acquisition.jitter": 1.0101,
        "image": 0.230644,
        "target": 2.10583,
    },
}


def small(preset: str) -> GenerationConfig:
    """A preset on a small grid."""
    config = PRESETS[preset]()
    return dataclasses.replace(
        config,
        grid=dataclasses.replace(config.grid, shape=(12, 14, 16), spacing_mm=2.0, focus="brain", jitter_mm=4.0),
        deformation=dataclasses.replace(config.deformation, svf_node_mm=8.0),
        intensity=dataclasses.replace(config.intensity, final_percentiles=(1.0, 99.0)),
    )


def weighted_mean(tensor: torch.Tensor) -> float:
    weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=torch.float64)
    return float((tensor.double().flatten() * weights).mean())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_every_option_off(preset: str) -> None:
    assert tuple(ON) == OPTIONAL
    for name in OPTIONAL:
        assert not getattr(PRESETS[preset](), name).enabled
    draw = GenerativeModel(small(preset), BANK).draw(1, rng=seeded(0))
    assert all(isinstance(getattr(draw, name), Off) for name in OPTIONAL)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_seed_gives_the_numbers_it_gave_before_the_options(preset: str) -> None:
    model = GenerativeModel(small(preset), BANK)
    draw = model.draw(3, rng=seeded(7))
    tensors = {f"{name}.{key}": t for name, stage in draw._asdict().items() for key, t in stage._asdict().items()}
    found = {key: weighted_mean(t) for key, t in {**tensors, **model.apply(draw)._asdict()}.items()}
    assert found == pytest.approx(GOLDEN[preset], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_draws_and_pairs_are_the_papers_stages_one_after_the_other(preset: str) -> None:
    config, grid, rng = small(preset), small(preset).grid, seeded(7)
    model = GenerativeModel(config, BANK)
    anatomy = draw_anatomy(config.anatomy, grid, BANK, model.map_weights, 3, rng=rng)
    by_hand = PairDraw(
        anatomy,
        draw_deformation(config.deformation, grid, 3, rng=rng),
        draw_mixture(config.mixture, model.left_class, grid, anatomy.strip, rng=rng),
        draw_bias(config.bias, grid, 3, rng=rng),
        draw_gamma(config.intensity, 3, rng=rng),
        draw_acquisition(config.acquisition, grid, 3, rng=rng),
    )
    used = seeded(7)
    draw = model.draw(3, rng=used)
    for stage, same in zip(draw, by_hand, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(stage, same, strict=True))
    assert torch.equal(rng.get_state(), used.get_state()), "something more was drawn"

    field = displacement_field(draw.deformation, config.deformation, grid)
    where = pull_back(draw.deformation, field, anatomy.corner_mm, grid)
    own, donor = (
        sample_labels(BANK, chosen, where, map_center(BANK, chosen, grid))
        for chosen in (anatomy.map_index, anatomy.donor_index)
    )
    lesions = model.tables.lesion[donor.long()] & bool(config.anatomy.lesion_paste_probability)
    labels = edit_labels(own, lesions, anatomy, model.tables)
    image = sample_mixture(model.classes[labels], draw.mixture.means, draw.mixture.stds, draw.mixture.noise)
    image = apply_gamma(apply_bias(image, draw.bias), draw.gamma, clip_max=config.intensity.clip_max)
    image = apply_acquisition(image, draw.acquisition, config.acquisition, grid)
    pair = model.apply(draw)
    # Positions are summed in another order: a voxel half-way between two of the map may take the other one.
    assert (pair.target != model.tables.target_channel[labels]).float().mean() < 1e-3
    assert (pair.image - stretch_percentiles(image, (1.0, 99.0))).abs().mean() < 1e-4


@pytest.mark.parametrize("stage", ON)
def test_switching_a_stage_on_leaves_what_the_others_draw(stage: str) -> None:
    plain = GenerativeModel(small("paper"), BANK).draw(2, rng=seeded(3))
    other = GenerativeModel(dataclasses.replace(small("paper"), **{stage: ON[stage]}), BANK).draw(2, rng=seeded(3))
    for name in plain._fields[:6]:
        assert all(torch.equal(a, b) for a, b in zip(getattr(plain, name), getattr(other, name), strict=True))
    assert [name for name in OPTIONAL if not isinstance(getattr(other, name), Off)] == [stage]


# Recorded draws


def test_a_draw_saved_before_the_options_replays(tmp_path: Path) -> None:
    # Such a file has the six stages' tensors only; its origin knows no keys of the others.
    model = GenerativeModel(small("paper"), BANK)
    draw = model.draw(1, rng=seeded(1))
    path = tmp_path / "draw.safetensors"
    draw.save(path, origin=model.origin)
    assert {name.partition(".")[0] for name in load_file(path)} == set(draw._fields[:6])
    assert torch.equal(model.apply(PairDraw.load(path)).image, model.apply(draw).image)


@pytest.mark.parametrize("stage", ON)
def test_draws_with_a_stage_are_saved_cut_and_joined_like_any_other(stage: str, tmp_path: Path) -> None:
    model = GenerativeModel(dataclasses.replace(small("paper"), **{stage: ON[stage]}), BANK)
    draw = model.draw(3, rng=seeded(5))
    draw.save(tmp_path / "draw.safetensors", origin=model.origin)
    read = PairDraw.load(tmp_path / "draw.safetensors")
    assert isinstance(getattr(read, stage), type(getattr(draw, stage)))
    made, again = model.apply(draw), model.apply(read)
    assert torch.equal(made.image, again.image)
    assert torch.equal(made.target, again.target)
    for i in range(3):
        alone = model.apply(draw.element(i))
        assert (alone.target[0] == made.target[i]).float().mean() > 0.999
        assert torch.isclose(alone.image[0], made.image[i], rtol=0, atol=1e-3).float().mean() > 0.999
    assert torch.equal(model.apply(PairDraw.join([draw.element(i) for i in range(3)])).target, made.target)


@pytest.mark.parametrize("stage", ON)
def test_a_stage_that_is_on_here_and_off_there_is_refused_by_name(stage: str) -> None:
    plain = GenerativeModel(small("paper"), BANK)
    other = GenerativeModel(dataclasses.replace(small("paper"), **{stage: ON[stage]}), BANK)
    with pytest.raises(
        TrainingError, match=rf"draw: found no {stage} in the draw\. Fix: give the \[generation\.{stage}\]"
    ):
        other.apply(plain.draw(1, rng=seeded(0)))
    with pytest.raises(TrainingError, match=rf"draw: found {stage}, which is off here\."):
        plain.apply(other.draw(1, rng=seeded(0)))


def test_a_stage_with_a_tensor_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "draw.safetensors"
    GenerativeModel(dataclasses.replace(small("paper"), **ON), BANK).draw(1, rng=seeded(0)).save(path)
    tensors = load_file(path)
    del tensors["ghosts.axis"]
    save_file(tensors, path, metadata={"draw": json.dumps({})})
    with pytest.raises(TrainingError, match=r"draw\.safetensors: found no tensor 'ghosts\.axis'"):
        PairDraw.load(path)


def test_all_stages_together_give_images_in_0_to_1_and_known_targets() -> None:
    model = GenerativeModel(dataclasses.replace(small("paper"), **ON), BANK)
    for seed in range(5):
        pair = model.sample(4, rng=seeded(seed))
        assert pair.image.isfinite().all()
        assert 0 <= pair.image.min() <= pair.image.max() <= 1 + 1e-5
        assert 0 <= pair.target.min() <= pair.target.max() < len(BANK.protocol.target_values)
        assert pair.target.dtype == torch.int64
