"""The UNet against an independent forward pass written from the reference's text (sections 4.1 to 4.3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import nn

from synthseg.errors import ConfigError, ShapeError
from synthseg.networks import UNet, UNetConfig

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("config", "total", "trainable"),
    [
        ({}, 13_242_849, 13_240_641),  # SynthSeg 2.0
        ({"out_channels": 32}, 13_242_824, 13_240_616),  # 1.0
        ({"out_channels": 5}, 13_242_149, 13_239_941),  # S1
        (
            {"in_channels": 5, "out_channels": 5, "features": 16, "kernel": 5, "dropped_skips": 2},
            27_086_501,
            27_085_029,
        ),  # D
        ({"in_channels": 6}, 13_246_089, 13_243_881),  # S2
        ({"in_channels": 3, "out_channels": 69}, 13_245_045, 13_242_837),  # S3
    ],
)
def test_every_published_network_has_its_number_of_parameters(config: dict[str, int], total: int, trainable: int):
    with torch.device("meta"):
        network = UNet(UNetConfig(**config))
    parameters = sum(p.numel() for p in network.parameters())
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert (parameters + statistics, parameters) == (total, trainable)


def test_the_denoiser_joins_its_two_deepest_levels_only():
    with torch.device("meta"):
        network = UNet(UNetConfig(in_channels=5, out_channels=5, features=16, kernel=5, dropped_skips=2))
    assert [level.convs[0].in_channels for level in network.up] == [384, 192, 64, 32]


def test_a_network_holds_the_tensors_of_the_reference():
    with torch.device("meta"):
        network = UNet(UNetConfig())
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    assert (len(convolutions), len(norms)) == (19, 9)
    assert len([name for name in network.state_dict() if "num_batches" not in name]) == 74
    assert [level.convs[0].in_channels for level in network.down] == [1, 24, 48, 96, 192]
    assert [level.convs[0].in_channels for level in network.up] == [576, 288, 144, 72]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


# The independent forward: double precision, arrays [X, Y, Z, C] and kernels [kx, ky, kz, in, out] as Keras has them.


def keras_kernel(conv: nn.Conv3d) -> tuple[np.ndarray, np.ndarray]:
    weight = conv.weight.detach().double().numpy()  # [out, in, kx, ky, kz]
    assert conv.bias is not None
    return weight.transpose(2, 3, 4, 1, 0), conv.bias.detach().double().numpy()


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    out = np.zeros((*x.shape[:3], kernel.shape[4]))
    for o in range(kernel.shape[4]):
        for i in range(kernel.shape[3]):
            out[..., o] += correlate(x[..., i], kernel[..., i, o], mode="constant", cval=0.0)
    return out + bias


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def batch_norm(x: np.ndarray, norm: nn.BatchNorm3d) -> np.ndarray:
    gamma, beta, mean, variance = (
        t.detach().double().numpy() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta


def max_pool(x: np.ndarray) -> np.ndarray:
    a, b, c, channels = x.shape
    return x.reshape(a // 2, 2, b // 2, 2, c // 2, 2, channels).max(axis=(1, 3, 5))


def upsample(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)


def reference_forward(network: UNet, x: np.ndarray, dropped_skips: int) -> np.ndarray:
    levels = len(network.down)
    before_norm = []
    for number, level in enumerate(network.down):
        for conv in level.convs:
            x = elu(convolve(x, *keras_kernel(conv)))
        before_norm.append(x)
        x = batch_norm(x, level.norm)
        if number < levels - 1:
            x = max_pool(x)
    for depth, level in enumerate(network.up):
        x = upsample(x)
        if depth < levels - 1 - dropped_skips:
            x = np.concatenate([before_norm[levels - 2 - depth], x], axis=-1)
        for conv in level.convs:
            x = elu(convolve(x, *keras_kernel(conv)))
        x = batch_norm(x, level.norm)
    return convolve(x, *keras_kernel(network.head))


def randomised(config: UNetConfig, seed: int) -> UNet:
    """Random weights, biases, scales and running statistics, so that nothing is hidden by a zero or a one."""
    rng = torch.Generator().manual_seed(seed)
    network = UNet(config).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=rng) * 2 + 0.01)
        elif tensor.is_floating_point():
            scale = 1.0 if tensor.ndim == 1 else 1 / np.sqrt(tensor[0].numel())
            tensor.copy_(scale * torch.randn(tensor.shape, generator=rng))
    return network


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(in_channels=2, out_channels=3, features=2, levels=3),
        UNetConfig(in_channels=1, out_channels=4, features=3, levels=2, convs_per_level=1),
        UNetConfig(in_channels=2, out_channels=2, features=2, levels=3, kernel=5, dropped_skips=1),
    ],
    ids=["two convolutions", "one convolution", "denoiser"],
)
def test_the_network_computes_what_the_reference_describes(config: UNetConfig):
    network = randomised(config, seed=config.features)
    x = torch.rand(1, config.in_channels, 4, 8, 12, generator=torch.Generator().manual_seed(9))
    expected = reference_forward(network, x[0].double().numpy().transpose(1, 2, 3, 0), config.dropped_skips)
    with torch.no_grad():
        ours = network(x)[0].double().numpy().transpose(1, 2, 3, 0)
    assert np.abs(expected).max() > 0.5  # the comparison is about something
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def decoder_input(network: UNet, x: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = network.up[-1].convs[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        network(x)
    handle.remove()
    return seen[0]


def test_skips_are_taken_before_batch_norm_and_stand_first():
    config = UNetConfig(features=3, levels=2)
    network, x = randomised(config, seed=1), torch.rand(1, 1, 8, 8, 8)
    before = decoder_input(network, x)
    network.down[0].norm.running_mean.add_(3.0)
    network.down[0].norm.weight.data.mul_(2.0)
    after = decoder_input(network, x)
    assert before.shape[1] == 3 + 6
    assert torch.equal(before[:, :3], after[:, :3])  # [skip, ...
    assert not torch.allclose(before[:, 3:], after[:, 3:])  # ... upsampled]


def test_convolutions_start_glorot_uniform_without_bias():
    torch.manual_seed(0)
    network = UNet(UNetConfig(features=8, levels=3))
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv3d)):
        voxels = conv.kernel_size[0] ** 3
        limit = np.sqrt(6 / (voxels * (conv.in_channels + conv.out_channels)))
        largest = conv.weight.abs().max().item()
        assert 0.8 * limit < largest <= limit
        assert not conv.bias.any()


@pytest.mark.parametrize("shape", [(1, 8, 8, 8), (1, 2, 8, 8, 8), (1, 1, 8, 8, 10), (1, 1, 7, 8, 8), (8, 8, 8)])
def test_inputs_that_do_not_fit_are_refused_with_the_shape_that_does(shape: tuple[int, ...]):
    network = UNet(UNetConfig(features=1, levels=3))
    with pytest.raises(ShapeError, match=r"\[B, 1, X, Y, Z\] with sides that are multiples of 4"):
        network(torch.zeros(shape))


def test_a_config_survives_the_card():
    config = UNetConfig(in_channels=2, out_channels=7, features=5, levels=3, dropped_skips=1, batch_norm_eps=1e-4)
    assert UNetConfig.from_dict({"kind": "unet", **config.to_dict()}) == config


def test_unknown_keys_are_named():
    with pytest.raises(ConfigError, match=r"unknown keys \['feature'\].*'features'"):
        UNetConfig.from_dict({"feature": 3})


@pytest.mark.parametrize(
    ("key", "value"),
    [("features", 0), ("levels", -1), ("out_channels", 2.5), ("kernel", 4), ("kernel", "3"), ("dropped_skips", 5)],
)
def test_impossible_shapes_name_their_key(key: str, value: object):
    with pytest.raises(ConfigError, match=f"network.{key}"):
        UNetConfig.from_dict({key: value})
