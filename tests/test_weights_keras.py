"""Keras files: the same answers as Keras, every array accounted for, and whatever does not fit named and refused."""

from __future__ import annotations

import builtins
import marshal
import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keras_files import Layer, encoder_shapes, unet_shapes, write_keras
from keras_helpers import Shapes, fill, tiny
from synthseg.networks import Encoder, EncoderConfig, UNet, UNetConfig
from synthseg.weights.keras import read_tensors, survey

WRITTEN = Path(__file__).with_name("data") / "keras" / "written.zip"
MAPPED = {"kernel": "weight", "bias": "bias"}
NORMED = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@pytest.fixture(scope="module")
def by_keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    with zipfile.ZipFile(WRITTEN) as packed:
        packed.extractall(folder)
    return folder


def build(path: Path, prefix: str) -> torch.nn.Module:
    network = next(network for network in survey(path).networks if network.prefix == prefix)
    settings = network.architecture
    module = (
        UNet(UNetConfig.from_dict(settings))
        if settings["kind"] == "unet"
        else Encoder(EncoderConfig.from_dict(settings))
    )
    tensors = {name: torch.from_numpy(array) for name, array in read_tensors(network).items()}
    module.load_state_dict(tensors, strict=True)
    return module.eval()


@pytest.mark.parametrize(
    ("file", "prefix"),
    [
        ("unet", "unet"),
        ("robust", "unet"),
        ("robust", "l2l"),
        ("robust", "unet2"),
        ("checkpoint", "unet"),
        ("qc", "qc"),
    ],
)
def test_networks_that_keras_wrote_give_keras_own_answers(by_keras: Path, file: str, prefix: str) -> None:
    told = np.load(by_keras / f"{file}.npz")
    seen = told[f"{prefix}_input"] if f"{prefix}_input" in told else told["image"]
    with torch.no_grad():
        answer = build(by_keras / f"{file}.h5", prefix)(torch.from_numpy(seen).movedim(-1, 1))
    if prefix != "qc":
        answer = answer.softmax(1).movedim(1, -1)
    assert told[prefix].std() > 0.05  # an answer that says something
    np.testing.assert_allclose(answer.numpy(), told[prefix], rtol=0, atol=1e-5)


def _all_names(group: h5py.Group) -> list[str]:
    names: list[str] = []
    group.visit(names.append)
    return names


def test_every_array_that_keras_wrote_is_used_and_the_rest_is_told(by_keras: Path) -> None:
    checkpoint, robust = survey(by_keras / "checkpoint.h5"), survey(by_keras / "robust.h5")
    assert (checkpoint.optimizer, robust.optimizer) == (True, False)
    assert [(network.prefix, network.arrays) for network in robust.networks] == [
        ("unet", 42),
        ("l2l", 42),
        ("unet2", 42),
    ]
    for name in ("unet", "robust", "qc", "checkpoint"):
        with h5py.File(by_keras / f"{name}.h5") as file:
            base = file.get("model_weights", file)
            stored = [name for name in _all_names(base) if isinstance(base[name], h5py.Dataset)]
        assert sum(network.arrays for network in survey(by_keras / f"{name}.h5").networks) == len(stored)


