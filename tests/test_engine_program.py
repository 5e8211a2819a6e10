"""The lean program of a UNet says what the plain module says, and its parts are exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from engine_helpers import odd_network
from synthseg.engine import program
from synthseg.engine.moments import Moments
from synthseg.engine.torch_ops import TorchOps
from synthseg.networks import Encoder, EncoderConfig, UNet, UNetConfig
from synthseg.networks.unet import InstanceNorm


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_transposed_convolution_equals_upsampling_and_convolving(kernel):
    rng = torch.Generator().manual_seed(kernel)
    weight = torch.randn(3, 2, kernel, kernel, kernel, generator=rng, dtype=torch.float64)
    small = torch.randn(1, 2, 3, 4, 5, generator=rng, dtype=torch.float64)  # unequal sides catch swapped axes
    expected = functional.conv3d(functional.interpolate(small, scale_factor=2), weight, padding=kernel // 2)
    found = functional.conv_transpose3d(small, program.up_kernel(weight), stride=2, padding=kernel // 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_both_ways_of_upsampling_agree_with_the_plain_operations(kernel, transposed):
    rng = torch.Generator().manual_seed(kernel)
    weight, bias = torch.randn(4, 3, kernel, kernel, kernel, generator=rng), torch.randn(4, generator=rng)
    small = torch.randn(1, 3, 4, 2, 3, generator=rng)
    expected = functional.conv3d(functional.interpolate(small, scale_factor=2), weight, bias, padding=kernel // 2)
    ops = TorchOps(transposed=transposed)
    for _ in range(2):  # the second time with what was prepared
        torch.testing.assert_close(ops.up_conv(small, weight, bias, name="up.0.0.low"), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("weight", [[1.0, 2.0, 3.0], [-1.0, 0.0, 0.5], [-1.0, -2.0, -3.0]])
def test_pooling_before_the_norm_keeps_the_voxel_that_is_largest_after_it(norm, weight):
    net = odd_network(UNetConfig(features=3, levels=2, norm=norm, out_channels=2), seed=1)
    level = net.down[0]
    level.norm.weight.data = torch.tensor(weight)
    x = torch.rand(1, 1, 4, 6, 8)
    with torch.no_grad():
        features = level(x)
        expected = functional.max_pool3d(level.norm(features), 2)
        found, pooled = program.enter(TorchOps(), net, x)
        fixed = program.fixed_norm(level.norm)
        if fixed is None:
            moments = Moments()
            moments.add(found)
            fixed = moments.scale_and_shift(level.norm)
    scale, shift = (values.view(1, -1, 1, 1, 1) for values in fixed)
    torch.testing.assert_close(found, features, rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled * scale + shift, expected, rtol=0, atol=1e-5)


def test_the_head_takes_in_an_affine_map_of_its_inputs():
    net = odd_network(UNetConfig(features=4, levels=2, out_channels=5), seed=2)
    rng = torch.Generator().manual_seed(2)
    z, scale, shift = torch.randn(1, 4, 2, 3, 4, generator=rng), torch.randn(4, generator=rng), torch.randn(4)
    ops = TorchOps()
    for factor in (1.0, -2.0):  # the second image's own norm, not the first one's
        with torch.no_grad():
            mapped = z * (factor * scale).view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1)
            expected = net.head(mapped)
        found = program.head(ops, net, z, factor * scale, shift)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_only_a_unet_of_two_levels_or_more_has_a_program():
    assert program.can_run(UNet(UNetConfig(features=2, levels=2)))
    assert not program.can_run(UNet(UNetConfig(features=2, levels=1)))
    assert not program.can_run(Encoder(EncoderConfig(features=2, levels=2)))


@given(
    parts=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, -1e3, 1e4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_moments_of_slabs_are_those_of_the_whole_however_far_from_zero(parts, offset, seed):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, sum(parts), 4, 5, generator=rng) * torch.tensor([1.0, 2.0, 0.5]).view(1, -1, 1, 1, 1) + offset
    x = x.contiguous(memory_format=torch.channels_last_3d)
    moments = Moments()
    for part in x.split(parts, dim=2):
        moments.add(part)
    norm = InstanceNorm(3, 1e-3)
    scale, _ = moments.scale_and_shift(norm)
    exact = x.double().flatten(2)[0]
    expected = 1 / (exact.var(dim=1, correction=0) + 1e-3).sqrt()
    torch.testing.assert_close(moments.mean, exact.mean(dim=1), rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(scale.double(), expected, rtol=1e-5, atol=0)
