"""Posteriors in slabs: mirror averaging and smoothing against scipy and by hand; memory running out."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from inference_helpers import (
    all_posteriors,
    band_model,
    phantom,
    phantom_affine,
    save_random_weights,
    small_protocol,
    smooth_posteriors,
)
from plus_helpers import random_unet
from synthseg.engine.backend import Parts
from synthseg.engine.choose import Choice
from synthseg.engine.memory import Plan, thinnest
from synthseg.engine.ranges import Range
from synthseg.engine.runner import Runner
from synthseg.engine.torch_backend import TorchBackend
from synthseg.errors import SynthsegError, WeightsError
from synthseg.inference import Model, Segmenter, Want, load_model
from synthseg.inference.config import InferenceConfig
from synthseg.inference.placement import bring_back, fallbacks, place
from synthseg.inference.predict import (
    Smoother,
    average_with_mirrored,
    smoothing_weights,
)
from synthseg.inference.record import ran_with
from synthseg.inference.segmentation import Ran
from synthseg.inference.structures import channels_of
from synthseg.networks import UNet, UNetConfig
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
    result = all_posteriors(runner, image, PARTNERS, config, plan)
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
    with pytest.raises(
        SynthsegError, match=r"scan: found a limit of .*, where .* are needed. Fix: give a --memory of \d+M or more$"
    ):
        segmented(memory=1000)


def test_a_machine_with_little_free_memory_gets_the_thinnest_slabs_and_the_same_answer(monkeypatch):
    _, expected = segmented()
    monkeypatch.setattr("synthseg.inference.placement.available_bytes", lambda: 1)
    segmenter, result = segmented()
    plan = segmenter.placement.plan_of(segmenter.model, (36, 40, 32), passes=2)
    assert plan == thinnest(segmenter.model.network.config, (36, 40, 32), passes=2)
    np.testing.assert_allclose(result, expected, atol=1e-5)


class HungryParts:
    """Fail at level 0 with the errors of a list, first one first, as long as there are any; then do as told."""

    def __init__(self, parts: Parts, errors: list[BaseException], seen: list[weakref.ref[Tensor]]) -> None:
        self.parts, self.errors, self.seen = parts, errors, seen
        self.core, self.leave, self.head = parts.core, parts.leave, parts.head

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert [ref for ref in self.seen if ref() is not None] == []  # nothing of a failed attempt is left
        if self.errors:
            self.seen.append(weakref.ref(x))
            raise self.errors.pop(0)
        return self.parts.enter(x)


@pytest.fixture
def hungry(monkeypatch):
    """Make the torch backend fail with the errors given; returns those that are left, and what failed attempts saw."""

    def make(*errors: BaseException) -> tuple[list[BaseException], list[weakref.ref[Tensor]]]:
        left, seen, prepare = list(errors), [], TorchBackend.prepare
        monkeypatch.setattr(TorchBackend, "prepare", lambda *given: HungryParts(prepare(*given), left, seen))
        return left, seen

    return make


OUT = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
)


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
def test_when_memory_runs_out_the_thinnest_slabs_are_tried_and_said(hungry, error):
    expected = Segmenter(unet_model(), device="cpu").segment(small_scan())
    left, seen = hungry(error)
    result = Segmenter(unet_model(), device="cpu").segment(small_scan())
    assert (left, len(seen)) == ([], 1)
    np.testing.assert_array_equal(result.labels.data, expected.labels.data)
    assert result.volumes_mm3 == pytest.approx(expected.volumes_mm3, rel=1e-4)
    assert any("not enough memory on cpu: segmented in the thinnest slabs" in note for note in result.notes)


def test_other_errors_are_not_taken_for_a_lack_of_memory(hungry):
    for error in (RuntimeError("boom"), OSError(errno.EIO, "disk"), ValueError("odd")):
        hungry(error)
        with pytest.raises(type(error)) as caught:
            Segmenter(unet_model(), device="cpu").segment(small_scan())
        assert caught.value is error


def test_memory_that_never_suffices_is_an_error_that_names_the_scan_and_the_fix(hungry):
    _, seen = hungry(*(torch.OutOfMemoryError("CUDA out of memory") for _ in range(9)))
    said = r"scan: found not enough memory on cpu for 36 x 40 x 32 voxels.*crop the scan to the head"
    with pytest.raises(SynthsegError, match=said) as caught:
        Segmenter(unet_model(), device="cpu").segment(small_scan())
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert len(seen) == 2


def test_a_network_that_cannot_be_cut_is_not_said_to_be_tried_in_slabs():
    model = band_model(spacing_mm=2.0, multiple=4)
    assert list(fallbacks(Segmenter(model, device="cpu").placement)) == []
    assert list(fallbacks(Segmenter(unet_model(), device="cpu", backend="plain").placement)) == []


def test_the_cpu_after_a_gpu_has_no_limit():
    cpu = Segmenter(unet_model(), device="cpu").placement
    gpu = replace(cpu, limit=1000, choice=replace(cpu.choice, device=torch.device("cuda"), precision="bfloat16"))
    thin, last = fallbacks(gpu)
    assert (thin.thin, thin.limit, thin.device.type) == (True, 1000, "cuda")
    assert (last.thin, last.limit, last.device.type, last.choice.precision) == (False, None, "cpu", "bfloat16")
    assert last.note == "not enough memory on cuda even in thin slabs: segmented on the CPU"


def test_networks_come_back_to_where_they_were():
    class Movable(nn.Module):
        where: object = None

        def to(self, device):
            self.where = device
            return self

    planned = Segmenter(replace(unet_model(), network=Movable()), device="cpu").placement
    network = planned.models["structures"].network
    network.to("elsewhere")
    bring_back(planned)
    assert network.where == torch.device("cpu")


def test_the_segmentation_says_what_carried_out_each_network(hungry, monkeypatch):
    hungry(torch.OutOfMemoryError("CUDA out of memory"))
    segmenter = Segmenter(unet_model(), device="cpu")
    other = Segmenter(unet_model(), device="cpu", precision="bfloat16").placement
    monkeypatch.setattr("synthseg.inference.placement.fallbacks", lambda _: iter([other]))
    result = segmenter.segment(small_scan())
    assert set(result.ran) == set(segmenter.models)
    assert set(result.ran.values()) == {Ran("torch", "cpu", "bfloat16")}
    assert ran_with(segmenter, result)["precision"] == "bfloat16"
    assert ran_with(segmenter)["precision"] == "float32"


def test_without_a_limit_plans_prefer_what_machines_of_four_gigabytes_have(monkeypatch):
    monkeypatch.setattr("synthseg.inference.placement.available_bytes", lambda: 2**40)
    shape, network = (192, 224, 192), UNet(UNetConfig(out_channels=7))
    model = Model.from_network(network, small_protocol(), spacing_mm=1.0, multiple=network.config.multiple)
    placements = [Segmenter(model, device="cpu", memory=memory).placement for memory in (None, 2**40)]
    lean, fast = (one.plan_of(one.models["structures"], shape, passes=2) for one in placements)
    assert lean is not None
    assert fast is not None
    assert lean.bytes < 2.4 * 2**30 < fast.bytes


# -- int8


def test_ranges_that_cannot_be_read_stop_int8_alone(tmp_path):
    path = save_random_weights(tmp_path / "own.safetensors", int8={"ranges": {"head": 1}})
    model = load_model(path)
    assert model.ranges is None
    cpu = torch.device("cpu")
    place({"structures": model}, Choice(backend="torch", device=cpu))
    with pytest.raises(WeightsError, match=r"own\.safetensors: found a card whose int8\.ranges cannot be read"):
        place({"structures": model}, Choice(backend="openvino", device=cpu, precision="int8"))


def test_in_int8_a_network_without_ranges_is_said_to_run_in_float32(monkeypatch):
    def backend_of(choice, **_):
        return SimpleNamespace(name=choice.backend, device=choice.device, precision=choice.precision)

    monkeypatch.setattr("synthseg.inference.placement.make_backend", backend_of)
    main = replace(unet_model(), ranges={"head": Range(0.0, 1.0, (1.0,))})
    models = {"locator": replace(unet_model(), role="tissues"), "structures": main}
    ran = place(models, Choice(backend="openvino", device=torch.device("cpu"), precision="int8")).ran
    assert ran == {"locator": Ran("torch", "cpu", "float32"), "structures": Ran("openvino", "cpu", "int8")}
