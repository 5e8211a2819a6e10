"""A whole network as one file for other programs: ONNX or OpenVINO, checked against torch before it appears."""

from __future__ import annotations

import contextlib
import copy
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthseg.engine.onnx_ops import OPSET, OnnxOps, load_onnx
from synthseg.engine.openvino_ops import OpenVinoOps, compile_model, load_openvino
from synthseg.engine.program import can_run
from synthseg.engine.whole import forward
from synthseg.errors import OutputError, SynthsegError, UsageError
from synthseg.files import atomic_file
from synthseg.networks.unet import UNet

INPUT, OUTPUT = "image", "posteriors"
TOLERANCE = 1e-4  # largest difference of a posterior from torch's in float64
# Where torch's own float32 is further than that off (networks of few features, over noise): how many times as far.
OF_TORCHS_OWN = 4
IR_VERSION = 8  # of the ONNX file format, of the same year as the opset
Sides = tuple[int, int, int]
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Exported:
    """What was written: ``shape`` as given (None: any sides that are multiples), by which runtimes it was checked."""

    path: Path
    shape: Sides | None
    checked_by: tuple[str, ...]
    largest_difference: float


def export_onnx(net: UNet, path: Path, facts: Mapping[str, str], shape: Sides | None = None) -> Exported:
    """Write a network as ONNX: image [1, C_in, X, Y, Z] in [0, 1] -> posteriors [1, C, X, Y, Z].

    Args:
        net: in evaluation mode, on the CPU.
        facts: written along as metadata properties.
        shape: X, Y and Z fixed; None leaves them open.
    Raises: UsageError for sides that the network cannot take, SynthsegError where packages are missing or the network
        cannot be exported, OutputError for a file whose answers differ from torch's (it is not kept) or that cannot be
        written.
    """
    _require(net, path, ".onnx", shape)
    content = _onnx_model(net, facts, shape).SerializeToString()
    runs = _onnx_runs(content)
    if not runs:
        found = "neither onnxruntime nor openvino to check the file with"
        raise SynthsegError("export to ONNX", found=found, fix="pip install 'synthseg[export]'")
    largest = max(_largest_difference(net, run, path, shape) for run in runs.values())
    with atomic_file(path) as file:
        file.write(content)
    return Exported(path, shape, tuple(runs), largest)


def export_openvino(net: UNet, path: Path, facts: Mapping[str, str], shape: Sides | None = None) -> Exported:
    """Write a network for OpenVINO: NAME.xml, and NAME.bin with its weights. See :func:`export_onnx`."""
    _require(net, path, ".xml", shape)
    ov = load_openvino()
    model = _openvino_model(net, facts, shape)
    with tempfile.TemporaryDirectory(prefix="synthseg-export-") as folder:
        part = Path(folder) / path.name
        ov.serialize(model, part)
        largest = _largest_difference(net, _openvino_run(part), path, shape)
        _move_pair(part, path)
    return Exported(path, shape, ("openvino",), largest)


