"""Exported networks answer as torch does, in other programs, at any size; wrong files never appear."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_helpers import odd_network
from synthseg.engine import export
from synthseg.engine.export import export_onnx, export_openvino
from synthseg.errors import OutputError, SynthsegError, UsageError
from synthseg.labels import load_protocol
from synthseg.networks import Encoder, EncoderConfig, UNet, UNetConfig
from synthseg.weights import make_card, save_weights
from synthseg.weights.export import export_weights

SMALL = UNetConfig(out_channels=3, features=3, levels=3)
CONFIGS = {
    "batch": SMALL,
    "instance": dataclasses.replace(SMALL, norm="instance"),
    "patch": dataclasses.replace(SMALL, norm="instance", patch=2, levels=2, in_channels=2),
    "dropped": dataclasses.replace(SMALL, dropped_skips=2, kernel=5),
}


def expected(net: UNet, image: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return net(image).softmax(1).numpy()


def image_for(config: UNetConfig, sides=(2, 1, 3)) -> torch.Tensor:
    return torch.rand(1, config.in_channels, *(side * config.multiple for side in sides))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_onnx_answers_as_torch_at_any_size(config: UNetConfig, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    net = odd_network(config, seed=1)
    done = export_onnx(net, tmp_path / "net.onnx", {"spacing_mm": "2"})
    session = runtime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"spacing_mm": "2"}
    for sides in ((1, 1, 1), (2, 1, 3)):
        image = image_for(config, sides)
        found = session.run(["posteriors"], {"image": image.numpy()})[0]
        assert np.abs(found - expected(net, image)).max() < 1e-4
    assert "onnxruntime" in done.checked_by
    assert 0 < done.largest_difference < 1e-4


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_openvino_answers_as_torch_at_any_size(config: UNetConfig, tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    net = odd_network(config, seed=2)
    export_openvino(net, tmp_path / "net.xml", {"spacing_mm": "2", "name": "toy"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.bin", "net.xml"]
    model = ov.Core().read_model(tmp_path / "net.xml")
    assert model.get_rt_info(["synthseg", "spacing_mm"]).astype(str) == "2"
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for sides in ((1, 1, 1), (2, 1, 3)):
        image = image_for(config, sides)
        assert np.abs(compiled({"image": image.numpy()})["posteriors"] - expected(net, image)).max() < 1e-4


def test_sides_can_be_fixed(tmp_path: Path) -> None:
    onnx, ov = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    net = odd_network(SMALL, seed=3)
    export_onnx(net, tmp_path / "net.onnx", {}, (4, 8, 12))
    shape = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape
    assert [side.dim_value for side in shape.dim] == [1, 1, 4, 8, 12]
    export_openvino(net, tmp_path / "net.xml", {}, (4, 8, 12))
    assert list(ov.Core().read_model(tmp_path / "net.xml").outputs[0].shape) == [1, 3, 4, 8, 12]


@pytest.mark.parametrize(("suffix", "write"), [(".onnx", export_onnx), (".xml", export_openvino)])
def test_a_file_that_answers_otherwise_is_not_kept(suffix, write, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    other = odd_network(SMALL, seed=5)
    monkeypatch.setattr(export, "forward", lambda ops, _net, x, forward=export.forward: forward(ops, other, x))
    old = tmp_path / f"net{suffix}"
    old.write_text("what was there")
    with pytest.raises(OutputError, match=rf"net\{suffix}.*differ from torch's by"):
        write(odd_network(SMALL, seed=4), old, {})
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_text() == "what was there"


def test_sides_that_the_network_cannot_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"4x6x8.*multiples of 4"):
        export_onnx(UNet(SMALL).eval(), tmp_path / "net.onnx", {}, (4, 6, 8))


@pytest.mark.parametrize(("package", "write"), [("onnx", export_onnx), ("openvino", export_openvino)])
def test_missing_packages_name_what_to_install(package, write, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    suffix, extra = {"onnx": (".onnx", "export"), "openvino": (".xml", "cpu")}[package]
    with pytest.raises(SynthsegError, match=rf"pip install 'synthseg\[{extra}\]'"):
        write(UNet(SMALL).eval(), tmp_path / f"net{suffix}", {})


@pytest.fixture
def own(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, out_channels=33, levels=2)
    card = make_card("own", config.to_dict(), load_protocol("synthseg-2.0"), spacing_mm=2.0, facts={"licence": "mine"})
    return save_weights(tmp_path / "own.safetensors", UNet(config).state_dict(), card)


def test_the_command_writes_both_forms_and_the_facts_of_the_card(own: Path, tmp_path: Path, command: Callable) -> None:
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    out = tmp_path / "new"
    code, said, _ = command("weights", "export", own, "--onnx", out / "own.onnx", "--openvino", out / "own.xml")
    assert code == 0
    assert "own.onnx: posteriors within" in said
    assert "spacing_mm: 2" in said
    facts = {entry.key: entry.value for entry in onnx.load(out / "own.onnx").metadata_props}
    protocol = load_protocol("synthseg-2.0")
    assert json.loads(facts["values"]) == [int(value) for value in protocol.target_values]
    assert json.loads(facts["structures"])[:2] == ["background", "left cerebral white matter"]
    assert (facts["licence"], facts["role"], facts["multiple"]) == ("mine", "structures", "2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --onnx FILE or --openvino FILE"),
        (["--onnx", "net.xml"], r"name the file \*.onnx"),
        (["--openvino", "net.onnx"], r"name the file \*.xml"),
        (["--onnx", "net.onnx", "--shape", "64"], "three whole numbers"),
        (["--onnx", "net.onnx", "--shape", "7,8,8"], "multiples of 2"),
    ],
)
def test_what_cannot_be_exported_is_a_usage_error(
    own: Path, tmp_path: Path, monkeypatch, command: Callable, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = command("weights", "export", own, *arguments)
    assert code == 2
    assert said.replace("\\", "") in error
    assert not list(tmp_path.glob("net.*"))


def test_a_network_that_gives_scores_is_refused(tmp_path: Path, command: Callable) -> None:
    config = EncoderConfig()
    groups = load_protocol("quality-groups")
    card = make_card("r", {**config.to_dict(), "kind": "encoder"}, groups, spacing_mm=2.0, facts={"role": "quality"})
    path = save_weights(tmp_path / "r.safetensors", Encoder(config).state_dict(), card)
    code, _, error = command("weights", "export", path, "--onnx", tmp_path / "r.onnx")
    assert code == 1
    assert "another role than quality" in error


@pytest.mark.slow
@pytest.mark.parametrize("shape", [None, (48, 64, 48)])
def test_the_shipped_network_is_exported_in_both_forms(shape, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    for name in ("net.onnx", "net.xml"):
        done, _ = export_weights("default", tmp_path / name, shape)
        assert done.path.is_file()


@pytest.mark.parametrize("there", [True, False])
def test_weights_are_put_back_when_their_graph_cannot_follow(there: bool, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("openvino")
    files = [tmp_path / "net.xml", tmp_path / "net.bin"]
    if there:
        for file in files:
            file.write_text(f"the old {file.suffix}")
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if Path(target).suffix == ".xml":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError, match=r"net\.xml.*No space left"):
        export_openvino(odd_network(SMALL, seed=6), files[0], {})
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == ({file.name: f"the old {file.suffix}" for file in files} if there else {})


def test_no_file_is_written_when_one_of_two_targets_cannot_be(own: Path, tmp_path: Path, command: Callable) -> None:
    out = tmp_path / "new"
    (out / "own.bin").mkdir(parents=True)
    code, _, error = command("weights", "export", own, "--onnx", out / "own.onnx", "--openvino", out / "own.xml")
    assert code == 1
    assert "own.bin" in error
    assert [path.name for path in out.iterdir()] == ["own.bin"]
    blocked = own / "net.onnx"
    code, _, error = command("weights", "export", own, "--onnx", blocked)
    assert code == 1
    assert "not a folder" in error
