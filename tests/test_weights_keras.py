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
from synthseg.errors import WeightsError
from synthseg.networks import Encoder, EncoderConfig, UNet, UNetConfig
from synthseg.weights.keras import NoNetworkError, read_tensors, survey

WRITTEN = Path(__file__).with_name("data") / "keras" / "written.zip"
Shapes = dict[str, dict[str, tuple[int, ...]]]
MAPPED = {"kernel": "weight", "bias": "bias"}
NORMED = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@pytest.fixture(scope="module")
def by_keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    with zipfile.ZipFile(WRITTEN) as packed:
        packed.extractall(folder)
    return folder


def fill(shapes: Shapes, seed: int = 0) -> dict[str, Layer]:
    """A number of its own in every place of every array."""
    rng = np.random.default_rng(seed)
    return {
        layer: {
            name: rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32) for name, shape in a.items()
        }
        for layer, a in shapes.items()
    }


def tiny(path: Path, **options: Any) -> tuple[Path, dict[str, Layer]]:
    layers = fill(unet_shapes("unet", features=2, levels=2, n_out=4))
    return write_keras(path, [layers], **options), layers


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


def remove_layer(file: h5py.File, layer: str, _: str) -> None:
    del file[layer]
    file.attrs["layer_names"] = [name for name in file.attrs["layer_names"] if name.decode() != layer]


def rename_layer(file: h5py.File, layer: str, _: str) -> None:
    file.move(layer, f"{layer}_copy")
    names = file.attrs["layer_names"].astype("S99")
    file.attrs["layer_names"] = np.where(names == layer.encode(), f"{layer}_copy".encode(), names)


def unlist_layer(file: h5py.File, layer: str, _: str) -> None:
    del file[layer]


def remove_array(file: h5py.File, layer: str, name: str) -> None:
    del file[layer][f"{layer}/{name}:0"]


def forget_array(file: h5py.File, layer: str, name: str) -> None:
    remove_array(file, layer, name)
    names = file[layer].attrs["weight_names"]
    file[layer].attrs["weight_names"] = names[names != f"{layer}/{name}:0".encode()]


def swap_list(file: h5py.File, layer: str, _: str) -> None:
    file[layer].attrs["weight_names"] = file[layer].attrs["weight_names"][::-1]


def rename_array(file: h5py.File, layer: str, name: str) -> None:
    file[layer].move(f"{layer}/{name}:0", f"{layer}/param:0")
    names = file[layer].attrs["weight_names"].astype("S99")
    file[layer].attrs["weight_names"] = np.where(
        names == f"{layer}/{name}:0".encode(), f"{layer}/param:0".encode(), names
    )


def add_array(file: h5py.File, layer: str, _: str) -> None:
    file[layer].create_dataset("more/kernel:0", data=np.zeros(3, np.float32))


def replace(file: h5py.File, layer: str, name: str, array: np.ndarray) -> None:
    remove_array(file, layer, name)
    file[layer].create_dataset(f"{layer}/{name}:0", data=array)


def wider(file: h5py.File, layer: str, name: str) -> None:
    old = file[layer][f"{layer}/{name}:0"][()]
    replace(file, layer, name, np.concatenate([old, old[..., :1]], -1))


def other_axes(file: h5py.File, layer: str, name: str) -> None:
    replace(file, layer, name, file[layer][f"{layer}/{name}:0"][()][None])


def doubles(file: h5py.File, layer: str, name: str) -> None:
    replace(file, layer, name, file[layer][f"{layer}/{name}:0"][()].astype(np.float64))


def whole_numbers(file: h5py.File, layer: str, name: str) -> None:
    replace(file, layer, name, file[layer][f"{layer}/{name}:0"][()].astype(np.int32))


def not_a_number(file: h5py.File, layer: str, name: str) -> None:
    file[layer][f"{layer}/{name}:0"][..., 0] = np.nan


DAMAGES = (
    remove_layer, rename_layer, unlist_layer, remove_array, forget_array, swap_list, rename_array, add_array, wider,
    other_axes, doubles, whole_numbers, not_a_number,
)  # fmt: skip
KINDS = {
    "unet": fill(unet_shapes("unet", features=2, levels=3, n_out=4)),
    "l2l": fill(unet_shapes("l2l", features=2, levels=3, n_in=4, n_out=4, skips_dropped=1)),
    "qc": fill(encoder_shapes("qc", features=2, levels=2, n_in=9, kernel=3)),
}


@given(data=st.data(), damage=st.sampled_from(DAMAGES), kind=st.sampled_from(sorted(KINDS)))
def test_any_array_or_layer_that_is_not_as_it_must_be_is_refused_by_name(
    data: st.DataObject, damage: Any, kind: str, tmp_path_factory: Any
) -> None:
    layers = KINDS[kind]
    layer = data.draw(st.sampled_from([name for name, arrays in layers.items() if arrays]))
    name = data.draw(st.sampled_from(list(layers[layer])))
    path = write_keras(tmp_path_factory.mktemp("broken") / "broken.h5", [layers])
    with h5py.File(path, "a") as file:
        damage(file, layer, name)
    with pytest.raises(WeightsError) as told:
        read_tensors(survey(path).networks[0])
    assert str(told.value).startswith(f"{path}: found ")
    assert layer in str(told.value)
    assert "\n" not in str(told.value)


def test_a_negative_variance_is_refused(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["unet_bn_down_0/unet_bn_down_0/moving_variance:0"][0] = -1
    with pytest.raises(WeightsError, match="negative variance in layer 'unet_bn_down_0'"):
        read_tensors(survey(path).networks[0])


def test_weights_of_other_layers_are_refused_beside_a_network_and_alone(tmp_path: Path) -> None:
    strange: dict[str, Layer] = {"dense_3": {"kernel": np.zeros((2, 2), np.float32)}}
    path, _ = tiny(tmp_path / "a.h5", extra=strange)
    with pytest.raises(WeightsError, match="weights in the layer 'dense_3', which no network of SynthSeg has"):
        survey(path)
    with pytest.raises(NoNetworkError, match=r"b\.h5: found no layer of a SynthSeg network"):
        survey(write_keras(tmp_path / "b.h5", [strange]))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_says_so(tmp_path: Path, share: float) -> None:
    path, _ = tiny(tmp_path / "cut.h5")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError, match=r"cut\.h5: found [\d,]+ bytes that are not a whole HDF5 file .*cut off"):
        survey(path)


def test_a_text_under_the_name_of_a_keras_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_text("<html>404: the file has moved</html>")
    with pytest.raises(WeightsError, match=r"model\.h5: found 36 bytes that are not a whole HDF5 file"):
        survey(tmp_path / "model.h5")


def test_a_missing_h5py_is_told_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = tiny(tmp_path / "a.h5")
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "h5py":
            raise ImportError("no h5py")
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(WeightsError, match=r'no h5py to read it with. Fix: pip install "synthseg\[keras\]"'):
        survey(path)


LAYER = "unet_conv_downarm_0_0"
PLACE = f"{LAYER}/{LAYER}"


def link_out(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "secret.h5", "w") as other:
        other["kernel"] = file[f"{PLACE}/kernel:0"][()]
    del file[f"{PLACE}/kernel:0"]
    file[f"{PLACE}/kernel:0"] = h5py.ExternalLink(str(folder / "secret.h5"), "/kernel")


def link_within(file: h5py.File, _: Path) -> None:
    file.move(f"{PLACE}/kernel:0", "/unet_input/there")
    file[f"{PLACE}/kernel:0"] = h5py.SoftLink("/unet_input/there")


def layer_elsewhere(file: h5py.File, folder: Path) -> None:
    del file[LAYER]
    file[LAYER] = h5py.ExternalLink(str(folder / "secret.h5"), "/")


def numbers_elsewhere(file: h5py.File, folder: Path) -> None:
    array = file[f"{PLACE}/kernel:0"][()]
    array.tofile(folder / "raw.bin")
    del file[f"{PLACE}/kernel:0"]
    file[PLACE].create_dataset("kernel:0", array.shape, "f4", external=[(str(folder / "raw.bin"), 0, array.nbytes)])


