"""Scans larger than a network's field of view: found first, then seen through a window around the brain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inference_helpers import VALUES, phantom, save_random_weights, small_protocol
from synthseg.errors import WeightsError
from synthseg.inference import Model, Segmenter
from synthseg.inference.model import load_model
from synthseg.volumes import Volume
from synthseg.weights import load_weights, save_weights

FIELD = (72.0, 80.0, 64.0)  # the phantom's own sides


class Looker(nn.Module):
    """Everything brighter than 0.2 is white matter, everything brighter than 0.6 brain-stem; remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image.clone())
        logits = torch.full((1, len(VALUES), *image.shape[2:]), -20.0)
        logits[:, 0] = 0.0
        logits[:, 1] = 200 * (image[:, 0] - 0.2)
        logits[:, 2] = 600 * (image[:, 0] - 0.6) + logits[:, 1].clamp(min=0)
        return logits


def looking_model(field_of_view_mm: tuple[float, float, float] | None) -> tuple[Looker, Model]:
    network = Looker()
    model = Model.from_network(network, small_protocol(), spacing_mm=1.0, multiple=4)
    return network, replace(model, field_of_view_mm=field_of_view_mm)


def in_a_large_scan(before: tuple[int, int, int], after: tuple[int, int, int]) -> Volume:
    """The phantom with air around it, at world positions of its own."""
    data = np.pad(phantom(), list(zip(before, after, strict=True)))
    affine = np.eye(4)
    affine[:3, 3] = (-60, -50, -40)
    return Volume(data, affine)


def test_a_large_scan_is_looked_at_whole_and_then_through_a_window_around_the_brain():
    network, model = looking_model(FIELD)
    Segmenter(model, "fast").segment(in_a_large_scan((30, 5, 60), (10, 40, 20)))
    assert [tuple(image.shape[2:]) for image in network.seen] == [(112, 128, 144), (72, 80, 64)]
    bright = network.seen[1][0, 0] > 0.2
    inside = torch.nonzero(bright)
    shown = inside.max(0).values - inside.min(0).values
    assert bool((inside.min(0).values > 0).all())
    whole = torch.nonzero(network.seen[0][0, 0] > 0.2)
    assert torch.equal(shown, whole.max(0).values - whole.min(0).values)  # nothing of it is cut off


@settings(max_examples=8)
@given(st.tuples(*[st.integers(0, 40)] * 3), st.tuples(*[st.integers(0, 40)] * 3))
def test_air_around_the_head_changes_no_label(before, after):
    _, model = looking_model(FIELD)
    segmenter = Segmenter(model, "fast")
    alone = segmenter.segment(in_a_large_scan((0, 0, 0), (0, 0, 0))).labels.data
    result = segmenter.segment(in_a_large_scan(before, after)).labels
    expected = np.pad(alone, list(zip(before, after, strict=True)))
    assert np.mean(result.data != expected) < 1e-3  # percentiles within the window differ by a few voxels of air
    assert set(np.unique(result.data)) == {0, 2, 16}


def test_the_window_grows_with_a_brain_larger_than_the_field_of_view():
    network, model = looking_model((40.0, 40.0, 40.0))
    Segmenter(model, "fast").segment(in_a_large_scan((30, 30, 30), (30, 30, 30)))
    first, second = (image[0, 0] > 0.2 for image in network.seen)
    assert second.shape < first.shape
    assert int(second.sum()) == pytest.approx(int(first.sum()), rel=0.02)
    assert not second[0].any()
    assert not second[-1].any()


def test_a_scan_within_the_field_of_view_is_looked_at_once():
    network, model = looking_model(FIELD)
    Segmenter(model, "fast").segment(in_a_large_scan((0, 0, 0), (0, 0, 0)))
    assert len(network.seen) == 1


def test_a_model_without_a_field_of_view_takes_any_scan_as_it_is():
    network, model = looking_model(None)
    Segmenter(model, "fast").segment(in_a_large_scan((40, 40, 40), (40, 40, 40)))
    assert [tuple(image.shape[2:]) for image in network.seen] == [(152, 160, 144)]


def test_a_scan_without_a_brain_to_be_seen_is_segmented_whole_and_says_so():
    network, model = looking_model(FIELD)
    data = np.zeros((100, 100, 100), dtype=np.float32)
    data[40:65, 40:65, 40:65] = np.linspace(0.5, 1, 25)  # 16 ml, less than any brain
    result = Segmenter(model, "fast").segment(Volume(data, np.eye(4)))
    assert any("no brain was seen at a first look" in note for note in result.notes)
    assert [tuple(image.shape[2:]) for image in network.seen] == [(100, 100, 100)] * 2


def test_the_card_states_the_field_of_view_and_nonsense_is_refused(tmp_path):
    plain = load_weights(save_random_weights(tmp_path / "plain.safetensors"))
    assert load_model(tmp_path / "plain.safetensors").field_of_view_mm is None
    stated = save_weights(
        tmp_path / "a.safetensors", plain.tensors, {**plain.card, "field_of_view_mm": [160, 192, 160]}
    )
    assert load_model(stated).field_of_view_mm == (160.0, 192.0, 160.0)
    for nonsense in ([160, 192], [0, 1, 2], "wide", 5):
        card = {**plain.card, "field_of_view_mm": nonsense}
        path = save_weights(tmp_path / "b.safetensors", plain.tensors, card)
        with pytest.raises(WeightsError, match=r"b\.safetensors.*field_of_view_mm"):
            load_model(path)
