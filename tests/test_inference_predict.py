"""Posteriors in slabs: mirror averaging and smoothing against scipy and by hand; memory running out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from inference_helpers import band_model, phantom, phantom_affine, small_protocol
from plus_helpers import random_unet
from synthseg.engine.memory import Plan, thinnest
from synthseg.engine.runner import Runner
from synthseg.engine.torch_backend import TorchBackend
from synthseg.errors import SynthsegError
from synthseg.inference import Model, Segmenter, Want
from synthseg.inference.config import InferenceConfig
from synthseg.inference.predict import (
    Smoother,
    average_with_mirrored,
    predict_posteriors,
    smooth_posteriors,
    smoothing_weights,
)
from synthseg.inference.structures import channels_of
from synthseg.volumes import Volume

PARTNERS = channels_of(small_protocol()).partners


# -- smoothing


def test_smoothing_kernel_is_that_of_the_reference():
    outer, centre = smoothing_weights(0.5)
    np.testing.assert_allclose([outer, centre], [0.10650698, 0.78698604], atol=1e-8)  # reference 11.2
    impulse = torch.zeros(1, 5, 5, 5)
    impulse[0, 2, 2, 2] = 1
    kernel = np.array([outer, centre, outer])
    expected = np.zeros((5, 5, 5))
    expected[1:4, 1:4, 1:4] = np.einsum("i,j,k->ijk", kernel, kernel, kernel)
    np.testing.assert_allclose(smooth_posteriors(impulse, 0.5)[0], expected, atol=1e-7)


def smoothed_in_slabs(data: Tensor, sigma: float, cuts: list[int]) -> Iterator[tuple[int, Tensor]]:
    """[X, Y, Z, C] smoothed in slabs that begin at 0 and at every cut."""
    smoother = Smoother(sigma)
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        yield smoother.add(start, data[start:stop].clone())
    yield smoother.finish()


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 7)] * 3), sigma=st.sampled_from([0.0, 0.2, 0.5, 1.0]), data=st.data())
def test_smoothing_is_a_zero_padded_convolution_however_it_is_cut(shape, sigma, data):
    values = np.random.default_rng(1).random((*shape, 3)).astype(np.float32)
    cuts = sorted(data.draw(st.sets(st.integers(1, shape[0] - 1)))) if shape[0] > 1 else []
    outer, centre = smoothing_weights(sigma)
    expected = values.astype(np.float64)
    for axis in range(3):
        expected = ndimage.convolve1d(expected, [outer, centre, outer], axis=axis, mode="constant")
    reached, parts = 0, []
    for start, part in smoothed_in_slabs(torch.from_numpy(values), sigma, cuts):
        assert start == reached or len(part) == 0
        reached += len(part)
        parts.append(part)
    np.testing.assert_allclose(torch.cat(parts), expected, atol=1e-6)


def test_no_smoothing_leaves_posteriors_as_they_are():
    data = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(smooth_posteriors(data.clone(), 0.0), data)


# -- mirror averaging


def test_mirror_averaging_pairs_channels_with_their_partners():
    a = torch.rand(2, 3, 4, 7, generator=torch.Generator().manual_seed(0))
    b = torch.rand(2, 3, 4, 7, generator=torch.Generator().manual_seed(1))
    partners = torch.from_numpy(PARTNERS)
    torch.testing.assert_close(average_with_mirrored(a.clone(), b, partners), 0.5 * (a + b[..., partners]))


@settings(max_examples=12, deadline=None)
@given(
    slab=st.sampled_from([None, 4, 8, 12]),
    flip=st.booleans(),
    recompute=st.booleans(),
    norm=st.sampled_from(["batch", "instance"]),
    sigma=st.sampled_from([0.0, 0.5]),
)
def test_slabs_of_any_thickness_give_the_networks_own_answer(slab, flip, recompute, norm, sigma):
    network = random_unet(1, 7, 5, norm=norm)
    image = torch.rand(1, 1, 24, 8, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = torch.softmax(network(image), 1)[0]
        if flip:
            mirrored = torch.softmax(network(image.flip(2)), 1)[0].flip(1)
            expected = 0.5 * (expected + mirrored[torch.from_numpy(PARTNERS)])
    expected = smooth_posteriors(expected, sigma)
    runner = Runner(network, TorchBackend(torch.device("cpu"), "float32"))
    plan = None if slab is None else Plan(slab=slab, recompute=recompute, bytes=0)
    config = InferenceConfig(flip=flip, smoothing_sigma_vox=sigma)
    result = predict_posteriors(runner, image, PARTNERS, config, plan)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


# -- memory


def unet_model(norm: str = "batch") -> Model:
    network = random_unet(1, 7, 3, norm=norm)
    return Model.from_network(network, small_protocol(), spacing_mm=2.0, multiple=network.config.multiple)


def small_scan() -> Volume:
    return Volume(phantom(spacing_mm=(2, 2, 2)), phantom_affine((2, 2, 2)))


def segmented(**options) -> tuple[Segmenter, np.ndarray]:
    segmenter = Segmenter(unet_model(), **options)
    result = segmenter.segment(small_scan(), Want(posteriors=True))
    assert result.posteriors is not None
    return segmenter, result.posteriors.data


@pytest.mark.parametrize("backend", ["torch", "plain"])
def test_backends_and_limits_of_memory_do_not_change_the_answer(backend):
    _, expected = segmented(backend="plain")
    _, result = segmented(backend=backend, memory="40G")
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_a_limit_too_low_for_the_thinnest_slabs_is_refused_with_what_is_needed():
    with pytest.raises(SynthsegError, match=r"scan: found a limit of .*, where .* are needed.*--memory"):
        segmented(memory=1000)


def test_a_machine_with_little_free_memory_gets_the_thinnest_slabs_and_the_same_answer(monkeypatch):
    _, expected = segmented()
    monkeypatch.setattr("synthseg.inference.placement.available_bytes", lambda: 1)
    segmenter, result = segmented()
    plan = segmenter.placement.plan_of(segmenter.model, (36, 40, 32), passes=2)
    assert plan == thinnest(segmenter.model.network.config, (36, 40, 32), passes=2)
    np.testing.assert_allclose(result, expected, atol=1e-5)


class Hungry(nn.Module):
    """Fails as a GPU does that has no memory left, as often as told."""

    def __init__(self, model: Model, failures: int) -> None:
        super().__init__()
        self.network, self.failures = model.network, failures

    def forward(self, image: Tensor) -> Tensor:
        if self.failures > 0:
            self.failures -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        answer: Tensor = self.network(image)
        return answer


def test_when_memory_runs_out_thinner_slabs_are_tried_and_said():
    model = band_model(spacing_mm=2.0, multiple=4)
    expected = Segmenter(model).segment(small_scan())
    hungry = replace(model, network=Hungry(model, 1).eval())
    result = Segmenter(hungry).segment(small_scan())
    np.testing.assert_array_equal(result.labels.data, expected.labels.data)
    assert result.volumes_mm3 == expected.volumes_mm3
    assert any("not enough memory on cpu: segmented in the thinnest slabs" in note for note in result.notes)


def test_memory_that_never_suffices_is_an_error_that_names_the_scan_and_the_fix():
    model = band_model(spacing_mm=2.0, multiple=4)
    hungry = replace(model, network=Hungry(model, 100).eval())
    with pytest.raises(SynthsegError, match=r"scan: found not enough memory on cpu for 36 x 40 x 32 voxels.*--memory"):
        Segmenter(hungry).segment(small_scan())
