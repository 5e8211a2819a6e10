"""Instance norm and networks that work on blocks of voxels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synthseg.errors import ConfigError, ShapeError
from synthseg.networks import UNet, UNetConfig
from synthseg.networks.unet import InstanceNorm, gather_blocks, spread_blocks

torch.set_num_threads(1)


def make_instance_norm(channels: int) -> InstanceNorm:
    norm = InstanceNorm(channels, eps=1e-3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return norm


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_instance_norm_is_torchs(batch: int, layout: torch.memory_format):
    norm = make_instance_norm(5)
    own = nn.InstanceNorm3d(5, eps=1e-3, affine=True)
    own.load_state_dict(norm.state_dict())
    x = torch.randn(batch, 5, 4, 6, 3).to(memory_format=layout).requires_grad_()
    y = x.detach().clone().contiguous().requires_grad_()
    ours, theirs = norm(x), own(y)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(theirs)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.weight.grad, own.weight.grad, rtol=1e-4, atol=1e-4)


def test_an_instance_norm_network_gives_each_image_of_a_batch_what_it_gets_alone_in_training_and_after():
    network = UNet(UNetConfig(features=4, levels=2, out_channels=3, norm="instance"))
    images = torch.rand(3, 1, 8, 8, 8)
    together = network.train()(images)
    alone = torch.cat([network.eval()(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_batch_norm_weights_fit_an_instance_norm_network():
    batch = UNet(UNetConfig(features=4, levels=2))
    instance = UNet(UNetConfig(features=4, levels=2, norm="instance"))
    fresh = instance.load_state_dict(batch.state_dict(), strict=False)
    assert fresh.missing_keys == []
    image = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(batch.train()(image), instance(image))  # one image a batch: the same statistics


def test_an_unknown_norm_is_refused():
    with pytest.raises(ConfigError, match=r"network\.norm.*'layer'.*batch, instance"):
        UNetConfig(norm="layer")  # type: ignore[arg-type]


@given(
    sides=st.tuples(*[st.integers(1, 3)] * 3),
    patch=st.integers(1, 3),
    batch=st.integers(1, 2),
    channels=st.integers(1, 4),
)
def test_blocks_come_apart_as_they_were_put_together(sides, patch: int, batch: int, channels: int):
    x = torch.randn(batch, channels, *(side * patch for side in sides))
    blocks = gather_blocks(x, patch)
    assert blocks.shape == (batch, channels * patch**3, *sides)
    assert torch.equal(spread_blocks(blocks, patch), x)


def test_a_block_holds_its_own_voxels():
    x = torch.arange(2 * 64.0).view(1, 2, 4, 4, 4)
    blocks = gather_blocks(x, 2)
    expected = [x[0, c, 2 + i, 0 + j, 2 + k] for c in range(2) for i in range(2) for j in range(2) for k in range(2)]
    assert blocks[0, :, 1, 0, 1].tolist() == [float(value) for value in expected]


def test_a_patch_network_keeps_the_sides_and_costs_an_eighth():
    config = UNetConfig(features=4, levels=3, out_channels=5, patch=2)
    assert config.multiple == 8
    network = UNet(config)
    assert network(torch.rand(2, 1, 16, 8, 24)).shape == (2, 5, 16, 8, 24)
    seen = []
    network.down[0].convs[1].register_forward_hook(lambda _, __, output: seen.append(output.shape))
    network(torch.rand(1, 1, 16, 16, 16))
    assert seen == [torch.Size([1, 4, 8, 8, 8])]
    with pytest.raises(ShapeError, match="multiples of 8"):
        network(torch.rand(1, 1, 12, 16, 16))


def test_logits_of_a_patch_network_lie_in_channels_last_memory_as_the_loss_wants_them():
    network = UNet(UNetConfig(features=4, levels=2, out_channels=5, patch=2))
    network = network.to(memory_format=torch.channels_last_3d)
    image = torch.rand(1, 1, 8, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    assert network(image).is_contiguous(memory_format=torch.channels_last_3d)


def test_a_batch_in_bfloat16_is_normalised_as_its_images_alone():
    norm = make_instance_norm(3)
    means = torch.tensor([-1.0, 3.0, 8.0]).view(1, 3, 1, 1, 1)  # large against the deviation: where rounding shows
    x = (means + 0.2 * torch.randn(3, 3, 6, 6, 6)).bfloat16()
    alone = torch.cat([norm(image[None]) for image in x])
    assert torch.equal(norm(x), alone)
    assert norm(x).float().mean((2, 3, 4)).sub(norm.bias).abs().max() < 0.02


def test_the_smallest_input_a_network_takes_has_one_voxel_at_its_deepest_level():
    network = UNet(UNetConfig(features=4, levels=3, out_channels=2, norm="instance"))
    assert network.train()(torch.rand(1, 1, 4, 4, 4)).isfinite().all()
