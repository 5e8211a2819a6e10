"""The generative model as a whole: zero strength, replay, batches, and no value out of bounds whatever the config."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from generation_helpers import PROTOCOL, seeded, small_bank, still
from synthseg.errors import TrainingError
from synthseg.generation import GenerationConfig, GenerativeModel, PairDraw, original, paper
from synthseg.generation.config import (
    AcquisitionPrior,
    AnatomyPrior,
    BiasPrior,
    DeformationPrior,
    GridPrior,
    IntensityPrior,
    MixturePrior,
)

BANK = small_bank()
SMALL = GridPrior(shape=(16, 18, 20), focus="brain", jitter_mm=4.0)
NODES = {"svf_node_mm": 8.0}  # a few nodes in a map of 24 mm


def busy(preset: str = "paper") -> GenerationConfig:
    """A preset on a small grid, with everything a preset may leave out."""
    config = {"paper": paper, "original": original}[preset]()
    return dataclasses.replace(
        config,
        grid=SMALL,
        deformation=dataclasses.replace(config.deformation, translation_mm=2.0, **NODES),  # type: ignore[arg-type]
        mixture=dataclasses.replace(config.mixture, symmetric_probability=0.5, stripped_dark_probability=0.5),
        intensity=dataclasses.replace(config.intensity, final_percentiles=(1.0, 99.0)),
    )


def assert_same_draw(one: PairDraw, other: PairDraw) -> None:
    for name, stage, same in zip(one._fields, one, other, strict=True):
        for key, a, b in zip(stage._fields, stage, same, strict=True):
            assert a.dtype == b.dtype, (name, key)
            assert torch.equal(a, b), (name, key)


# Zero strength


def test_zero_strength_is_the_identity_from_map_to_pair() -> None:
    # Not a stage moves anything: the labels are the map's crop and the image its classes' means, rescaled.
    config = still((16, 18, 20))
    model = GenerativeModel(config, BANK)
    draw = model.draw(3, rng=seeded(0))
    pair = model.apply(draw)
    for i in range(3):
        n = int(draw.anatomy.map_index[i])
        x, y, z = (draw.anatomy.corner_mm[i] + (BANK.shapes[n] - 1) / 2).round().long().tolist()
        crop = BANK.label_map(n)[x : x + 16, y : y + 18, z : z + 20].long()
        means = draw.mixture.means[i, torch.as_tensor(PROTOCOL.generation_classes)[crop]]
        unit = (means - means.min()) / (means.max() - means.min())
        torch.testing.assert_close(pair.image[i, 0], unit)
        assert torch.equal(pair.target[i], torch.as_tensor(PROTOCOL.target_channel)[crop])


@pytest.mark.parametrize(
    ("stage", "strength"),
    [
        ("deformation", DeformationPrior(**NODES)),  # type: ignore[arg-type]
        (
            "anatomy",
            AnatomyPrior(flip_probability=1, strip_probability=0, lesion_probability=1, lesion_paste_probability=0),
        ),
        (
            "anatomy",
            AnatomyPrior(flip_probability=0, strip_probability=1, lesion_probability=1, lesion_paste_probability=0),
        ),
        ("anatomy", AnatomyPrior(flip_probability=0, strip_probability=0, lesion_probability=0)),
        ("mixture", MixturePrior(background_zero_probability=0, background_dark_probability=0)),
        ("bias", BiasPrior()),
        ("intensity", IntensityPrior()),
        ("acquisition", AcquisitionPrior()),
    ],
)
def test_each_stage_alone_changes_the_pair(stage: str, strength: object) -> None:
    # Without this the test above could pass with a stage that does nothing.
    still_model = GenerativeModel(still(), BANK)
    moved_model = GenerativeModel(still(**{stage: strength}), BANK)
    draw, moved_draw = still_model.draw(1, rng=seeded(1)), moved_model.draw(1, rng=seeded(1))
    own = {"deformation": 1, "anatomy": 0, "mixture": 2, "bias": 3, "intensity": 4, "acquisition": 5}[stage]
    mixed = PairDraw(*(moved_draw[i] if i == own else draw[i] for i in range(6)))
    before, after = still_model.apply(draw), moved_model.apply(mixed)
    assert not torch.allclose(before.image, after.image, atol=1e-3)
    moves_labels = stage == "deformation" or (isinstance(strength, AnatomyPrior) and strength.flip_probability == 1)
    assert torch.equal(before.target, after.target) is not moves_labels


# Draws as data


@pytest.mark.parametrize("preset", ["paper", "original"])
def test_a_batch_equals_its_elements_made_alone(preset: str) -> None:
    model = GenerativeModel(busy(preset), BANK)
    draws = [model.draw(1, rng=seeded(seed)) for seed in range(5)]
    together = model.apply(PairDraw.join(draws))
    for i, draw in enumerate(draws):
        alone = model.apply(draw)
        # Measured: equal to the last bit. Other machines may add products of another batch size in another order.
        assert (together.target[i] == alone.target[0]).float().mean() > 0.9995
        if torch.equal(together.target[i], alone.target[0]):
            close = torch.isclose(together.image[i], alone.image[0], rtol=0, atol=1e-4)
            assert close.float().mean() > 0.999


def test_elements_and_join_are_inverse() -> None:
    model = GenerativeModel(busy(), BANK)
    draw = model.draw(4, rng=seeded(2))
    assert_same_draw(PairDraw.join([draw.element(i) for i in range(4)]), draw)
    assert_same_draw(draw.element(-1), draw.element(3))
    with pytest.raises(IndexError):
        draw.element(4)


def test_a_saved_draw_replays_exactly(tmp_path: Path) -> None:
    model = GenerativeModel(busy(), BANK)
    draw = model.draw(2, rng=seeded(3))
    made = model.apply(draw)
    draw.save(tmp_path / "draw.safetensors")
    replayed = PairDraw.load(tmp_path / "draw.safetensors")
    assert_same_draw(replayed, draw)
    again = GenerativeModel(busy(), BANK).apply(replayed)
    assert torch.equal(made.image, again.image)
    assert torch.equal(made.target, again.target)


def test_a_file_that_is_no_draw_is_named(tmp_path: Path) -> None:
    path = tmp_path / "draw.safetensors"
    with pytest.raises(TrainingError, match=r"draw\.safetensors: found no such file.*PairDraw\.save"):
        PairDraw.load(path)
    path.write_bytes(b"not a draw at all")
    with pytest.raises(TrainingError, match=r"draw\.safetensors: found no readable file"):
        PairDraw.load(path)
    model = GenerativeModel(busy(), BANK)
    model.draw(1, rng=seeded(0)).save(path)
    tensors = load_file(path)
    del tensors["bias.log_gain"]
    save_file(tensors, path)
    with pytest.raises(TrainingError, match=r"draw\.safetensors: found no tensor 'bias\.log_gain'"):
        PairDraw.load(path)


def test_sampling_is_drawing_and_applying() -> None:
    model = GenerativeModel(busy(), BANK)
    sampled, made = model.sample(2, rng=seeded(4)), model.apply(model.draw(2, rng=seeded(4)))
    assert torch.equal(sampled.image, made.image)
    assert torch.equal(sampled.target, made.target)


def test_generation_leaves_the_bank_the_draw_and_global_randomness_alone() -> None:
    bank = small_bank()
    model = GenerativeModel(busy(), bank)
    before = {name: getattr(bank, name).clone() for name in ("voxels", "shapes", "offsets", "spacing_mm", "center_vox")}
    state = torch.get_rng_state()
    draw = model.draw(3, rng=seeded(5))
    copy = draw._map(torch.clone)
    model.apply(draw)
    assert_same_draw(draw, copy)
    assert all(torch.equal(getattr(bank, name), tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pair_has_the_promised_types_and_no_gradient() -> None:
    pair = GenerativeModel(busy(), BANK).sample(2, rng=seeded(6))
    assert pair.image.shape == (2, 1, 16, 18, 20)
    assert pair.target.shape == (2, 16, 18, 20)
    assert (pair.image.dtype, pair.target.dtype) == (torch.float32, torch.int64)
    assert not pair.image.requires_grad
    assert 0 <= int(pair.target.min()) <= int(pair.target.max()) < len(PROTOCOL.target_values)


def test_contrast_classes_give_partners_one_gaussian_and_random_classes_two() -> None:
    contrast = GenerativeModel(still(mixture=MixturePrior(classes="contrast")), BANK)
    random = GenerativeModel(still(), BANK)
    left, right = PROTOCOL.index_of(np.array([10, 49])).tolist()
    assert contrast.classes[left] == contrast.classes[right]
    assert random.classes[left] != random.classes[right]
    assert random.left_class[random.classes[right]] == random.classes[left]
    assert len(contrast.left_class) == 25
    assert len(random.left_class) == 48  # reference 11.1


# Any config


def unit() -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, 0.5, 1.0])


CONFIGS = st.builds(
    GenerationConfig,
    grid=st.builds(
        GridPrior,
        shape=st.tuples(*[st.integers(8, 13)] * 3),
        spacing_mm=st.sampled_from([0.7, 1.0, 2.0]),
        focus=st.sampled_from(["map", "brain"]),
        jitter_mm=st.floats(0, 60),
    ),
    deformation=st.builds(
        DeformationPrior,
        scaling=st.floats(0, 0.9),
        rotation_deg=st.floats(0, 180),
        shearing=st.floats(0, 0.4),
        translation_mm=st.floats(0, 50),
        svf_max_std_mm=st.floats(0, 30),
        svf_node_mm=st.floats(2, 100),
        svf_step_mm=st.floats(1, 20),
        svf_gain=st.floats(0.5, 4),
        squarings=st.integers(1, 9),
    ),
    anatomy=st.builds(
        AnatomyPrior,
        flip_probability=unit(),
        strip_probability=unit(),
        strip_csf_probability=unit(),
        lesion_probability=unit(),
        lesion_paste_probability=unit(),
    ),
    mixture=st.builds(
        MixturePrior,
        mean_range=st.sampled_from([(0.0, 0.0), (0.0, 255.0), (200.0, 200.0)]),
        std_range=st.sampled_from([(0.0, 0.0), (0.0, 35.0), (0.0, 500.0)]),
        symmetric_probability=unit(),
        stripped_dark_probability=unit(),
        background_zero_probability=st.sampled_from([0.0, 0.5]),
        background_dark_probability=st.sampled_from([0.0, 0.5]),
    ),
    bias=st.builds(BiasPrior, max_std=st.floats(0, 5), node_mm=st.floats(1, 100), probability=unit()),
    intensity=st.builds(
        IntensityPrior,
        clip_max=st.sampled_from([None, 1.0, 300.0]),
        gamma_std=st.floats(0, 5),
        final_percentiles=st.sampled_from([None, (0.0, 100.0), (1.0, 99.0), (49.0, 50.0)]),
    ),
    acquisition=st.builds(
        AcquisitionPrior,
        max_spacing_mm=st.floats(0.5, 30),
        max_isotropic_mm=st.floats(0.5, 30),
        isotropic_probability=st.sampled_from([0.0, 0.5]),
        native_probability=st.sampled_from([0.0, 0.5]),
        sigma_factor=st.floats(0, 2),
        native_sigma_vox=st.floats(0, 2),
        jitter=st.floats(0, 1),
        downsampling=st.sampled_from(["linear", "nearest"]),
    ),
)


@given(config=CONFIGS, seed=st.integers(0, 2**31))
@settings(max_examples=200)
def test_images_lie_in_0_to_1_and_targets_among_the_channels_for_any_config(
    config: GenerationConfig, seed: int
) -> None:
    pair = GenerativeModel(config, BANK).sample(2, rng=seeded(seed))
    assert pair.image.shape == (2, 1, *config.grid.shape)
    assert pair.image.isfinite().all()
    assert pair.image.min() >= 0
    assert pair.image.max() <= 1 + 1e-5  # rows of the slice matrices sum to 1 within rounding
    assert pair.target.min() >= 0
    assert pair.target.max() < len(PROTOCOL.target_values)


def test_many_seeds_of_the_presets_give_finite_images() -> None:
    for preset in ("paper", "original"):
        config = dataclasses.replace(busy(preset), grid=dataclasses.replace(SMALL, shape=(8, 8, 8)))
        model = GenerativeModel(config, BANK)
        for seed in range(40):
            image = model.sample(4, rng=seeded(seed)).image
            assert image.isfinite().all()
            assert 0 <= image.min() <= image.max() <= 1