def virtual(file: h5py.File, folder: Path) -> None:
    shape = file[f"{PLACE}/kernel:0"].shape
    with h5py.File(folder / "secret.h5", "w") as other:
        other["kernel"] = file[f"{PLACE}/kernel:0"][()]
    del file[f"{PLACE}/kernel:0"]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(str(folder / "secret.h5"), "kernel", shape)
    file[PLACE].create_virtual_dataset("kernel:0", layout)


def reference(file: h5py.File, _: Path) -> None:
    del file[f"{PLACE}/bias:0"]
    file[PLACE].create_dataset("bias:0", data=[file.ref, file.ref], dtype=h5py.ref_dtype)


def absurd(file: h5py.File, _: Path) -> None:
    del file[f"{PLACE}/kernel:0"]
    file[PLACE].create_dataset("kernel:0", (3, 3, 3, 10**6, 10**6), "f4", chunks=(1, 1, 1, 1, 1000))


def never_written(file: h5py.File, _: Path) -> None:
    shape = file[f"{PLACE}/kernel:0"].shape
    del file[f"{PLACE}/kernel:0"]
    file[PLACE].create_dataset("kernel:0", shape, "f4")  # space for numbers, none of them there


def half_written(file: h5py.File, _: Path) -> None:
    shape = file[f"{PLACE}/kernel:0"].shape
    del file[f"{PLACE}/kernel:0"]
    file[PLACE].create_dataset("kernel:0", shape, "f4", chunks=(1, *shape[1:]))[0] = 1


def group_in_itself(file: h5py.File, _: Path) -> None:
    file[f"{PLACE}/again"] = file[PLACE]


def names_that_are_none(file: h5py.File, _: Path) -> None:
    file[LAYER].attrs["weight_names"] = np.arange(4.0)


def references_for_names(file: h5py.File, _: Path) -> None:
    file[LAYER].attrs.create("weight_names", [file.ref, file.ref], dtype=h5py.ref_dtype)


def stray_array(file: h5py.File, _: Path) -> None:
    file["kernel:0"] = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("trick", "message"),
    [
        (link_out, f"a link to another file at /{PLACE}/kernel:0, which is not followed"),
        (link_within, f"a link to another place at /{PLACE}/kernel:0"),
        (layer_elsewhere, f"a link to another file at /{LAYER}"),
        (numbers_elsewhere, f"numbers kept outside the file, or packed in another way, at /{PLACE}/kernel:0"),
        (virtual, f"numbers kept outside the file, or packed in another way, at /{PLACE}/kernel:0"),
        (reference, f"numbers of type object in /{PLACE}/bias:0, not float32"),
        (absurd, f"an array of 108,000,000,000,000 bytes at /{PLACE}/kernel:0"),
        (never_written, f"0 of 216 bytes of /{PLACE}/kernel:0"),
        (half_written, f"1 of 3 chunks of /{PLACE}/kernel:0"),
        (group_in_itself, f"groups more than 8 deep in /{LAYER}/"),
        (names_that_are_none, f"an attribute weight_names at /{LAYER} that is no list of names"),
        (references_for_names, f"an attribute weight_names at /{LAYER} that is no list of names"),
        (stray_array, "an array 'kernel:0' outside any layer"),
    ],
)
def test_nothing_outside_the_file_and_nothing_absurd_is_read(tmp_path: Path, trick: Any, message: str) -> None:
    path, _ = tiny(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        trick(file, tmp_path)
    with pytest.raises(WeightsError) as told:
        survey(path)
    assert f"a.h5: found {message}" in str(told.value)


def test_compressed_arrays_read_the_same(tmp_path: Path) -> None:
    path, layers = tiny(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        array = file[f"{PLACE}/kernel:0"][()]
        del file[f"{PLACE}/kernel:0"]
        file[PLACE].create_dataset("kernel:0", data=array.astype(">f4"), compression="gzip", shuffle=True)
    _require_numbers(path, layers)
