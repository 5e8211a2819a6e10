"""Torch's compiler serves many networks and shapes, and says nothing of it."""

import pytest
import torch

from engine_helpers import odd_network
from synthseg.engine.runner import Runner
from synthseg.engine.torch_backend import CompileBackend
from synthseg.errors import SynthsegError
from synthseg.networks import UNetConfig


@pytest.mark.slow
@torch.inference_mode()
def test_networks_beyond_torchs_limit_are_still_compiled(capfd: pytest.CaptureFixture[str]) -> None:
    config = UNetConfig(features=2, levels=3, out_channels=3, convs_per_level=1, norm="instance")
    networks = [odd_network(config, seed) for seed in (1, 2)]
    try:
        runners = [Runner(network, CompileBackend()) for network in networks]
    except SynthsegError as error:
        pytest.skip(str(error))
    image = torch.rand(1, 1, 8, 4, 12)
    strict = {"recompile_limit": 1, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(strict):
        found = [runner.begin(image).posteriors(0, 8) for runner in runners]
    for network, posteriors in zip(networks, found, strict=True):
        expected = network(image).softmax(1)[0].permute(1, 2, 3, 0)
        torch.testing.assert_close(posteriors, expected, rtol=0, atol=1e-5)
    assert capfd.readouterr().err == ""
