"""The robust hierarchy: tissue groups, denoised, guide the network of the structures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_helpers import all_posteriors
from plus_helpers import (
    EXACT,
    GROUPS,
    STRUCTURES,
    VALUES,
    hierarchy_models,
    painted,
    random_unet,
    scan_of,
)
from synthseg.errors import InvariantError
from synthseg.inference import MODES, Model, Segmenter, Want
from synthseg.inference.hierarchy import denoised, tissue_groups, with_groups
from synthseg.networks.hierarchy import GroupsFirst
from synthseg.volumes import Volume

ROBUST = MODES["robust-fast"]


def random_models(seed: int) -> dict[str, Model]:
    networks = {
        "tissues": (random_unet(1, 5, seed, patch=2), GROUPS),
        "denoiser": (random_unet(5, 5, seed + 1, patch=2, dropped_skips=1), GROUPS),
        "guided": (random_unet(6, 33, seed + 2), STRUCTURES),
    }
    return {
        role: Model.from_network(network, protocol, spacing_mm=2.0, multiple=network.config.multiple, role=role)
        for role, (network, protocol) in networks.items()
    }


def decided(scores: torch.Tensor) -> torch.Tensor:
    """One-hot argmax [1, C, ...] of posteriors [1, C, ...], with numpy."""
    winner = scores.numpy().argmax(axis=1)
    return torch.from_numpy((winner[:, None] == np.arange(scores.shape[1])[:, None, None, None]).astype(np.float32))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), shape=st.tuples(*[st.sampled_from([4, 8, 12])] * 3))
def test_the_hierarchy_is_the_composition_done_by_hand(seed, shape):
    models = random_models(seed)
    s1, d, s2 = (model.network for model in models.values())
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        first = decided(torch.softmax(s1(image), 1))
        mended = decided(torch.softmax(d(first), 1))
        expected = torch.softmax(s2(torch.cat([image, mended], 1)), 1)[0]
        composed = torch.softmax(GroupsFirst(s1, d, s2)(image), 1)[0]  # what training runs
    groups = denoised(models["denoiser"], tissue_groups(models["tissues"], image, "s"), "s")
    inputs = with_groups(image, groups, 5)
    assert torch.equal(inputs, torch.cat([image, mended], 1))
    result = all_posteriors(models["guided"].runner, inputs, models["guided"].channels.partners, ROBUST)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result, composed, rtol=0, atol=1e-6)
    assert len(torch.unique(first.argmax(1))) > 1  # the stages decide something


def test_what_the_denoiser_takes_away_is_not_segmented():
    labels = painted()
    models = hierarchy_models(erased=4)  # the cerebellum
    result = Segmenter(models, "robust", config=EXACT).segment(scan_of(labels))
    expected = np.where(np.isin(labels, (7, 8, 46, 47, 24)), 0, labels)  # csf is background to the groups
    np.testing.assert_array_equal(result.labels.data, expected)
    seen = models["guided"].network.seen[0]
    assert seen.shape[1] == 6
    assert torch.equal(seen[:, 1:].sum(1), torch.ones_like(seen[:, 0]))  # one-hot
    assert {"tissues", "denoise", "predict"} <= set(result.timings_s)


def test_robust_mode_runs_every_network_once_and_default_mode_runs_none_of_them():
    models = hierarchy_models()
    Segmenter(models, "robust", config=replace(ROBUST, percentiles=(0, 100))).segment(scan_of(painted()))
    assert [len(model.network.seen) for model in models.values()] == [1, 1, 1]


def test_mirror_averaging_when_asked_for_mirrors_image_and_groups_alike():
    models = hierarchy_models()
    Segmenter(models, "robust", config=replace(EXACT, flip=True)).segment(scan_of(painted()))
    straight, mirrored = models["guided"].network.seen
    assert torch.equal(straight.flip(2), mirrored)
    assert len(models["tissues"].network.seen) == 1


def surrounded(labels: np.ndarray, margin: int) -> Volume:
    return scan_of(np.pad(labels, [(margin, 0), (0, margin), (margin, margin)]))


def with_field(models: dict[str, Model], *sides: float) -> dict[str, Model]:
    return {**models, "guided": replace(models["guided"], field_of_view_mm=sides)}


def test_the_first_look_at_a_large_scan_is_that_of_the_tissue_network():
    labels = painted()
    models = with_field(hierarchy_models(), 64.0, 60.0, 16.0)
    result = Segmenter(models, "robust", config=EXACT).segment(surrounded(labels, 24))
    whole, window = models["tissues"].network.seen
    assert whole.shape[2:] == (88, 84, 64)
    assert all(n < m for n, m in zip(window.shape[2:], whole.shape[2:], strict=True))
    assert len(models["guided"].network.seen) == 1
    inside = result.labels.data[24:, :60, 24:40]
    np.testing.assert_array_equal(inside, np.where(np.isin(labels, (8, 47, 24)), 0, labels))


def test_groups_are_not_computed_again_when_the_window_stays_the_same():
    small = np.zeros((64, 60, 64), np.int64)
    small[20:40, 20:40, 20:40] = 2  # 8 ml: no brain, so that the whole is kept
    small[30:40, 20:40, 20:40] = 41
    small[30:34, 20:24, 20:24] = 60  # the brightest
    models = with_field(hierarchy_models(), 40.0, 40.0, 40.0)
    result = Segmenter(models, "robust", config=EXACT).segment(scan_of(small))
    assert [len(model.network.seen) for model in models.values()] == [1, 1, 1]
    assert any("no brain was seen" in note for note in result.notes)
    np.testing.assert_array_equal(result.labels.data, small)


def test_robust_segmentations_repeat_exactly():
    models = random_models(3)
    scan = scan_of(painted(), np.diag([1.0, 1, 3, 1]))
    segmenter = Segmenter(models, "robust")
    first, second = (segmenter.segment(scan, Want(posteriors=True)) for _ in range(2))
    np.testing.assert_array_equal(first.labels.data, second.labels.data)
    np.testing.assert_array_equal(first.posteriors.data, second.posteriors.data)
    assert first.volumes_mm3 == second.volumes_mm3


@pytest.mark.parametrize("role", ["tissues", "denoiser", "guided"])
def test_a_stage_that_says_nan_is_stopped_and_named(role):
    models = hierarchy_models()

    class Broken(torch.nn.Module):
        def forward(self, x):
            outputs = len(VALUES) if role == "guided" else 5
            return torch.full((1, outputs, *x.shape[2:]), float("nan"))

    models[role] = replace(models[role], network=Broken())
    with pytest.raises(InvariantError, match=rf"an output of {role} that is not a number"):
        Segmenter(models, "robust").segment(scan_of(painted()))
