"""A toy-size SynthSeg+: banks, recipes and the chain of all its networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import load_protocol
from synthseg.training import Chain, ChainResult, RunOptions, load_training, train_chain

torch.set_num_threads(1)

STAGES = ("structures", "tissues", "denoiser", "guided", "parcels", "quality")
CHANNELS = {"structures": (1, 33), "tissues": (1, 5), "denoiser": (5, 5), "guided": (6, 33), "parcels": (3, 69)}
CHAIN = """
[[stages]]
name = "structures"
recipe = "parts/structures.toml"

[[stages]]
name = "tissues"
recipe = "parts/tissues.toml"
init = "stage:structures"

[[stages]]
name = "denoiser"
recipe = "parts/denoiser.toml"
weights = { tissues = "stage:tissues" }

[[stages]]
name = "guided"
recipe = "parts/guided.toml"
init = "stage:structures"
weights = { tissues = "stage:tissues", denoiser = "stage:denoiser" }

[[stages]]
name = "parcels"
recipe = "parts/parcels.toml"
changes = { optimizer = { learning_rate = 2e-3 } }

[[stages]]
name = "quality"
recipe = "parts/quality.toml"
weights = { structures = "stage:structures", tissues = "stage:tissues", guided = "stage:guided" }
"""


def toy_head(parcels: bool) -> np.ndarray:
    """A head of boxes, 8 mm a voxel: bone around two hemispheres of cortex, white matter, ventricles and deep grey."""
    values = np.zeros((20, 22, 20), dtype=np.int32)
    values[1:-1, 1:-1, 1:-1] = 515
    for side, x in ((0, slice(3, 10)), (1, slice(10, 17))):
        cortex, white, ventricle, thalamus, hippocampus, cerebellum = ((3, 2, 4, 10, 17, 8), (42, 41, 43, 49, 53, 47))[
            side
        ]
        values[x, 3:19, 5:18] = cortex
        if parcels:  # one half each of two parcels
            values[x, 3:11, 5:18], values[x, 11:19, 5:18] = (1024, 1028) if side == 0 else (2024, 2028)
        inner = slice(4, 10) if side == 0 else slice(10, 16)
        values[inner, 5:17, 7:16] = white
        values[inner, 9:13, 11:14] = ventricle
        values[inner, 9:13, 9:11] = thalamus
        values[inner, 7:9, 8:10] = hippocampus
        values[x, 3:8, 3:6] = cerebellum
    values[8:12, 8:11, 2:9] = 16
    return values


def write_stage(folder: Path, kind: str) -> None:
    """The recipe of one stage, for 16^3 voxels of 8 mm and networks of two levels."""
    inputs, outputs = CHANNELS.get(kind, (1, 33))
    patch = 2 if kind in ("tissues", "denoiser") else 1
    text = f"""
[task]
kind = "{kind}"
[data]
bank = "../{"parcels" if kind == "parcels" else "maps"}.safetensors"
[generation.grid]
shape = [16, 16, 16]
spacing_mm = 8.0
[network]
in_channels = {inputs}
out_channels = {outputs}
features = 4
levels = 2
patch = {patch}
norm = "instance"
[encoder]
features = 2
levels = 2
kernel = 3
expected_dice = true
[optimizer]
steps = {3 if kind == "guided" else 2}
learning_rate = 1e-3
loss = "dice_ce"
absent = "skip"
ema_decay = 0.5
seed = {STAGES.index(kind)}
[output]
name = "toy-{kind}"
checkpoint_minutes = 1000.0
log_every = 1
"""
    (folder / f"{kind}.toml").write_text(text, encoding="utf-8")


def make_yard(folder: Path) -> Path:
    """Banks, recipes and the chain; nothing in it is changed by the tests."""
    for name, protocol in (("maps", "synthseg-generation"), ("parcels", "synthseg-generation-dk")):
        maps = [toy_head(name == "parcels"), toy_head(name == "parcels")[::-1].copy()]
        if name == "maps":
            maps[1] = toy_head(False)
        bank = LabelBank.from_maps(maps, [(8.0, 8.0, 8.0)] * 2, ["one", "two"], load_protocol(protocol))
        bank.save(folder / f"{name}.safetensors")
    (folder / "parts").mkdir()
    for kind in STAGES:
        write_stage(folder / "parts", kind)
    (folder / "toy.toml").write_text(CHAIN, encoding="utf-8")
    return folder


def run(chain: Path, out: Path, **options: object) -> ChainResult:
    read = load_training(chain)
    assert isinstance(read, Chain)
    return train_chain(read, RunOptions(out=out, device="cpu", threads=1, **options))  # type: ignore[arg-type]


def weights_of(out: Path, stage: str) -> Path:
    return out / stage / f"toy-{stage}.safetensors"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
