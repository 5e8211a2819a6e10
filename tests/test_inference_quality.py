"""Quality control: what the network is shown, and what its scores mean."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plus_helpers import (
    EXACT,
    QUALITY,
    STRUCTURES,
    VALUES,
    Means,
    hierarchy_models,
    painted,
    parcels_model,
    quality_model,
    scan_of,
    structures_model,
)
from synthseg.errors import InvariantError
from synthseg.inference import Model, Quality, Segmenter
from synthseg.inference.quality import QualityInputs, predict_quality, quality_window, window_sides
from synthseg.networks import Encoder, EncoderConfig

CHANNELS = structures_model().channels
GROUP = np.array([STRUCTURES.by_value(int(value)).quality for value in VALUES])


# -- verdicts


def test_the_worst_group_decides():
    good = Quality({"a": 0.9, "b": 0.78, "c": 1.0})
    assert good.verdicts == {"a": "pass", "b": "pass", "c": "pass"}
    assert good.sentence == "quality: pass (lowest predicted Dice 0.78, b)"
    doubtful = Quality({"a": 0.9, "b": 0.74, "c": 0.65})
    assert (doubtful.verdict, doubtful.verdicts["c"]) == ("warn", "warn")
    assert doubtful.sentence == (
        "quality: warn: predicted Dice too low for c (0.65, limit 0.75), b (0.74, limit 0.75): "
        "look at the result before using it"
    )
    failed = Quality({"thalamus": 0.41, "b": 0.74, "c": 0.6})
    assert failed.verdict == "fail"
    assert failed.sentence == (
        "quality: fail: predicted Dice too low for thalamus (0.41, limit 0.65), c (0.60, limit 0.65): "
        "look at the result before using it"
    )


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=1))
def test_verdicts_follow_the_thresholds(scores):
    quality = Quality(scores)
    for name, score in scores.items():
        assert quality.verdicts[name] == ("fail" if score < 0.65 else "warn" if score < 0.75 else "pass")
    order = ["pass", "warn", "fail"]
    assert quality.verdict == max(quality.verdicts.values(), key=order.index)
    assert quality.sentence.startswith(f"quality: {quality.verdict}")


# -- the window


def test_the_window_is_that_of_the_reference_but_on_labels():
    labels = np.zeros((32, 32, 32), np.int64)  # reference 11.7, where channel 24 is left out, and here channel 16: csf
    labels[4:8, 4:8, 4:8], labels[20:30, 20:30, 20:30] = 16, 24
    window = quality_window(labels, VALUES, (16, 16, 16))
    inside = window.crop(labels)
    assert ((inside == 24).sum(), (inside == 16).sum()) == (1000, 0)

    box = np.zeros((32, 32, 32), np.int64)
    box[2:9, 10:20, :] = 1
    occupied = np.argwhere(quality_window(box, VALUES, (16, 16, 16)).crop(box))
    assert occupied.min(0).tolist() == [5, 3, 0]
    assert occupied.max(0).tolist() == [11, 12, 15]

    corner = np.zeros((32, 32, 32), np.int64)
    corner[0, 0, 0] = 1
    assert np.argwhere(quality_window(corner, VALUES, (16, 16, 16)).crop(corner)).tolist() == [[8, 8, 8]]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(1, 20)), min_size=3, max_size=3), st.integers(1, 40))
def test_the_window_begins_and_ends_where_the_reference_says(axes, side):
    labels = np.zeros((20, 20, 20), np.int64)
    ends = [(low, min(low + extent, 20)) for low, extent in axes]
    labels[tuple(slice(*end) for end in ends)] = 1
    window = quality_window(labels, VALUES, (side, side, side))
    for start, (low, high) in zip(window.start, ends, strict=True):
        assert start == low - math.ceil((side - (high - low)) / 2)  # reference 6.4
        assert start + side == high + math.floor((side - (high - low)) / 2)


def test_the_windows_sides_are_the_fields_in_voxels_the_network_accepts():
    model = replace(quality_model(), field_of_view_mm=(160.0, 192.0, 161.0), spacing_mm=2.0, multiple=8)
    assert window_sides(model, (99, 99, 99)) == (80, 96, 80)
    assert window_sides(replace(model, field_of_view_mm=None), (17, 16, 1)) == (24, 16, 8)


# -- what the network sees


def random_posteriors(shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    return torch.softmax(4 * torch.randn(33, *shape, generator=torch.Generator().manual_seed(seed)), 0)


def scored(model: Model, posteriors: torch.Tensor) -> Quality:
    """The quality of posteriors [C, X, Y, Z] that come in two slabs."""
    inputs = QualityInputs(model, CHANNELS, tuple(posteriors.shape[1:]))
    middle = posteriors.shape[1] // 2
    for start, slab in ((0, posteriors[:, :middle]), (middle, posteriors[:, middle:])):
        inputs.add(start, slab.permute(1, 2, 3, 0))
    return predict_quality(inputs, EXACT)


@pytest.mark.parametrize("soft", [False, True])
def test_the_network_sees_the_groups_around_the_brain_and_background_elsewhere(soft):
    labels = painted((40, 40, 16))
    index = torch.from_numpy(np.searchsorted(VALUES, labels))
    posteriors = random_posteriors((40, 40, 16)) * 0.3
    posteriors.scatter_add_(0, index[None], torch.full((1, 40, 40, 16), 0.7))
    assert torch.equal(posteriors.argmax(0), index)
    network = Means()
    scored(quality_model(network, soft=soft, side_mm=48.0), posteriors)
    (seen,) = network.seen
    assert seen.shape == (1, 9, 48, 48, 48)
    torch.testing.assert_close(seen.sum(1), torch.ones(1, 48, 48, 48))
    brain = np.argwhere(~np.isin(labels, (0, 24)))
    start = [
        int(low) - math.ceil((48 - (high + 1 - low)) / 2) for low, high in zip(brain.min(0), brain.max(0), strict=True)
    ]
    for x, y, z in ((10, 20, 8), (30, 35, 3), (20, 25, 5), (0, 0, 0), (20, 8, 7)):
        place = (x - start[0], y - start[1], z - start[2])
        shown = seen[(0, slice(None), *place)]
        expected = torch.zeros(9)
        if soft:
            for channel in range(33):
                expected[GROUP[channel]] += posteriors[channel, x, y, z]
        else:
            expected[GROUP[index[x, y, z]]] = 1  # 0.7 of the posterior, so the group's too
        torch.testing.assert_close(shown, expected)
    assert torch.equal(seen[0, :, :, :, 0], torch.eye(9)[0][:, None, None].expand(9, 48, 48))  # beyond the scan


def test_scores_are_clipped_and_background_is_not_among_them():
    posteriors = random_posteriors((16, 16, 16))
    high = scored(quality_model(Means(0, 1.7)), posteriors)
    low = scored(quality_model(Means(0, -0.2)), posteriors)
    assert list(high.scores) == list(QUALITY.names[1:])
    assert set(high.scores.values()) == {1.0}
    assert set(low.scores.values()) == {0.0}
    assert scored(quality_model(Means(0, 0.5)), posteriors).verdict == "fail"


def test_an_encoder_that_starts_from_the_expected_dice_says_it_of_the_posteriors():
    shape = (24, 24, 24)
    posteriors = random_posteriors(shape, seed=2)
    encoder = Encoder(EncoderConfig(features=2, levels=2, kernel=3, expected_dice=True))
    model = Model.from_network(
        encoder, QUALITY, role="quality", spacing_mm=1.0, soft_inputs=True, field_of_view_mm=(40.0, 40.0, 40.0)
    )
    result = scored(model, posteriors)
    grouped = np.stack([posteriors.numpy()[g == GROUP].sum(0) for g in range(9)])  # the last layer is still zero
    hard = grouped.argmax(0)
    for g, name in enumerate(QUALITY.names[1:], start=1):
        p, h = grouped[g].astype(float), hard == g
        assert result.scores[name] == pytest.approx(2 * (p * h).sum() / (p.sum() + h.sum()), abs=1e-5)


def test_a_score_that_is_not_a_number_is_stopped():
    model = quality_model(Means(offset=float("nan")))
    with pytest.raises(InvariantError, match="an output of quality that is not a number"):
        scored(model, random_posteriors((8, 8, 8)))


# -- in the pipeline


def test_everything_asked_for_at_once_shares_one_pass_and_changes_nothing():
    structures, network = structures_model(), Means(offset=0.7)
    scan = scan_of(painted())
    alone = Segmenter(structures, config=EXACT).segment(scan)
    structures.network.seen.clear()
    segmenter = Segmenter(structures, config=EXACT, parcels=parcels_model(), quality=quality_model(network))
    result = segmenter.segment(scan)
    assert len(structures.network.seen) == len(network.seen) == 1
    assert alone.quality is None
    assert result.quality is not None
    shares = {g: np.isin(painted(), VALUES[g == GROUP]).sum() / 80**3 for g in range(1, 9)}
    assert list(result.quality.scores.values()) == pytest.approx([0.7 + shares[g] for g in range(1, 9)], abs=1e-5)
    assert {value: result.volumes_mm3[value] for value in alone.volumes_mm3} == alone.volumes_mm3
    assert {"predict", "parcels", "quality"} <= set(result.timings_s)


def test_quality_is_that_of_the_labels_before_any_clean_up():
    labels = painted()
    labels[60:62, 56:58, 0:2] = 2  # an island that the clean-up removes
    network = Means()
    segmenter = Segmenter(structures_model(), config=EXACT, quality=quality_model(network, side_mm=None))
    result = segmenter.segment(scan_of(labels))
    assert not (result.labels.data[58:, 54:] == 2).any()
    assert int(network.seen[0][0, 1].sum()) == int(np.isin(labels, VALUES[GROUP == 1]).sum())


@pytest.mark.parametrize("soft", [True, False])
def test_soft_inputs_are_the_posteriors_before_smoothing_as_in_training(soft):
    seen = []
    for sigma in (0.0, 0.5):
        network = Means()
        scorer = replace(quality_model(network), soft_inputs=soft)
        config = replace(EXACT, smoothing_sigma_vox=sigma)
        speckled = painted()
        speckled[::3, ::3, ::3] = 0  # what smoothing takes away
        Segmenter(structures_model(), config=config, quality=scorer).segment(scan_of(speckled))
        seen.append(network.seen[0])
    assert torch.equal(*seen) is soft  # the published form reads the argmax of what is smoothed (reference 6.4)


def test_quality_and_parcels_of_the_robust_hierarchy_come_from_the_guided_network():
    network = Means()
    segmenter = Segmenter(
        hierarchy_models(erased=4), "robust", config=EXACT, parcels=parcels_model(), quality=quality_model(network)
    )
    result = segmenter.segment(scan_of(painted()))
    assert result.quality is not None
    assert result.quality.scores["cerebellum"] == 0  # the denoiser took it away
    assert result.quality.scores["general white matter"] > 0