def test_nothing_in_a_file_is_executed(by_keras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(by_keras / "checkpoint.h5") as file:
        assert "Lambda" in file.attrs["model_config"]  # whose bytecode Keras would run

    def explode(*_: object, **__: object) -> None:
        raise AssertionError("something of the file was run")

    network = survey(by_keras / "checkpoint.h5").networks[0]  # imports what it needs
    for module, name in (
        (marshal, "loads"),
        (pickle, "loads"),
        (pickle, "load"),
        (builtins, "eval"),
        (builtins, "exec"),
    ):
        monkeypatch.setattr(module, name, explode)
    assert survey(by_keras / "checkpoint.h5") == survey(by_keras / "checkpoint.h5")
    assert len(read_tensors(network)) == 42 + 5


@pytest.mark.parametrize("layout", ["root", "model_weights"])
@pytest.mark.parametrize("text", ["bytes", "str"])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("suffixes", [{}, {"suffix": "_1"}, {"variable_suffix": "_12"}])
def test_all_ways_to_write_the_same_network_read_as_the_same_numbers(
    tmp_path: Path, layout: str, text: str, split: bool, suffixes: dict[str, str]
) -> None:
    extra: dict[str, Layer] = {"random_crop": {}, "label_to_image": {}}
    path, layers = tiny(tmp_path / "a.h5", layout=layout, text=text, split=split, extra=extra, **suffixes)
    _require_numbers(path, layers)


@pytest.mark.parametrize("layout", ["root", "model_weights"])
def test_files_without_lists_of_names_are_read_by_their_groups(tmp_path: Path, layout: str) -> None:
    path, layers = tiny(tmp_path / "a.h5", layout=layout)
    with h5py.File(path, "a") as file:
        base = file.get("model_weights", file)
        del base.attrs["layer_names"]
        for group in base.values():
            group.attrs.pop("weight_names", None)
    _require_numbers(path, layers)


def _require_numbers(path: Path, layers: dict[str, Layer]) -> None:
    """Each number at its place: weight[o, i, x, y, z] is kernel[x, y, z, i, o]; other arrays as they are."""
    (network,) = survey(path).networks
    tensors = read_tensors(network)
    places = {
        "conv_downarm": "down.{}.convs.{}",
        "conv_uparm": "up.{}.convs.{}",
        "bn_down": "down.{}.norm",
        "bn_up": "up.{}.norm",
    }
    used = set()
    for layer, arrays in layers.items():
        _, kind, *numbers = layer.replace("_arm", "arm").replace("conv_", "conv-").replace("bn_", "bn-").split("_")
        if not arrays:
            continue
        at = [int(number) for number in numbers]
        if "uparm" in kind:
            at[0] -= 2  # levels
        module = "head" if kind == "likelihood" else places[kind.replace("-", "_")].format(*at)
        for name, array in arrays.items():
            ours = tensors[f"{module}.{(MAPPED if 'kernel' in arrays else NORMED)[name]}"]
            assert ours.dtype == np.float32
            for where in np.ndindex(*array.shape):
                place = (where[4], where[3], *where[:3]) if name == "kernel" else where
                assert ours[place] == array[where]
            used.add(f"{module}.{(MAPPED if 'kernel' in arrays else NORMED)[name]}")
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    assert used | counters == set(tensors)


@given(
    features=st.integers(1, 3),
    levels=st.integers(1, 4),
    n_in=st.integers(1, 7),
    n_out=st.integers(1, 40),
    kernel=st.sampled_from([1, 3, 5]),
    data=st.data(),
)
def test_the_architecture_of_any_unet_is_read_off_its_arrays(
    features: int, levels: int, n_in: int, n_out: int, kernel: int, data: st.DataObject, tmp_path_factory: Any
) -> None:
    dropped = data.draw(st.integers(0, levels - 1))
    sizes = {"features": features, "levels": levels, "n_in": n_in, "n_out": n_out, "kernel": kernel}
    path = tmp_path_factory.mktemp("any") / "any.h5"
    write_keras(path, [fill(unet_shapes("unet2", skips_dropped=dropped, **sizes))])
    (network,) = survey(path).networks
    expected = UNetConfig(
        in_channels=n_in, out_channels=n_out, features=features, levels=levels, kernel=kernel, dropped_skips=dropped
    )
    assert UNetConfig.from_dict(network.architecture) == expected
    assert network.architecture == {"kind": "unet", **expected.to_dict()}
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in UNet(expected).state_dict().items()}
    assert {name: array.shape for name, array in read_tensors(network).items()} == shapes


