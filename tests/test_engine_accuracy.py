"""The shipped network says what it says in float64, however it is carried out, on an image of large uniform regions."""

import copy

import numpy as np
import pytest
import torch

from synthseg.engine.openvino_ops import OpenVinoOps
from synthseg.engine.runner import Runner
from synthseg.engine.torch_backend import TorchBackend
from synthseg.networks import UNet
from synthseg.networks.moments import instance_norm, moments_of
from synthseg.networks.unet import InstanceNorm
from synthseg.weights import build_network, load_weights

SIDES = (48, 48, 48)


def phantom() -> torch.Tensor:
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in SIDES), indexing="ij")
    ball, image = x**2 / 0.55 + y**2 / 0.7 + z**2 / 0.6, torch.zeros(SIDES)
    for limit, value in ((1.0, 0.5), (0.85, 0.1), (0.75, 0.55), (0.45, 0.8), (0.1, 0.05)):
        image[ball < limit] = value
    return image[None, None]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def shipped() -> tuple[UNet, torch.Tensor]:
    """The default network and its posteriors [X, Y, Z, C] in float64."""
    network = build_network(load_weights("default")).eval()
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(phantom().double())
    return network, exact.softmax(1)[0].permute(1, 2, 3, 0)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_module_is_near_itself_in_float64(shipped, layout) -> None:
    network, exact = shipped
    found = network(phantom().contiguous(memory_format=layout)).softmax(1)[0].permute(1, 2, 3, 0)
    assert (found - exact).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_backends_are_near_the_module_in_float64(shipped, name, threads) -> None:
    network, exact = shipped
    if name == "openvino":
        pytest.importorskip("openvino")
        from synthseg.engine.openvino_backend import OpenVinoBackend

        runner = Runner(network, OpenVinoBackend(threads=threads))
    else:
        runner = Runner(network, TorchBackend())
    assert (runner.begin(phantom()).posteriors(0, SIDES[0]) - exact).abs().max() < 1e-4


def far_from_zero(layout: torch.memory_format) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, 16, 80, 96, 80] with means up to 250 deviations from 0, and its norm computed in float64."""
    noise = torch.randn(1, 16, 80, 96, 80, generator=torch.Generator().manual_seed(0))
    x = (noise + torch.linspace(-250, 250, 16).view(1, -1, 1, 1, 1)).contiguous(memory_format=layout)
    variance, mean = torch.var_mean(x.double(), (2, 3, 4), correction=0, keepdim=True)
    return x, (x.double() - mean) / (variance + 1e-3).sqrt()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_norm_is_accurate_far_from_zero(layout) -> None:
    x, exact = far_from_zero(layout)
    found = instance_norm(x, torch.ones(16), torch.zeros(16), 1e-3)
    assert (found - exact).abs().max() < 1e-4
    assert found.stride() == x.stride()
    mean, variance = moments_of(x)
    assert (mean - x.double().mean((0, 2, 3, 4))).abs().max() < 1e-5
    torch.testing.assert_close(variance, x.double().var((0, 2, 3, 4), correction=0), rtol=1e-6, atol=0)


def test_openvinos_norm_is_accurate_far_from_zero() -> None:
    ov = pytest.importorskip("openvino")
    x, exact = far_from_zero(torch.contiguous_format)
    image = ov.opset13.parameter(list(x.shape), np.float32)
    normed = OpenVinoOps().instance_norm(image.output(0), torch.ones(16), torch.zeros(16), 1e-3)
    compiled = ov.compile_model(ov.Model([normed], [image]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert (torch.from_numpy(compiled([x.numpy()])[0]) - exact).abs().max() < 1e-4


@torch.inference_mode(False)
def test_the_gradient_in_evaluation_is_that_of_training() -> None:
    with torch.enable_grad():
        norm, grads = InstanceNorm(3, 1e-3), []
        for train in (True, False):
            x = torch.rand(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
            norm.train(train)(x).square().mul(torch.arange(8.0)).sum().backward()
            grads.append(x.grad)
    torch.testing.assert_close(*grads)
