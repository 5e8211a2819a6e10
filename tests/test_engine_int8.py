"""8-bit arithmetic: ranges that lose little, and graphs that really use them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine_helpers import odd_network
from synthseg.engine.openvino_ops import quantised_weights
from synthseg.engine.program import head_parameters
from synthseg.engine.ranges import (
    ObservingOps,
    Range,
    best_range,
    observe,
    quantised,
    ranges_of_card,
    require_ranges,
    scaled_range,
    to_card,
)
from synthseg.engine.torch_ops import TorchOps
from synthseg.engine.whole import convolution_names, forward
from synthseg.errors import SynthsegError, WeightsError
from synthseg.networks import UNet, UNetConfig

CONFIG = UNetConfig(out_channels=3, features=16, levels=3, norm="instance")


def rows(n: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, generator=torch.Generator().manual_seed(seed))


@given(low=st.floats(-50, 0), high=st.floats(0.1, 50), symmetric=st.booleans(), seed=st.integers(0, 99))
def test_zero_stays_zero_and_values_inside_move_by_half_a_step(low, high, symmetric, seed) -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    first, last = best_range(values, symmetric=symmetric)
    step = (last - first) / 255
    assert abs(float(quantised(torch.zeros(1), first, last))) < 1e-3 * step  # float32
    inside = values[(values >= first) & (values <= last)]
    assert float((quantised(inside, first, last) - inside).abs().max()) <= 0.501 * step


def test_a_uniform_tensor_is_told_apart_from_end_to_end() -> None:
    first, last = best_range(torch.linspace(-1, 3, 4001))
    assert (first, last) == pytest.approx((-1, 3), abs=0.05)


def test_one_far_value_does_not_coarsen_the_steps_of_all_others() -> None:
    values = torch.cat([rows(100_000, 1).flatten(), torch.tensor([14.0])])
    first, last = best_range(values)
    assert last < 13
    assert first < -3
    kept, full = quantised(values, first, last), quantised(values, float(values.min()), 14.0)
    assert (kept - values).square().mean() < (full - values).square().mean()


def test_a_symmetric_range_has_one_level_more_below_zero() -> None:
    first, last = best_range(torch.linspace(-1, 3, 4001), symmetric=True)
    assert -first / last == pytest.approx(128 / 127)


def test_channels_of_unlike_size_are_scaled_until_they_resemble_each_other() -> None:
    sizes = torch.tensor([0.1, 1.0, 10.0])
    voxels = rows(5000, 3) * sizes
    found = scaled_range(voxels, torch.ones(3), symmetric=False)
    scale = torch.tensor(found.scale)

    def loss(channel: int, values: torch.Tensor, low: float, high: float) -> float:
        return float((quantised(values, low, high) - values).square().mean() / sizes[channel] ** 2)

    scaled = [loss(c, voxels[:, c] / scale[c], found.low, found.high) * float(scale[c]) ** 2 for c in range(3)]
    alone = [loss(c, voxels[:, c], *best_range(voxels.flatten())) for c in range(3)]
    assert max(scaled) < 0.1 * max(alone)


@given(axis=st.sampled_from([0, 1]), seed=st.integers(0, 99))
def test_weights_move_by_half_a_step_of_their_own_output_channel(axis: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    kernel = generator.normal(size=(3, 4, 2, 2, 2)).astype(np.float32)
    kernel *= 10.0 ** generator.integers(-3, 3, size=[n if i == axis else 1 for i, n in enumerate(kernel.shape)])
    kernel[(0, 0) if axis == 0 else (0, 1)] = 0
    whole, scale = quantised_weights(kernel, axis)
    assert whole.dtype == np.int8
    assert scale.shape[axis] == kernel.shape[axis]
    assert (np.abs(whole * scale - kernel) <= 0.501 * scale).all()


@pytest.mark.parametrize("config", [CONFIG, UNetConfig(out_channels=2, features=2, levels=2, patch=2, dropped_skips=1)])
def test_observing_changes_nothing_and_sees_every_convolution(config: UNetConfig) -> None:
    net = odd_network(config, seed=0)
    x = torch.rand(1, config.in_channels * config.patch**3, 8, 8, 16)
    ops = ObservingOps()
    with torch.inference_mode():
        torch.testing.assert_close(forward(ops, net, x), forward(TorchOps(), net, x))
    assert set(ops.seen) == set(convolution_names(net))
    first = ops.seen["down.0.0"][0]
    assert first.shape == (8 * 8 * 16, x.shape[1])
    assert torch.equal(first, x[0].flatten(1).T)


def test_a_program_in_one_go_is_the_plain_module() -> None:
    net, x = odd_network(CONFIG, seed=1), torch.rand(1, 1, 8, 12, 8)
    with torch.inference_mode():
        torch.testing.assert_close(forward(TorchOps(), net, x), net(x), atol=1e-4, rtol=1e-4)
        scale, shift = torch.rand(16), torch.rand(16)
        weight, bias = head_parameters(net, scale, shift)
        y = torch.rand(1, 16, 2, 2, 2)
        affine = y * scale.view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1)
        torch.testing.assert_close(torch.nn.functional.conv3d(y, weight, bias), net.head(affine))


def test_ranges_travel_through_a_card_unchanged() -> None:
    ranges = observe(odd_network(CONFIG, seed=2), [torch.rand(1, 1, 8, 8, 8)])
    assert "down.0.0" not in ranges
    assert "head" not in ranges
    card = json.loads(json.dumps({"int8": {"ranges": to_card(ranges)}}))
    assert ranges_of_card(card) == ranges
    assert ranges_of_card({}) is None


@pytest.mark.parametrize(
    "broken",
    [{}, {"down.0.1": [0, 1]}, {"down.0.1": {"low": 1, "high": 2, "scale": [1]}}, {"a": {"low": -1, "high": 1}},
     {"a": {"low": -1, "high": 1, "scale": [0.0]}}, {"a": {"low": -1, "high": float("nan"), "scale": [1]}}],
)  # fmt: skip
def test_malformed_ranges_name_the_file_and_how_to_make_them(broken: dict) -> None:
    with pytest.raises(WeightsError, match=r"own\.safetensors.*weights calibrate"):
        ranges_of_card({"int8": {"ranges": broken}}, "own.safetensors")


def test_ranges_of_another_network_are_refused() -> None:
    with pytest.raises(SynthsegError, match=r"up\.7\.0\.skip.*weights calibrate"):
        require_ranges(UNet(CONFIG), {"up.7.0.skip": Range(-1, 1, (1.0,))})


def test_observing_nothing_is_an_error() -> None:
    with pytest.raises(SynthsegError, match="calibration: found no images"):
        observe(UNet(CONFIG), [])


def _kernels(parts) -> list[str]:
    kinds = []
    for part in (parts._enter, parts._core, parts._leave):
        for compiled in part._compiled.values():
            for node in compiled.get_runtime_model().get_ordered_ops():
                info = node.get_rt_info()
                if info["layerType"].astype(str) in ("Convolution", "Deconvolution"):
                    kinds.append(info["primitiveType"].astype(str))
    return kinds


def test_int8_runs_8_bit_kernels_and_stays_near_float32() -> None:
    pytest.importorskip("openvino")
    from synthseg.engine.openvino_backend import OpenVinoBackend
    from synthseg.engine.runner import Runner

    net = UNet(CONFIG).eval()
    image = torch.rand(1, 1, 32, 32, 16, generator=torch.Generator().manual_seed(0))
    ranges = observe(net, [image])
    runners = [Runner(net, OpenVinoBackend(p, ranges, threads=1)) for p in ("float32", "int8")]
    with torch.inference_mode():
        exact, rough = (runner.begin(image).posteriors(0, 32) for runner in runners)
    assert (exact - rough).abs().max() < 0.15
    assert not torch.equal(exact, rough)
    assert (exact.argmax(-1) == rough.argmax(-1)).float().mean() > 0.95

    parts = OpenVinoBackend("int8", ranges, threads=1).prepare(net)
    with torch.inference_mode():
        features, pooled = parts.enter(image)
        parts.leave(features, parts.core(pooled))
    kinds = _kernels(parts)
    assert len(kinds) == len(convolution_names(net)) - 1  # the head is torch's
    assert sum(kind.lower().endswith("i8") for kind in kinds) == len(ranges)


def test_int8_without_ranges_says_how_to_make_them() -> None:
    pytest.importorskip("openvino")
    from synthseg.engine.openvino_backend import OpenVinoBackend

    with pytest.raises(SynthsegError, match=r"without calibrated ranges.*weights calibrate"):
        OpenVinoBackend("int8")


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    from synthseg.generation.bank import LabelBank
    from synthseg.labels import load_protocol

    protocol = load_protocol("synthseg-generation")
    values = np.array([label.value for label in protocol.labels])
    labels = np.random.default_rng(0).choice(values, size=(20, 20, 20))
    return LabelBank.from_maps([labels], [(8.0, 8.0, 8.0)], ["a"], protocol).save(tmp_path / "b.safetensors")


def test_calibrating_adds_ranges_and_leaves_the_tensors(tmp_path: Path, bank: Path, command: Callable) -> None:
    from synthseg.weights import load_weights

    pytest.importorskip("openvino")
    out = tmp_path / "own.safetensors"
    code, said, _ = command("weights", "calibrate", "compact", "--bank", bank, "-n", 1, "-o", out)
    assert code == 0
    assert "can run in int8" in said
    before, after = load_weights("compact"), load_weights(out)
    assert after.card["sha256"] == before.card["sha256"]
    others = [{k: v for k, v in weights.card.items() if k != "int8"} for weights in (before, after)]
    assert others[0] == others[1]
    ranges = ranges_of_card(after.card)
    assert ranges is not None
    assert after.card["int8"]["images"] == 1
    assert "up.2.0.low" in ranges


def test_calibrating_weights_that_read_more_than_an_image_asks_for_their_recipe(
    tmp_path: Path, bank: Path, command: Callable
) -> None:
    code, _, said = command(
        "weights", "calibrate", "synthseg-2mm-parcels", "--bank", bank, "-o", tmp_path / "o.safetensors"
    )
    assert code == 2
    assert "--recipe RECIPE.toml" in said


def test_a_calibrated_file_needs_the_right_suffix(tmp_path: Path, bank: Path, command: Callable) -> None:
    code, _, said = command("weights", "calibrate", "compact", "--bank", bank, "-o", tmp_path / "own.pt")
    assert code == 1
    assert "own.pt" in said
