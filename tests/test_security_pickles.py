"""Files that hold programs, under every name that a reader takes: refused or read as what they are, never run."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from security_helpers import Bomb, bomb
from synthseg.cohort.inputs import gather
from synthseg.cohort.tables import read_participants
from synthseg.errors import SynthsegError
from synthseg.evaluation import gather_pairs, read_long
from synthseg.generation import LabelBank, PairDraw
from synthseg.generation.map_weights import read_map_weights
from synthseg.generation.priors.arrays import read_mixture
from synthseg.inference.discovery import discover
from synthseg.inference.original.scan import read_scan
from synthseg.inference.record import read_record
from synthseg.labels import load_protocol
from synthseg.labels.arrays import read_npy
from synthseg.labels.original import load_npy_protocol
from synthseg.training import load_recipe
from synthseg.training.checkpoint import read_shards
from synthseg.volumes import read_volume
from synthseg.volumes.channels import read_channels
from synthseg.weights import import_keras, load_weights
from synthseg.weights.card import read_card
from synthseg.weights.hdf5 import open_keras, read_layers
from synthseg.weights.original import offers

NAMES = (
    *("a.npz", "a.npy", "a.nii", "a.nii.gz", "a.mgz", "a.mgh", "a.pt", "a.pth", "a.ckpt", "a.pkl", "a.h5", "a.keras"),
    *("a.safetensors", "a.tsv", "a.csv", "a.toml", "a.json", "a.dcm", "a.zip", "a.txt"),
)


def _plain(mark: Path) -> bytes:
    return bomb(mark)


def _protocol_0(mark: Path) -> bytes:
    return pickle.dumps(Bomb(mark), protocol=0)  # text: no byte tells it from a table


def _array(mark: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    return file.getvalue()


def _pickled_npy(mark: Path) -> bytes:
    return pickle.dumps(np.array([Bomb(mark)], dtype=object))  # what np.load(allow_pickle=True) takes for an array


def _arrays(mark: Path) -> bytes:
    file = io.BytesIO()
    objects = np.array([[[Bomb(mark)]]], dtype=object)
    np.savez(file, vol_data=objects, affine=objects, arr_0=objects)
    return file.getvalue()


def _affine_only(mark: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, vol_data=np.zeros((4, 4, 4), np.float32), affine=np.full((4, 4), Bomb(mark), dtype=object))
    return file.getvalue()


def _torch(mark: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": Bomb(mark), "w": torch.zeros(2)}, file)
    return file.getvalue()


def _torch_legacy(mark: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": Bomb(mark)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _hdf5(mark: Path) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as made:
        made.attrs["layer_names"] = [b"conv"]
        group = made.create_group("conv")
        group.attrs["weight_names"] = [b"kernel:0"]
        group["kernel:0"] = np.void(bomb(mark))
        group.attrs["pickled"] = np.void(bomb(mark))
        made.attrs["model_config"] = bomb(mark).hex()  # Keras would look for a Lambda layer here
    return file.getvalue()


def _safetensors(mark: Path) -> bytes:
    header = b'{"__metadata__":{"card":"x"},"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
    body = bomb(mark)
    text = header % (len(body), len(body))
    return len(text).to_bytes(8, "little") + text + body


def _zipped(mark: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in ("data.pkl", "archive/data.pkl", "a.dcm", "vol_data.npy", "__main__.py"):
            made.writestr(name, bomb(mark))
    return file.getvalue()


FORMS = (
    *(_plain, _protocol_0, _array, _pickled_npy, _arrays, _affine_only, _torch, _torch_legacy, _hdf5, _safetensors),
    _zipped,
)


def _layers(path: Path) -> object:
    with open_keras(path) as file:
        return read_layers(file, path)


def _mixture(path: Path) -> object:
    return read_mixture({"means": str(path), "stds": str(path)}, kind="uniform", folder=path.parent, where="mixture")


READERS: dict[str, Callable[[Path], object]] = {
    "volume": read_volume,
    "labels": lambda path: read_volume(path, labels=True),
    "channels": lambda path: read_channels(path, 2),
    "the original's scan": read_scan,
    "protocol": load_protocol,
    "the original's list": read_npy,
    "the original's lists": load_npy_protocol,
    "priors": _mixture,
    "weights": load_weights,
    "card": read_card,
    "Keras": offers,
    "Keras import": lambda path: import_keras(path, path.parent / "imported"),
    "Keras layers": _layers,
    "bank": LabelBank.load,
    "draw": PairDraw.load,
    "map weights": read_map_weights,
    "recipe": load_recipe,
    "checkpoint": lambda path: read_shards(path, format_name="any"),
    "record": read_record,
    "scores": read_long,
    "participants": read_participants,
    "inputs": lambda path: gather([path], path.parent / "work"),
    "scans": lambda path: discover([path]),
    "pairs": lambda path: gather_pairs(path, path),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.strip("_"))
def test_the_bombs_go_off_where_they_are_unpickled(tmp_path: Path, form: Callable[[Path], bytes]) -> None:
    """Or the tests below would prove nothing."""
    mark = tmp_path / "mark"
    content = form(mark)
    if form in (_array, _arrays, _affine_only):
        loaded = np.load(io.BytesIO(content), allow_pickle=True)
        _ = loaded["affine"] if form in (_arrays, _affine_only) else loaded
    elif form in (_torch, _torch_legacy):
        torch.load(io.BytesIO(content), weights_only=False)
    else:
        pickle.loads(content[max(content.find(bomb(mark)), 0) :])
    assert mark.is_dir()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.strip("_"))
def test_no_reader_runs_what_is_in_a_file(tmp_path: Path, form: Callable[[Path], bytes]) -> None:
    mark = tmp_path / "mark"
    content = form(mark)
    folder = tmp_path / "files"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(content)
        for what, read in READERS.items():
            with contextlib.suppress(SynthsegError):  # anything else is a defect, also a call of ours that is wrong
                read(folder / name)
            assert not mark.exists(), (what, name)


def test_lists_and_checkpoints_in_folders_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("generation_labels", "segmentation_labels", "segmentation_names", "topological_classes"):
        (lists / f"{name}.npy").write_bytes(_array(mark))
    with pytest.raises(SynthsegError, match="pickled objects, which may hold a program and are never loaded"):
        load_npy_protocol(lists)
    step = tmp_path / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    (step / "index.json").write_bytes(bomb(mark))
    (step / "0000.safetensors").write_bytes(bomb(mark))
    with pytest.raises(SynthsegError):
        READERS["checkpoint"](step)
    assert not mark.exists()
