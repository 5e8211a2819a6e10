"""OpenVINO gives the plain module's numbers, in memory that nothing else writes to."""

import dataclasses
import subprocess
import sys

import pytest
import torch

pytest.importorskip("openvino")

from engine_helpers import odd_network
from synthseg.engine import openvino_ops
from synthseg.engine.backend import Backend, Parts
from synthseg.engine.openvino_backend import OpenVinoBackend
from synthseg.engine.runner import Runner
from synthseg.engine.torch_backend import TorchBackend
from synthseg.errors import SynthsegError, UsageError
from synthseg.networks import UNetConfig

SMALL = UNetConfig(out_channels=3, features=3, levels=3)
CONFIGS = {
    "batch": SMALL,
    "instance": dataclasses.replace(SMALL, norm="instance"),
    "patch": dataclasses.replace(SMALL, norm="instance", patch=2, levels=2),
    "dropped": dataclasses.replace(SMALL, dropped_skips=2),
    "kernel 5": dataclasses.replace(SMALL, kernel=5, levels=2),
    "kernel 1, one convolution, two inputs": dataclasses.replace(SMALL, kernel=1, convs_per_level=1, in_channels=2),
    "three convolutions": dataclasses.replace(SMALL, convs_per_level=3, features=4, norm="instance"),
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def image_for(config: UNetConfig, sides=(3, 2, 1)) -> torch.Tensor:
    shape = [side * config.multiple for side in sides]
    return torch.rand(1, config.in_channels, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("slab", [None, 4])
def test_posteriors_are_those_of_the_plain_module(config: UNetConfig, slab: int | None) -> None:
    net, image = odd_network(config, seed=1), image_for(config)
    expected = net(image).double().softmax(1)[0].permute(1, 2, 3, 0)
    width = image.shape[2]
    step = width if slab is None else slab * config.patch
    run = Runner(net, OpenVinoBackend(threads=1)).begin(image, slab=None if slab is None else step)
    found = torch.cat([run.posteriors(start, min(start + step, width)) for start in range(0, width, step)])
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_part_is_that_of_torch(config: UNetConfig) -> None:
    net = odd_network(config, seed=2)
    ours, theirs = (b.prepare(net) for b in (OpenVinoBackend(threads=1), TorchBackend()))
    n = config.in_channels * config.patch**3
    x, (features, pooled) = torch.rand(1, n, 8, 12, 16), (torch.empty(0), torch.empty(0))
    (features, pooled), expected = theirs.enter(x), ours.enter(x)
    torch.testing.assert_close(expected, (features, pooled), atol=1e-4, rtol=1e-4)
    skip = None if config.dropped_skips else features
    core = theirs.core(pooled)
    torch.testing.assert_close(ours.core(pooled), core, atol=1e-3, rtol=1e-4)
    left = theirs.leave(None if skip is None else skip.clone(), core)
    torch.testing.assert_close(ours.leave(skip, core), left, atol=1e-3, rtol=1e-4)


def test_results_are_channels_last_and_stay_when_a_part_runs_again() -> None:
    parts: Parts = OpenVinoBackend(threads=1).prepare(odd_network(SMALL, seed=3))
    first = parts.enter(torch.zeros(1, 1, 4, 8, 12))
    kept = [tensor.clone() for tensor in first]
    again = parts.enter(torch.ones(1, 1, 4, 8, 12))
    for tensor, copy, other in zip(first, kept, again, strict=True):
        assert torch.equal(tensor, copy)
        assert not torch.equal(tensor, other)
        assert tensor.permute(0, 2, 3, 4, 1).is_contiguous()


def test_a_slab_of_channels_last_memory_is_read_where_it_lies_and_left_as_it_is() -> None:
    parts = OpenVinoBackend(threads=1).prepare(odd_network(SMALL, seed=3))
    whole = torch.rand(1, 9, 8, 12, 1).permute(0, 4, 1, 2, 3)
    before = whole.clone()
    part, copied = whole[:, :, 3:7], whole[:, :, 3:7].clone(memory_format=torch.contiguous_format)
    for found, expected in zip(parts.enter(part), parts.enter(copied), strict=True):
        assert torch.equal(found, expected)  # also: the same again
    assert torch.equal(whole, before)


def test_more_shapes_than_are_kept_give_what_they_gave_before() -> None:
    parts = OpenVinoBackend(threads=1).prepare(odd_network(SMALL, seed=4))
    images = [torch.rand(1, 1, side, 4, 4) for side in (2, 4, 6, 8, 10, 12)]
    first = [parts.enter(image)[0] for image in images]
    for image, features in zip(images, first, strict=True):
        assert torch.equal(parts.enter(image)[0], features)


def test_it_is_a_backend_on_the_cpu() -> None:
    backend: Backend = OpenVinoBackend()
    assert (backend.name, backend.precision, str(backend.device)) == ("openvino", "float32", "cpu")


def test_bfloat16_is_near_float32() -> None:
    net, image = odd_network(SMALL, seed=5), image_for(SMALL)
    exact, rough = (
        Runner(net, OpenVinoBackend(p, threads=1)).begin(image).posteriors(0, image.shape[2])
        for p in ("float32", "bfloat16")
    )
    assert (exact - rough).abs().mean() < 0.02


def test_an_unknown_precision_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"float16.*float32, bfloat16, int8"):
        OpenVinoBackend("float16")


def test_a_missing_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SynthsegError, match=r"backend openvino.*pip install 'synthseg\[cpu\]'"):
        openvino_ops.load_openvino()


def test_importing_the_engine_loads_neither_openvino_nor_onnx() -> None:
    code = (
        "import sys, synthseg.engine.openvino_backend, synthseg.engine.export; "
        "print([m for m in ('openvino', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


INTERRUPTED = """
import signal, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
from synthseg.engine.openvino_backend import OpenVinoBackend
from synthseg.networks.unet import UNet, UNetConfig

parts = OpenVinoBackend(threads=1).prepare(UNet(UNetConfig(features=2, levels=2)).eval())
parts.enter(torch.zeros(1, 1, 4, 4, 4))
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_compiling_is_an_interrupt_and_not_a_crash():
    # OpenVINO leaves a signal stack too small for processors with wide registers: a process of its own shows it.
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr
