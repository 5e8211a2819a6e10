"""Targets: weights, label banks, draws, packed validation scans, checkpoints, and the original's files and lists."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from fuzz.harness import Target
from fuzz.mutate import any_bytes
from fuzz.tensors import structured_hdf5, structured_json, structured_safetensors
from fuzz.zips import structured_npy
from synthseg.errors import SynthsegError
from synthseg.generation import LabelBank
from synthseg.generation.draws import PairDraw
from synthseg.generation.prior_files import ClassColumn
from synthseg.generation.priors.arrays import read_mixture
from synthseg.generation.replay import read_origin
from synthseg.labels.original import load_npy_protocol, outputs_from_npy
from synthseg.labels.protocol import load_protocol
from synthseg.networks import UNet, UNetConfig
from synthseg.training.checkpoint import load_checkpoint, save_checkpoint
from synthseg.training.validation import ValidationSet, load_validation
from synthseg.weights import load_weights, save_weights, verify_weights
from synthseg.weights.card import make_card, read_card
from synthseg.weights.original import offers, read_offer
from synthseg.weights.store import card_of, locate

SMALL = UNetConfig(out_channels=33, features=2, levels=2, convs_per_level=1)
LABELS = load_protocol("synthseg-generation")


def _network() -> UNet:
    torch.manual_seed(0)
    return UNet(SMALL).eval()


def _weights_seeds(folder: Path) -> list[Path]:
    card = make_card("tiny", SMALL.to_dict(), load_protocol("synthseg-2.0"), spacing_mm=2.0, facts={"steps": 3})
    extra = {**card, "flip": False, "organ": "heart", "ct_window": [-100, 900], "temperature": 1.5}
    return [
        save_weights(folder / "tiny.safetensors", _network().state_dict(), card),
        save_weights(folder / "half.safetensors", _network().state_dict(), extra, half=True),
    ]


def _weights(path: Path) -> None:
    read_card(path)
    card_of(locate(path))
    weights = load_weights(path)
    verify_weights(path)
    assert all(tensor.dtype == torch.float32 for tensor in weights.tensors.values() if tensor.is_floating_point())


def structured_weights(rng: random.Random, content: bytes) -> bytes:
    """As any safetensors file; afterwards the card's hash of the tensors is mended at times, so that it is used."""
    changed = structured_safetensors(rng, content)
    return _mended(changed) if rng.random() < 0.3 else changed


def _mended(content: bytes) -> bytes:
    from safetensors.torch import load, save

    from synthseg.weights.files import hash_tensors

    try:
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        tensors = load(content)
        key = next(name for name, value in metadata.items() if value.startswith("{"))
        text = json.dumps({**json.loads(metadata[key]), "sha256": hash_tensors(tensors)})
        old = hashlib.sha256(metadata[key].encode()).hexdigest()
        metadata = {n: hashlib.sha256(text.encode()).hexdigest() if v == old else v for n, v in metadata.items()}
        return save(tensors, {**metadata, key: text})
    except Exception:  # past mending: as it is, then
        return content


def _bank() -> LabelBank:
    rng = np.random.default_rng(0)
    maps = [rng.choice((0, 2, 3, 41, 42), shape) for shape in ((5, 6, 7), (8, 5, 6))]
    return LabelBank.from_maps(maps, [(1, 1, 1), (2, 1, 1.5)], ["one", "two"], LABELS)


def _bank_seeds(folder: Path) -> list[Path]:
    return _unhashed(_bank().save(folder / "bank.safetensors"), "bank")


def _unhashed(path: Path, key: str) -> list[Path]:
    """A file, and beside it the same as releases before 0.2 wrote it: what is changed there is met beyond the hash."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[key])
    del header["sha256"]
    older = path.with_name(f"older-{path.name}")
    save_file(load_file(path), older, metadata={key: json.dumps(header)})
    return [path, older]


def _read_bank(path: Path) -> None:
    bank = LabelBank.load(path)
    for index in range(len(bank)):
        assert bank.label_map(index).numel() > 0
    assert bank.sha256


def _validation_seeds(folder: Path) -> list[Path]:
    targets = torch.randint(0, 30, (5, 6, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = ValidationSet(("a",), (torch.rand(5, 6, 7),), (targets,), 2.0, tuple(LABELS.target_values.tolist()))
    packed.save(folder / "validation.safetensors")
    return _unhashed(folder / "validation.safetensors", "validation")


def _draw_seeds(folder: Path) -> list[Path]:
    from synthseg.generation import GenerationConfig, GenerativeModel
    from synthseg.generation.config import GridPrior

    model = GenerativeModel(GenerationConfig(grid=GridPrior(shape=(8, 9, 10))), _bank())
    draw = model.draw(1, rng=torch.Generator().manual_seed(0))
    draw.save(folder / "draw.safetensors", origin=model.origin)
    return [folder / "draw.safetensors"]


def _read_draw(path: Path) -> None:
    read_origin(path)
    PairDraw.load(path)


def _checkpoint_seeds(folder: Path) -> list[Path]:
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters())
    sum(parameter.sum() for parameter in network.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    facts: dict[str, Any] = {"progress": {"step": 7}, "recipe": {"seed": 1}, "targets": [0, 2]}
    save_checkpoint(
        folder,
        network,
        optimizer,
        {name: tensor.clone() for name, tensor in network.state_dict().items()},
        facts,
        keep=1,
    )
    place = folder / "checkpoints" / "step-00000007"
    index = json.loads((place / "index.json").read_text())
    older = shutil.copytree(place, folder / "older")
    kept = {key: value for key, value in index.items() if "sha256" not in key}
    (older / "index.json").write_text(json.dumps(kept))
    return [place, older]


def _checkpoint(path: Path) -> None:
    network = _network()
    load_checkpoint(path, network, torch.optim.AdamW(network.parameters()), dict(network.state_dict()))


def structured_checkpoint(rng: random.Random, content: bytes) -> bytes:
    """The index is JSON, the shards are safetensors."""
    return (structured_json if content[:1] == b"{" else structured_safetensors)(rng, content)


def write_keras(path: Path, layers: dict[str, dict[str, np.ndarray]], *, heap: bool = False, **options: Any) -> Path:
    """Layers as Keras writes them (reference, section 4.3).

    Args:
        heap: lists of names as texts of any length (h5py 3), not of a fixed one (h5py 2).
        options: of the data sets.
    """
    kind = h5py.string_dtype() if heap else "S"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([name.encode() for name in layers], dtype=kind)
        for name, arrays in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = np.array([f"{name}/{key}:0".encode() for key in arrays], dtype=kind)
            for key, array in arrays.items():
                group.create_dataset(f"{name}/{key}:0", data=array, **options)
    return path


def keras_unet(features: int = 2, outputs: int = 33) -> dict[str, dict[str, np.ndarray]]:
    """Layers of a UNet of two levels, a convolution each."""
    rng = np.random.default_rng(0)

    def conv(kernel: int, n_in: int, n_out: int) -> dict[str, np.ndarray]:
        shape = (kernel, kernel, kernel, n_in, n_out)
        return {"kernel": rng.random(shape, np.float32), "bias": rng.random(n_out, np.float32)}

    def norm(width: int) -> dict[str, np.ndarray]:
        return {key: rng.random(width, np.float32) for key in ("gamma", "beta", "moving_mean", "moving_variance")}

    low = 2 * features
    return {
        "unet_conv_downarm_0_0": conv(3, 1, features),
        "unet_bn_down_0": norm(features),
        "unet_conv_downarm_1_0": conv(3, features, low),
        "unet_bn_down_1": norm(low),
        "unet_conv_uparm_2_0": conv(3, features + low, features),
        "unet_bn_up_0": norm(features),
        "unet_likelihood": conv(1, features, outputs),
    }


def _keras_seeds(folder: Path) -> list[Path]:
    packed: dict[str, Any] = {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True}
    return [
        write_keras(folder / "tiny.h5", keras_unet()),
        write_keras(folder / "heap.h5", keras_unet(), heap=True),
        write_keras(folder / "synthseg_2.0.h5", keras_unet(features=3), **packed),
    ]


def _keras(path: Path) -> None:
    for offer in offers(path):
        read_offer(offer)
    load_weights(path)
    verify_weights(path)


def _list_seeds(folder: Path) -> list[Path]:
    folder = folder / "lists"
    folder.mkdir()
    labels = [0, 24, 14, 2, 3, 41, 42]
    np.save(folder / "generation_labels.npy", np.array(labels))
    np.save(folder / "generation_classes.npy", np.array([0, 1, 2, 3, 4, 3, 4]))
    np.save(folder / "synthseg_segmentation_labels.npy", np.array([0, 0, 14, 2, 3, 41, 42], np.float32))
    np.save(folder / "synthseg_segmentation_names.npy", np.array(["background", "3rd", "wm", "c", "rwm", "rc", "y"]))
    np.save(folder / "synthseg_topological_classes.npy", np.arange(7, dtype=np.int16))
    return [folder]


def _lists(path: Path) -> None:
    load_npy_protocol(path)


def _npy_seeds(folder: Path) -> list[Path]:
    np.save(folder / "list.npy", np.array([0, 14, 24, 2, 3, 41, 42]))
    np.save(folder / "classes.npy", np.arange(len(LABELS)))
    np.save(folder / "priors.npy", np.array([[10.0, 20, 30], [25, 30, 50]]))
    return [folder / "list.npy", folder / "classes.npy", folder / "priors.npy"]


def _npy(path: Path) -> None:
    """As a list of labels, of targets, of classes, and as priors: refused by all or accepted by some."""
    refusals = []
    for read in (
        load_npy_protocol,
        outputs_from_npy,
        lambda p: ClassColumn.of(LABELS, os.fspath(p)),
        lambda p: read_mixture({"means": p.name}, kind="uniform", folder=p.parent, where="mixture"),
        lambda p: read_mixture({"classes": p.name}, kind="uniform", folder=p.parent, where="mixture"),
    ):
        try:
            read(path)
        except SynthsegError as error:
            refusals.append(error)
    worst = next((error for error in refusals if path.name not in str(error)), refusals[0] if refusals else None)
    if worst is not None and (len(refusals) == 5 or path.name not in str(worst)):
        raise worst


def _npy_bytes(rng: random.Random, content: bytes) -> bytes:
    return (structured_npy if rng.random() < 0.8 else any_bytes)(rng, content)


TARGETS = (
    Target("weights", _weights_seeds, _weights, structured_weights),
    Target("bank", _bank_seeds, _read_bank, structured_safetensors),
    Target(
        "validation-set", _validation_seeds, lambda path: load_validation(path, LABELS, 2.0), structured_safetensors
    ),
    Target("draw", _draw_seeds, _read_draw, structured_safetensors),
    Target("checkpoint", _checkpoint_seeds, _checkpoint, structured_checkpoint),
    Target("keras", _keras_seeds, _keras, structured_hdf5),
    Target("label-lists", _list_seeds, _lists, _npy_bytes),
    Target("npy", _npy_seeds, _npy, _npy_bytes),
)
