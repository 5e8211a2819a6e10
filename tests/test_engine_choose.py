"""Which backend is taken: by device, precision and what is installed; errors that say what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from synthseg.engine import choose as module
from synthseg.engine.choose import BACKENDS, available_backends, choose, make_backend
from synthseg.errors import SynthsegError, UsageError

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def machine(monkeypatch):
    """A machine with the packages and compilers named, and an Apple GPU."""

    def made(*installed: str, torch_version: str = "2.9.0") -> None:
        monkeypatch.setattr(module, "find_spec", lambda name: object() if name in installed else None)
        monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}" if name in installed else None)
        monkeypatch.setattr(module.torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(module.torch, "__version__", torch_version)

    return made


@pytest.mark.parametrize(
    ("device", "precision", "backend"),
    [
        (CPU, "float32", "torch"),
        (CPU, "bfloat16", "torch"),
        (CPU, "int8", "openvino"),
        (CUDA, "float32", "torch"),
        (CUDA, "bfloat16", "torch"),
        (MPS, "float32", "torch"),
    ],
)
def test_auto_takes_what_suits_device_and_precision_and_says_why(machine, device, precision, backend):
    machine("openvino", "g++")
    choice = choose("auto", precision=precision, device=device, threads=3)
    assert (choice.backend, choice.device, choice.precision, choice.threads) == (backend, device, precision, 3)
    assert choice.why.startswith(f"{backend} in {precision} on {device}: ")


def test_a_preference_that_is_not_installed_gives_way_and_that_is_said(machine, monkeypatch):
    machine()
    preferences = {("cpu", "float32"): (("openvino", "fastest"), ("torch", "always there"))}
    monkeypatch.setattr(module, "PREFERENCES", preferences)
    choice = choose("auto", precision="float32", device=CPU)
    assert choice.backend == "torch"
    assert choice.why == "torch in float32 on cpu: always there; no openvino: openvino is not installed"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_is_asked_for_and_works_is_taken(machine, backend):
    machine("openvino", "g++")
    choice = choose(backend, precision="float32", device=CPU)
    assert choice.backend == backend
    assert choice.why.endswith("asked for")


@pytest.mark.parametrize(
    ("backend", "precision", "device", "kind", "said"),
    [
        ("tf", "float32", CPU, UsageError, "backend 'tf': found an unknown name. Fix: use auto, plain, torch"),
        ("auto", "fp16", CPU, UsageError, "precision 'fp16': found an unknown name. Fix: use one of float32"),
        ("auto", "float32", torch.device("meta"), UsageError, "device 'meta': found a kind of device"),
        ("openvino", "float32", CPU, SynthsegError, r"openvino is not installed. Fix: pip install 'synthseg\[cpu\]'"),
        (
            "auto",
            "int8",
            CPU,
            SynthsegError,
            r"not installed.*Fix: pip install .*, or use --precision float32",
        ),
        (
            "compile",
            "float32",
            CPU,
            SynthsegError,
            "no C.. compiler .*Fix: install the compiler, or use",
        ),
        ("compile", "float32", CUDA, SynthsegError, "Triton is not installed"),
        ("openvino", "float32", CUDA, UsageError, "does not run on cuda. Fix: use --device cpu"),
        ("torch", "int8", CPU, UsageError, "precision int8 with backend torch: .*or --backend openvino"),
        ("auto", "int8", CUDA, UsageError, "precision int8: .* on cuda. Fix: .*--device cpu"),
        ("auto", "bfloat16", MPS, UsageError, "precision bfloat16: .* on mps. Fix: use --precision float32"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(machine, backend, precision, device, kind, said):
    machine()  # with nothing installed
    with pytest.raises(kind, match=said) as refused:
        choose(backend, precision=precision, device=device)
    assert type(refused.value) is kind


def test_an_apple_gpu_needs_a_torch_that_knows_it(machine):
    machine(torch_version="2.8.1+x")
    with pytest.raises(SynthsegError, match=r"torch 2.8.1.* lacks operations that 2.9 has.*Fix: use --device cpu"):
        choose("auto", precision="float32", device=MPS)
    machine(torch_version="2.10.0")
    assert choose("auto", precision="float32", device=MPS).backend == "torch"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="a machine with an Apple GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="device 'mps': found no Apple GPU"):
        choose("auto", precision="float32", device=MPS)


def test_every_backend_is_told_of_with_its_reason(machine):
    machine("g++")
    states = {state.name: state for state in available_backends(CPU)}
    assert list(states) == list(BACKENDS)
    assert [name for name, state in states.items() if state.usable] == ["plain", "torch", "compile"]
    assert states["openvino"].reason == "openvino is not installed"
    assert states["compile"].reason == "a C++ compiler is there (/bin/g++)"
    assert {state.name for state in available_backends(CUDA) if state.usable} == {"plain", "torch"}


def test_every_preference_is_a_backend_that_supports_it():
    for (device, precision), preferred in module.PREFERENCES.items():
        assert all(precision in module.SUPPORTED[name][device] for name, _ in preferred)


@pytest.mark.parametrize(("name", "precision"), [("plain", "float32"), ("torch", "bfloat16"), ("compile", "float32")])
def test_the_backend_made_is_the_one_chosen(machine, name, precision):
    machine("g++")
    backend = make_backend(choose(name, precision=precision, device=CPU))
    assert (backend.name, backend.precision, backend.device) == (name, precision, CPU)


def test_openvino_gets_threads_and_for_int8_the_ranges():
    pytest.importorskip("openvino")
    ranges = {"down.1.0": (-1.0, 2.0)}
    backend = make_backend(choose("openvino", precision="float32", device=CPU, threads=1), ranges=ranges)
    assert (backend.name, backend.precision, backend.threads, backend.ranges) == ("openvino", "float32", 1, None)
    backend = make_backend(choose("auto", precision="int8", device=CPU), ranges=ranges)
    assert (backend.precision, backend.ranges) == ("int8", ranges)
    with pytest.raises(SynthsegError, match="without calibrated ranges"):
        make_backend(choose("auto", precision="int8", device=CPU))


def test_looking_for_backends_loads_none_of_them():
    code = (
        "import sys, torch\nfrom synthseg.engine.choose import available_backends\n"
        "before = set(sys.modules)\navailable_backends(torch.device('cpu'))\n"
        "assert not {name.split('.')[0] for name in set(sys.modules) - before} & {'openvino', 'onnx', 'triton'}\n"
        "assert 'openvino' not in sys.modules and 'torch._inductor' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
