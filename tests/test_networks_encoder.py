"""The residual encoder against the reference's layer table (section 4.2) and against closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from synthseg.errors import ConfigError, ShapeError
from synthseg.networks import Encoder, EncoderConfig, expected_dice

torch.set_num_threads(1)

SMALL = {"in_channels": 3, "out_channels": 3, "features": 2, "levels": 2, "kernel": 3}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posteriors(*shape: int, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    """Random posteriors [B, G, X, Y, Z]."""
    return (sharpness * torch.randn(*shape, generator=rng(seed))).softmax(dim=1)


def network(seed: int = 0, **changes: object) -> Encoder:
    torch.manual_seed(seed)
    made = Encoder(EncoderConfig(**{**SMALL, **changes}))  # type: ignore[arg-type]
    for parameter in made.parameters():  # biases, norms and a zeroed last convolution must show in the outputs
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def test_the_published_encoder_has_its_numbers_of_parameters_and_tensors():
    with torch.device("meta"):
        made = Encoder(EncoderConfig())
    parameters = sum(p.numel() for p in made.parameters())
    statistics = sum(b.numel() for name, b in made.named_buffers() if "running" in name)
    assert (parameters + statistics, parameters) == (12_450_663, 12_449_943)
    convolutions = [m for m in made.modules() if isinstance(m, nn.Conv3d)]
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm3d)]
    assert (len(convolutions), len(norms)) == (14, 4)
    assert len([name for name in made.state_dict() if "num_batches" not in name]) == 44
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def by_hand(made: Encoder, x: Tensor) -> Tensor:
    """The forward pass of the reference, from the state dictionary alone and in its own words."""
    state = {name: tensor.double() for name, tensor in made.state_dict().items()}

    def conv(name: str, value: Tensor) -> Tensor:
        kernel = state[f"{name}.weight"]
        return functional.conv3d(value, kernel, state[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def pool(value: Tensor) -> Tensor:
        """The maximum of each 2 x 2 x 2 block, by slices; an odd side's last block is thinner."""
        for axis in (2, 3, 4):
            pieces = [piece.amax(dim=axis, keepdim=True) for piece in value.split(2, dim=axis)]
            value = torch.cat(pieces, dim=axis)
        return value

    x = x.double()
    for level in itertools.count():
        if f"down.{level}.expand.weight" not in state:
            break
        a = conv(f"down.{level}.expand", x).relu()
        b = conv(f"down.{level}.convs.1", conv(f"down.{level}.convs.0", x).relu())
        merged = (a + b).relu()
        mean, variance, gain, offset = (
            state[f"down.{level}.norm.{name}"].view(1, -1, 1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = pool((merged - mean) / (variance + 1e-3).sqrt() * gain + offset)
    return conv("final.1", conv("final.0", x).relu()).relu().mean(dim=(2, 3, 4))


@pytest.mark.parametrize("sides", [(8, 12, 4), (7, 5, 9)])
def test_the_forward_pass_is_the_references(sides: tuple[int, int, int]):
    made = network()
    for level in made.down:
        nn.init.uniform_(level.norm.running_mean, -1, 1)
        nn.init.uniform_(level.norm.running_var, 0.5, 2)
    x = posteriors(2, 3, *sides)
    torch.testing.assert_close(made(x).double(), by_hand(made, x), rtol=1e-4, atol=1e-5)
    assert by_hand(made, x).std() > 0.01


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("expected", [False, True])
def test_a_batch_gives_each_image_what_it_gets_alone(norm: str, patch: int, expected: bool):
    made = network(norm=norm, patch=patch, expected_dice=expected)
    x = posteriors(3, 3, 8, 6, 10)
    together = made(x)
    assert together.shape == (3, 3)
    torch.testing.assert_close(together, torch.cat([made(one) for one in x.split(1)]))


def test_images_of_one_block_and_of_odd_sides_are_taken():
    made = network(levels=3, patch=2)
    for sides in ((2, 2, 2), (2, 6, 10), (6, 14, 2)):
        assert made(posteriors(1, 3, *sides)).isfinite().all()


def test_every_voxel_of_an_odd_image_can_change_the_outputs():
    made = network(levels=3, norm="none")
    x = posteriors(1, 3, 5, 7, 3).requires_grad_()
    # a smooth stand-in for max-pooling's choice: sum over many images, so that every voxel is once the largest
    total = sum((made(x + 0.5 * torch.randn(x.shape, generator=rng(seed))) ** 2).sum() for seed in range(40))
    (gradient,) = torch.autograd.grad(total, x)
    assert (gradient.abs().amax(dim=1) > 0).all()


def test_the_plain_encoder_never_predicts_less_than_zero_and_the_correction_can():
    x = posteriors(8, 3, 6, 6, 6)
    assert all((network(seed)(x) >= 0).all() for seed in range(4))
    assert any((network(seed, expected_dice=True)(x) < 0).any() for seed in range(8))


def test_an_untrained_correction_predicts_the_expected_dice_itself():
    torch.manual_seed(3)
    made = Encoder(EncoderConfig(**SMALL, expected_dice=True)).eval()  # type: ignore[arg-type]
    x = posteriors(2, 3, 6, 8, 4)
    torch.testing.assert_close(made(x), expected_dice(x), rtol=0, atol=0)
    loss = (made(x) - 0.3).square().sum()
    loss.backward()
    assert float(made.final[1].weight.grad.abs().sum()) > 0  # training can leave the start


# The Dice that posteriors expect.


@given(
    share=st.floats(0.51, 0.99),
    voxels=st.integers(1, 60),
)
def test_two_groups_in_equal_and_opposite_doubt_have_the_dice_of_a_coin(share: float, voxels: int):
    # n voxels say (q, 1-q) and n say (1-q, q): each group overlaps by nq and both sizes are n, so E = q.
    sure = torch.full((voxels,), share)
    first = torch.cat([sure, 1 - sure])
    p = torch.stack([first, 1 - first]).view(1, 2, -1, 1, 1)
    torch.testing.assert_close(expected_dice(p), torch.full((1, 2), share))


def test_a_group_of_half_the_mass_elsewhere_has_its_closed_form():
    # 10 voxels chosen at p = 0.8, 30 at p = 0.1: E = 2 * 8 / (8 + 3 + 10)
    p = torch.cat([torch.full((10,), 0.8), torch.full((30,), 0.1)])
    values = expected_dice(torch.stack([p, 1 - p]).view(1, 2, 4, 5, 2))
    expected = [16 / 21, 2 * 27 / (27 + 2 + 30)]
    torch.testing.assert_close(values, torch.tensor([expected]))


@given(seed=st.integers(0, 1000))
def test_certain_labels_expect_one_and_missing_ones_nothing(seed: int):
    index = torch.randint(0, 3, (2, 3, 4, 5), generator=rng(seed))
    hot = functional.one_hot(index, 5).movedim(-1, 1).float()
    there = hot.sum(dim=(2, 3, 4)) > 0
    torch.testing.assert_close(expected_dice(hot), there.float(), rtol=0, atol=0)


@given(seed=st.integers(0, 1000), axis=st.integers(2, 4))
def test_the_expected_dice_knows_neither_place_nor_order_of_groups(seed: int, axis: int):
    p = posteriors(2, 4, 3, 4, 5, seed=seed)
    values = expected_dice(p)
    assert ((values >= 0) & (values <= 1)).all()
    torch.testing.assert_close(expected_dice(p.flip(axis)), values)
    order = torch.randperm(4, generator=rng(seed))
    torch.testing.assert_close(expected_dice(p[:, order]), values[:, order])


def test_the_expected_dice_of_calibrated_posteriors_is_the_dice_against_labels_drawn_from_them():
    p = posteriors(1, 3, 40, 40, 40, seed=1)
    flat = p[0].reshape(3, -1).T
    truth = torch.multinomial(flat, 1, generator=rng(2)).view(40, 40, 40)
    chosen = p[0].argmax(dim=0)
    dice = [
        2 * float(((truth == g) & (chosen == g)).sum()) / float((truth == g).sum() + (chosen == g).sum())
        for g in range(3)
    ]
    torch.testing.assert_close(expected_dice(p)[0], torch.tensor(dice), rtol=0, atol=0.01)


def test_halves_are_summed_in_full_precision():
    p = posteriors(1, 3, 40, 40, 40)
    torch.testing.assert_close(expected_dice(p.bfloat16()), expected_dice(p.bfloat16().float()))


# What it refuses, and its card.


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 4, 8, 8, 8), (1, 3, 8, 7, 8), (1, 3, 8, 0, 8)])
def test_wrong_shapes_are_refused_with_the_right_one(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match=r"network input.*\[B, 3, X, Y, Z\] with sides that are multiples of 2"):
        network(patch=2)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"kernel": 4}, "kernel"),
        ({"levels": 0}, "levels"),
        ({"norm": "group"}, "norm"),
        ({"patch": 1.5}, "patch"),
        ({"expected_dice": True, "out_channels": 8}, "expected_dice"),
    ],
)
def test_impossible_configs_name_their_key(changes: dict[str, object], key: str):
    with pytest.raises(ConfigError, match=f"network.{key}"):
        EncoderConfig(**changes)  # type: ignore[arg-type]


def test_a_config_survives_its_card_and_unknown_keys_do_not():
    config = EncoderConfig(features=6, norm="none", expected_dice=True, patch=2)
    assert config.to_dict()["kind"] == "encoder"
    assert EncoderConfig.from_dict(config.to_dict()) == config
    assert config.multiple == 2
    with pytest.raises(ConfigError, match="skips"):
        EncoderConfig.from_dict({"kind": "encoder", "skips": 1})
