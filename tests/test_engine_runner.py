"""Posteriors of planes, whatever the slabs, are those of the plain module."""

import copy
import dataclasses
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine_helpers import odd_network
from synthseg.engine.backend import Parts
from synthseg.engine.planes import Planes, slabs, window
from synthseg.engine.runner import Runner
from synthseg.engine.softmax import softmax_planes
from synthseg.engine.torch_backend import CompileBackend, PlainBackend, TorchBackend
from synthseg.errors import ShapeError, SynthsegError, UsageError
from synthseg.networks import UNet, UNetConfig


def plain(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """In float64: rounding of the module's own is not what the runner is held to."""
    with torch.inference_mode():
        return copy.deepcopy(network).double()(image.double()).softmax(1)[0].permute(1, 2, 3, 0)


def taken(runner: Runner, image: torch.Tensor, slab: int | None, *, backwards=False, **options) -> torch.Tensor:
    run = runner.begin(image, slab=slab, **options)
    pieces = list(slabs(image.shape[2], slab or image.shape[2]))
    order = reversed(pieces) if backwards else pieces
    found = {start: run.posteriors(start, stop) for start, stop in order}
    return torch.cat([found[start] for start, _ in pieces])


def image_for(config: UNetConfig, sides, seed: int) -> torch.Tensor:
    shape = [side * config.multiple for side in sides]
    return torch.rand(1, config.in_channels, *shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def cases(draw):
    levels = draw(st.integers(2, 3))
    config = UNetConfig(
        in_channels=draw(st.integers(1, 2)),
        out_channels=draw(st.integers(2, 4)),
        patch=draw(st.sampled_from([1, 1, 2])),
        features=draw(st.integers(1, 5)),
        levels=levels,
        convs_per_level=draw(st.integers(1, 3)),
        kernel=draw(st.sampled_from([1, 3, 5])),
        dropped_skips=draw(st.integers(0, levels - 1)),
        norm=draw(st.sampled_from(["batch", "instance"])),
        batch_norm_eps=0.1,  # channels that hardly vary, which so few features have, must not magnify rounding
    )
    sides = draw(st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(1, 2)))
    slab = draw(st.sampled_from([None, 1, 2, 3, 5]))
    return config, sides, None if slab is None else 2 * config.patch * slab


@given(case=cases(), recompute=st.booleans(), backwards=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_slabs_of_any_network_give_the_plain_posteriors(case, recompute, backwards, seed):
    config, sides, slab = case
    network = odd_network(config, seed)
    image = image_for(config, sides, seed)
    found = taken(Runner(network, TorchBackend()), image, slab, backwards=backwards, recompute=recompute)
    assert found.is_contiguous()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(network, image), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_planes_can_be_asked_for_in_any_order_twice_and_across_slabs(norm):
    config = UNetConfig(features=3, levels=2, out_channels=3, norm=norm)
    network, image = odd_network(config, 4), image_for(config, (9, 2, 3), 4)
    run = Runner(network, TorchBackend()).begin(image, slab=4)
    expected = plain(network, image)
    for start, stop in [(8, 14), (0, 4), (2, 10), (0, 18), (16, 18), (0, 4)]:
        found = run.posteriors(start, stop).double()
        torch.testing.assert_close(found, expected[start:stop], rtol=0, atol=1e-5)


def test_the_border_of_the_volume_is_right_in_every_slab():
    # A constant image: any wrong padding between slabs would show as planes that differ from the middle one.
    network = odd_network(UNetConfig(features=3, levels=2, out_channels=3), 5)
    image = torch.full((1, 1, 24, 8, 8), 0.7)
    found = taken(Runner(network, TorchBackend()), image, 4)
    middle = found[8:16]
    torch.testing.assert_close(middle, middle[:1].expand_as(middle), rtol=0, atol=1e-5)
    assert (found[0] - found[12]).abs().max() > 1e-4  # where zeros lie beyond, the network says something else


@given(planes=st.integers(1, 40), pairs=st.integers(1, 9), halo=st.integers(0, 3))
def test_windows_hold_the_halo_inside_the_volume_and_have_one_length(planes, pairs, halo):
    total, thickness, halo = 2 * planes, 2 * pairs, 2 * halo
    windows = [
        ((start, stop), window(start, stop, total=total, halo=halo, thickness=thickness))
        for start, stop in slabs(total, thickness)
    ]
    for (start, stop), (first, last) in windows:
        assert first <= max(0, start - halo)
        assert last >= min(total, stop + halo)
        assert 0 <= first < last <= total
        assert first % 2 == last % 2 == 0
    assert len({last - first for _, (first, last) in windows}) == 1
    assert [start for (start, _), _ in windows][1:] == [stop for (_, stop), _ in windows][:-1]


@pytest.mark.parametrize("backwards", [False, True])
def test_features_are_freed_as_planes_are_taken(backwards):
    network = odd_network(UNetConfig(features=2, levels=2, out_channels=2), 6)
    run = Runner(network, TorchBackend()).begin(torch.rand(1, 1, 32, 4, 4), slab=4)
    held = [run._features.held]
    order = list(slabs(32, 4))
    for start, stop in reversed(order) if backwards else order:
        run.posteriors(start, stop)
        held.append(run._features.held)
    # a slab goes when its neighbour, whose halo reaches into it, has been taken too
    assert held == [32, 32, 28, 24, 20, 16, 12, 8, 0]


def test_dropped_planes_leave_no_tensor_behind():
    kept = Planes(8, 2)
    chunks = [torch.rand(1, 2, 4, 3, 3).contiguous(memory_format=torch.channels_last_3d) for _ in range(2)]
    expected = torch.cat(chunks, 2)
    seen = weakref.ref(chunks[0])
    kept.put(0, chunks.pop(0))
    kept.put(4, chunks.pop(0))
    assert torch.equal(kept.get(2, 6), expected[:, :, 2:6])
    kept.taken(0, 4)
    assert seen() is not None  # planes 4 and 5 need planes 2 and 3
    kept.taken(4, 6)
    gc.collect()
    assert seen() is None
    assert kept.get(2, 6) is None
    assert torch.equal(kept.get(4, 8), expected[:, :, 4:8])


def test_a_kept_part_does_not_hold_the_tensor_it_was_cut_from():
    kept = Planes(4, 0)
    large = torch.rand(1, 2, 100, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    kept.put(0, large[:, :, 10:14])
    found = kept.get(0, 4)
    assert torch.equal(found, large[:, :, 10:14])
    assert found.untyped_storage().nbytes() == found.numel() * 4


class _Whole(nn.Module):
    """Not a UNet: three classes of one image."""

    def forward(self, x):
        return torch.cat([x, 2 * x - 1, x**2], 1)


@pytest.mark.parametrize(
    "network", [_Whole(), odd_network(UNetConfig(features=2, levels=1, out_channels=3), 7)], ids=["other", "one level"]
)
@pytest.mark.parametrize("backend", [PlainBackend(), TorchBackend()], ids=["plain", "torch"])
def test_networks_without_a_program_run_whole(network, backend):
    image = torch.rand(1, 1, 7, 4, 3)
    run = Runner(network, backend).begin(image, slab=4)
    assert (run.shape, run.channels) == ((7, 4, 3), 3)
    found = torch.cat([run.posteriors(0, 4), run.posteriors(4, 7)])
    torch.testing.assert_close(found.double(), plain(network, image), rtol=0, atol=1e-6)


def test_the_plain_backend_runs_the_module_itself():
    network = odd_network(UNetConfig(features=2, levels=2, out_channels=3), 8)
    runner = Runner(network, PlainBackend())
    assert runner.parts is None
    image = torch.rand(1, 1, 8, 4, 6)
    torch.testing.assert_close(taken(runner, image, 4).double(), plain(network, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("slab", [None, 4])
def test_bfloat16_stays_close_to_float32(norm, slab):
    torch.manual_seed(9)
    network = UNet(UNetConfig(features=4, levels=3, out_channels=4, norm=norm)).eval()
    image = torch.rand(1, 1, 16, 8, 12)
    found = taken(Runner(network, TorchBackend(precision="bfloat16")), image, slab)
    assert found.dtype == torch.float32
    difference = (found.double() - plain(network, image)).abs()
    assert 0 < difference.max() < 0.05  # bfloat16 has 8 bits; exactly 0 would mean that it was not used


def test_bfloat16_of_the_plain_module_stays_close_too():
    torch.manual_seed(9)
    network = UNet(UNetConfig(features=4, levels=2, out_channels=4)).eval()
    image = torch.rand(1, 1, 8, 8, 12)
    found = taken(Runner(network, PlainBackend(precision="bfloat16")), image, None)
    assert 0 < (found.double() - plain(network, image)).abs().max() < 0.05


def test_the_network_and_its_input_stay_as_they_are():
    network = odd_network(UNetConfig(features=2, levels=2, out_channels=3, norm="instance"), 10)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    image = torch.rand(1, 1, 8, 4, 6).contiguous(memory_format=torch.channels_last_3d)
    copy = image.clone()
    first = taken(Runner(network, TorchBackend()), image, 4)
    second = taken(Runner(network, TorchBackend()), image, 4)
    assert torch.equal(image, copy)
    assert torch.equal(first, second)
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())


def test_one_runner_serves_images_of_any_shape_and_statistics():
    network = odd_network(UNetConfig(features=2, levels=2, out_channels=3, norm="instance"), 11)
    runner = Runner(network, TorchBackend())
    for shape, factor in [((8, 4, 6), 1.0), ((4, 8, 2), 50.0), ((8, 4, 6), -3.0)]:
        image = factor * torch.rand(1, 1, *shape)
        torch.testing.assert_close(taken(runner, image, 4).double(), plain(network, image), rtol=0, atol=1e-5)


class _Counting:
    """A backend that notes the shapes its parts are given."""

    name, precision, device = "counting", "float32", torch.device("cpu")

    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {"enter": [], "leave": []}

    def prepare(self, net: nn.Module) -> Parts:
        parts = TorchBackend().prepare(net)
        enter, leave = parts.enter, parts.leave

        def counted_enter(x):
            self.shapes["enter"].append(tuple(x.shape))
            return enter(x)

        def counted_leave(skip, x):
            self.shapes["leave"].append(tuple(x.shape))
            return leave(skip, x)

        parts.enter, parts.leave = counted_enter, counted_leave
        return parts


@pytest.mark.parametrize("recompute", [False, True])
def test_backends_meet_one_shape_a_part_and_features_are_computed_again_only_if_asked(recompute):
    config = UNetConfig(features=2, levels=2, out_channels=3)
    backend = _Counting()
    network, image = odd_network(config, 12), torch.rand(1, 1, 22, 4, 6)
    found = taken(Runner(network, backend), image, 8, recompute=recompute)
    torch.testing.assert_close(found.double(), plain(network, image), rtol=0, atol=1e-5)
    assert set(backend.shapes["leave"]) == {(1, 4, 6, 2, 3)}
    assert backend.shapes["enter"][:3] == [(1, 1, 12, 4, 6)] * 3
    assert backend.shapes["enter"][3:] == ([(1, 1, 16, 4, 6)] * 3 if recompute else [])


@given(seed=st.integers(0, 99), scale=st.sampled_from([1.0, 30.0, 200.0, 1e4]), offset=st.sampled_from([0.0, 500.0]))
@settings(max_examples=20)
def test_softmax_is_right_for_logits_of_any_size_and_in_any_memory_order(seed, scale, offset):
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(1, 5, 3, 4, 2, generator=rng) + offset
    expected = logits.double().softmax(1)[0].permute(1, 2, 3, 0)
    for order in (torch.contiguous_format, torch.channels_last_3d):
        found = softmax_planes(logits.clone().contiguous(memory_format=order))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


def test_softmax_lets_what_is_not_a_number_show():
    logits = torch.zeros(1, 3, 2, 2, 2)
    logits[0, 1, 0, 0, 0] = float("nan")
    found = softmax_planes(logits)
    assert found[0, 0, 0].isnan().all()
    assert not found[1].isnan().any()


def test_wrong_slabs_planes_shapes_and_precisions_are_named():
    network = odd_network(UNetConfig(features=2, levels=2, out_channels=3, patch=2), 13)
    runner = Runner(network, TorchBackend())
    image = torch.rand(1, 1, 16, 4, 4)
    for slab in (3, 6, 0, -4):
        with pytest.raises(UsageError, match=rf"slab: found {slab} voxels.*multiple of 4"):
            runner.begin(image, slab=slab)
    run = runner.begin(image, slab=8)
    for start, stop in [(0, 2), (8, 20), (8, 8), (-4, 4)]:
        with pytest.raises(UsageError, match=f"found {start} to {stop} of 16"):
            run.posteriors(start, stop)
    with pytest.raises(ShapeError, match="network input"):
        runner.begin(torch.rand(1, 1, 16, 4, 6))
    with pytest.raises(UsageError, match=r"precision: found 'int8' with backend torch"):
        TorchBackend(precision="int8")


def test_a_machine_without_a_compiler_says_so(monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("\nNo working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(SynthsegError, match=r"backend compile.*No working C\+\+ compiler.*--backend torch"):
        Runner(odd_network(UNetConfig(features=2, levels=2), 14), CompileBackend())


@pytest.mark.slow
def test_compiled_parts_give_the_plain_posteriors():
    try:
        runner = Runner(odd_network(UNetConfig(features=2, levels=2, out_channels=3), 15), CompileBackend())
    except SynthsegError as error:
        pytest.skip(str(error))
    image = torch.rand(1, 1, 16, 4, 6)
    torch.testing.assert_close(taken(runner, image, 4).double(), plain(runner.network, image), rtol=0, atol=1e-5)


def test_backends_are_told_apart_by_name():
    assert [kind().name for kind in (PlainBackend, TorchBackend, CompileBackend)] == ["plain", "torch", "compile"]
    assert dataclasses.asdict(TorchBackend()) == {"device": torch.device("cpu"), "precision": "float32"}
