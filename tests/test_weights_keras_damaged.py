"""Keras files that are damaged, hostile or something else: each is refused in a sentence that names its layer."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_files import Layer, encoder_shapes, unet_shapes, write_keras
from keras_helpers import fill, tiny
from synthseg.errors import WeightsError
from synthseg.weights.keras import NoNetworkError, read_tensors, survey


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