def require_target(path: Path) -> None:
    """Raises: OutputError where a file to export to, or the *.bin of an *.xml, cannot be written."""
    for file in (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,):
        if file.is_dir():
            raise OutputError(file, found="a folder where a file should be written", fix="give a file name inside it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        found = f"{folder}, which is {'not writable' if folder.is_dir() else 'a file, not a folder'}"
        raise OutputError(path, found=found, fix="check the folder's permissions, or write elsewhere")


def _require(net: UNet, path: Path, suffix: str, shape: Sides | None) -> None:
    if not can_run(net):
        found = "a network that is not a UNet of at least two levels"
        raise SynthsegError("export", found=found, fix="export weights of another role than quality")
    if path.suffix != suffix:
        raise UsageError(path, found=f"the suffix {path.suffix!r}", fix=f"name the file *{suffix}")
    require_target(path)
    multiple = net.config.multiple
    if shape is not None and any(side < multiple or side % multiple for side in shape):
        found = "x".join(map(str, shape))
        raise UsageError("shape", found=found, fix=f"give sides that are multiples of {multiple} voxels")


def _move_pair(part: Path, path: Path) -> None:
    """Graph and weights to their place; either both or none, and then what was there stays.

    A graph that is there goes first, and the new one comes last: killed in between, no graph stands beside weights that
    are not its own.
    """
    weights = path.with_suffix(".bin")
    with (
        _put_back_on_failure(weights),
        _put_back_on_failure(path),
        atomic_file(path) as graph,
        part.open("rb") as source,  # the graph is whole beside its place before the weights take theirs
    ):
        shutil.copyfileobj(source, graph)
        path.unlink(missing_ok=True)
        with atomic_file(weights) as file, part.with_suffix(".bin").open("rb") as values:
            shutil.copyfileobj(values, file)


@contextlib.contextmanager
def _put_back_on_failure(path: Path) -> Iterator[None]:
    """If anything fails inside, the file is what it was. Raises: OutputError where no copy of it can be kept."""
    kept = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.kept")
    there = path.exists()
    try:
        if there:
            try:
                shutil.copy2(path, kept)
            except OSError as error:
                found = f"no way to keep a copy of the one that is there ({error.strerror or error})"
                raise OutputError(path, found=found, fix="remove it, or write elsewhere") from error
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # the first failure is the one to tell about
                shutil.move(kept, path) if there else path.unlink(missing_ok=True)
            raise
    finally:
        with contextlib.suppress(OSError):
            kept.unlink(missing_ok=True)


def _onnx_model(net: UNet, facts: Mapping[str, str], shape: Sides | None) -> Any:
    helper, config = load_onnx().helper, net.config
    ops = OnnxOps()
    logits = forward(ops, net, ops.gather(INPUT, config.patch, config.in_channels))
    ops.named(ops.softmax(ops.spread(logits, config.patch, config.out_channels)), OUTPUT)
    sides: Sequence[int | str] = shape or ("X", "Y", "Z")
    kind = load_onnx().TensorProto.FLOAT
    graph = helper.make_graph(
        ops.nodes,
        "synthseg",
        [helper.make_tensor_value_info(INPUT, kind, [1, config.in_channels, *sides])],
        [helper.make_tensor_value_info(OUTPUT, kind, [1, config.out_channels, *sides])],
        ops.initializers,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="synthseg")
    helper.set_model_props(model, dict(facts))
    load_onnx().checker.check_model(model)
    return model


def _openvino_model(net: UNet, facts: Mapping[str, str], shape: Sides | None) -> Any:
    ov = load_openvino()
    from openvino import opset13 as op

    config, ops = net.config, OpenVinoOps()
    sides = ov.PartialShape([1, config.in_channels, *(shape or (-1, -1, -1))])
    image = op.parameter(sides, np.float32, name=INPUT)
    x = op.space_to_depth(image, "depth_first", config.patch).output(0) if config.patch > 1 else image.output(0)
    x = forward(ops, net, x)
    if config.patch > 1:
        x = op.depth_to_space(x, "depth_first", config.patch).output(0)
    posteriors = ops.softmax(x)
    image.output(0).tensor.set_names({INPUT})
    posteriors.tensor.set_names({OUTPUT})
    model = ov.Model([posteriors], [image], "synthseg")
    for key, value in facts.items():
        model.set_rt_info(value, ["synthseg", key])
    return model


def _onnx_runs(content: bytes) -> dict[str, Run]:
    """Ways of running an ONNX file, by the runtimes that are installed."""
    runs: dict[str, Run] = {}
    if find_spec("onnxruntime"):
        # Its builds tell a server of their use, from native code, and keep an identifier of this computer in ~/.cache
        # (onnxruntime 1.31, Privacy.md); whoever wants that sets the variable to 0.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        runs["onnxruntime"] = lambda image: np.asarray(session.run([OUTPUT], {INPUT: image})[0])
    if find_spec("openvino"):
        compiled = _compile(load_openvino().Core().read_model(content))
        runs["openvino"] = lambda image: np.asarray(compiled({INPUT: image})[OUTPUT])
    return runs


def _openvino_run(path: Path) -> Run:
    compiled = _compile(load_openvino().Core().read_model(path))
    return lambda image: np.asarray(compiled({INPUT: image})[OUTPUT])


def _compile(model: Any) -> Any:
    # Float32 also on processors with faster and coarser arithmetic: the check is of the file.
    return compile_model(model, {"INFERENCE_PRECISION_HINT": "f32"})


@torch.inference_mode()
def _largest_difference(net: UNet, run: Run, path: Path, shape: Sides | None) -> float:
    """Of a posterior from torch's in float64, over noise and something with edges.

    Raises: OutputError above the tolerance.
    """
    multiple, exact = net.config.multiple, copy.deepcopy(net).double()
    largest = 0.0
    for sides in [shape] if shape else [(multiple, multiple, multiple), (multiple, 2 * multiple, 3 * multiple)]:
        for image in _images(net.config.in_channels, sides):
            expected = torch.softmax(exact(image.double()), dim=1).numpy()
            own = float(np.abs(torch.softmax(net(image), dim=1).numpy() - expected).max())
            difference = float(np.abs(run(image.numpy()) - expected).max())
            accepted = max(TOLERANCE, OF_TORCHS_OWN * own)
            if not difference < accepted:
                found = f"posteriors that differ from torch's by {difference:.2g} (at most {accepted:.2g} is accepted)"
                fix = "nothing was written; update onnx, onnxruntime and openvino, or report these weights"
                raise OutputError(path, found=found, fix=fix)
            largest = max(largest, difference)
    return largest


def _images(channels: int, sides: Sides) -> list[Tensor]:
    noise = torch.rand(1, channels, *sides, generator=torch.Generator().manual_seed(0))
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in sides), indexing="ij")
    ball = x.square() + y.square() + z.square()
    shell = torch.where(ball > 0.5, 1.0, 0.3 + 0.3 * x) * (ball < 0.8)  # bright, around a graded core
    return [noise, shell.expand(1, channels, *sides).contiguous()]