@given(features=st.integers(1, 3), levels=st.integers(1, 3), n_in=st.integers(1, 9), kernel=st.sampled_from([1, 3, 5]))
def test_the_architecture_of_any_encoder_is_read_off_its_arrays(
    features: int, levels: int, n_in: int, kernel: int, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.h5"
    write_keras(path, [fill(encoder_shapes("qc", features=features, levels=levels, n_in=n_in, n_out=4, kernel=kernel))])
    (network,) = survey(path).networks
    expected = EncoderConfig(in_channels=n_in, out_channels=4, features=features, levels=levels, kernel=kernel)
    assert network.architecture == expected.to_dict()
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Encoder(expected).state_dict().items()}
    assert {name: array.shape for name, array in read_tensors(network).items()} == shapes


# Reference 4.2: values of each network in all, and those that are trained.
PUBLISHED = [
    (unet_shapes("unet", n_out=32), 13_242_824, 13_240_616),
    (unet_shapes("unet", n_out=33), 13_242_849, 13_240_641),
    (unet_shapes("unet", n_out=5), 13_242_149, 13_239_941),
    (unet_shapes("l2l", n_in=5, n_out=5, features=16, kernel=5, skips_dropped=2), 27_086_501, 27_085_029),
    (unet_shapes("unet2", n_in=6, n_out=33), 13_246_089, 13_243_881),
    (unet_shapes("unet_parc", n_in=3, n_out=69), 13_245_045, 13_242_837),
    (encoder_shapes("qc"), 12_450_663, 12_449_943),
]


def hollow(path: Path, shapes: Shapes) -> Path:
    """A file of full size whose numbers are all zero and take no time to write."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        for layer, arrays in shapes.items():
            group = file.create_group(f"{layer}/{layer}")
            for name, shape in arrays.items():
                space = h5py.h5s.create_simple(shape)
                h5py.h5d.create(group.id, f"{name}:0".encode(), h5py.h5t.IEEE_F32LE, space, plan)
    return path


@pytest.mark.parametrize(("shapes", "values", "trained"), PUBLISHED)
def test_the_published_networks_have_the_published_sizes(
    tmp_path: Path, shapes: Shapes, values: int, trained: int
) -> None:
    (network,) = survey(hollow(tmp_path / "full.h5", shapes)).networks
    encoder = network.prefix == "qc"
    assert network.arrays == (44 if encoder else 74)
    sizes = [(name, int(np.prod(shape))) for slot in network.slots for name, shape in slot.shapes.items()]
    assert sum(size for _, size in sizes) == values
    assert sum(size for name, size in sizes if not name.startswith("moving")) == trained
    with torch.device("meta"):
        module = (
            Encoder(EncoderConfig.from_dict(network.architecture))
            if encoder
            else UNet(UNetConfig.from_dict(network.architecture))
        )
    assert sum(tensor.numel() for name, tensor in module.state_dict().items() if "batches" not in name) == values
    assert network.architecture.get("dropped_skips", 0) == (2 if network.prefix == "l2l" else 0)


def test_a_name_that_begins_as_another_is_a_network_of_its_own(tmp_path: Path) -> None:
    sizes = {"features": 1, "levels": 2}
    prefixes = {"unet": 5, "unet2": 7, "unet_parc": 9, "l2l": 5}
    networks = [fill(unet_shapes(prefix, n_out=n, **sizes), seed=n) for prefix, n in prefixes.items()]
    found = survey(write_keras(tmp_path / "all.h5", networks)).networks
    assert {network.prefix: network.architecture["out_channels"] for network in found} == prefixes
    for layers, prefix in zip(networks, prefixes, strict=True):
        network = next(network for network in found if network.prefix == prefix)
        np.testing.assert_array_equal(read_tensors(network)["head.bias"], layers[f"{prefix}_likelihood"]["bias"])


def test_compressed_arrays_read_the_same(tmp_path: Path) -> None:
    path, layers = tiny(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        array = file["unet_conv_downarm_0_0/unet_conv_downarm_0_0/kernel:0"][()]
        del file["unet_conv_downarm_0_0/unet_conv_downarm_0_0/kernel:0"]
        file["unet_conv_downarm_0_0/unet_conv_downarm_0_0"].create_dataset(
            "kernel:0", data=array.astype(">f4"), compression="gzip", shuffle=True
        )
    _require_numbers(path, layers)
