"""Write generated pairs as volumes, to look at or to train elsewhere (the command ``synthseg generate``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from synthseg.errors import TrainingError, UsageError
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GenerationConfig
from synthseg.generation.model import GenerativeModel, PairDraw
from synthseg.generation.replay import read_origin, require_fit, require_origin
from synthseg.labels.protocol import LabelProtocol, load_protocol


@dataclass(frozen=True)
class WrittenPair:
    """One pair on disk and in memory."""

    image: Path
    labels: Path
    draw: Path
    map_name: str
    image_data: np.ndarray  # [X, Y, Z] float32 in [0, 1]
    label_data: np.ndarray  # [X, Y, Z] int32 target values
    note: str = ""  # what could not be checked about a recorded draw


DEFAULT_PROTOCOL = "synthseg-generation"  # of label maps that come without one


def open_bank(
    source: Path, protocol: LabelProtocol | None = None, *, on_map: Callable[[str], None] = lambda _: None
) -> LabelBank:
    """A bank from a packed file, one label map, or a folder of label maps.

    Args:
        protocol: of the maps; by default the packed bank's own, and ``synthseg-generation`` for label maps.
        on_map: called with each map's name when it has been read.
    Raises: TrainingError for a missing place or a folder without label maps; LabelError for unknown values, named;
        UsageError for a packed bank of another protocol.
    """
    from synthseg.generation.pack import pack_files
    from synthseg.volumes.volume import is_volume_path

    if source.suffix == ".safetensors":
        bank = LabelBank.load(source)
        if protocol is not None and protocol.labels != bank.protocol.labels:
            fix = "leave the protocol out, or pack the label maps again with it"
            raise UsageError(source, found=f"a bank of protocol {bank.protocol.name}, not {protocol.name}", fix=fix)
        return bank
    if not source.exists():
        raise TrainingError(source, found="no such file or folder", fix="give label maps or a packed bank")
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if is_volume_path(path))
        if not files:
            fix = "give a folder with .nii.gz, .nii, .mgz or .npz files"
            raise TrainingError(source, found="no label maps", fix=fix)
    return pack_files(files, protocol or load_protocol(DEFAULT_PROTOCOL), on_map=on_map)


def write_pair(model: GenerativeModel, draw: PairDraw, folder: Path, stem: str, *, note: str = "") -> WrittenPair:
    """Make the pair of a draw (one element) and write ``STEM_image``, ``STEM_labels`` and the draw itself.

    Args:
        note: passed on.
    Raises: OutputError when the folder cannot be written; TrainingError for a draw that does not fit the model.
    """
    from synthseg.volumes.volume import Volume
    from synthseg.volumes.write import write_volume

    pair = model.apply(draw)
    grid = model.config.grid
    affine = np.diag([grid.spacing_mm] * 3 + [1.0])
    affine[:3, 3] = [-(n - 1) / 2 * grid.spacing_mm for n in grid.shape]
    image = pair.image[0, 0].cpu().numpy()
    labels = model.bank.protocol.target_values[pair.target[0].cpu().numpy()].astype(np.int32)
    record = folder / f"{stem}_draw.safetensors"
    draw.save(record, origin=model.origin)
    return WrittenPair(
        image=write_volume(Volume(image, affine), folder / f"{stem}_image.nii.gz"),
        labels=write_volume(Volume(labels, affine), folder / f"{stem}_labels.nii.gz"),
        draw=record,
        map_name=model.bank.names[int(draw.anatomy.map_index[0])],
        image_data=image,
        label_data=labels,
        note=note,
    )


def generate_pairs(
    bank: LabelBank,
    config: GenerationConfig,
    folder: Path,
    *,
    count: int = 1,
    seed: int = 0,
    replay: Sequence[Path] = (),
) -> Iterator[WrittenPair]:
    """Write ``count`` pairs of a seed, or one pair for each recorded draw, and yield them as they are finished.

    Made on the bank's device; a seed gives other pairs on a GPU than on the CPU, a recorded draw the same ones.

    Raises: TrainingError for a recorded draw of several pairs or of another bank, config or grid; UsageError for two
        recorded draws of the same name.
    """
    model = GenerativeModel(config, bank)
    if not replay:
        rng = torch.Generator(bank.device).manual_seed(seed)
        for number in range(count):
            yield write_pair(model, model.draw(1, rng=rng), folder, f"pair_{number:04d}")
        return
    stems = [path.name.removesuffix(".safetensors").removesuffix("_draw") for path in replay]
    for stem in stems:
        if stems.count(stem) > 1:
            fix = "replay them one by one, each into its own folder"
            raise UsageError(stem, found="several recorded draws of this name", fix=fix)
    for path, stem in zip(replay, stems, strict=True):
        draw, note = _recorded(path, model)
        yield write_pair(model, draw, folder, stem, note=note)


def _recorded(path: Path, model: GenerativeModel) -> tuple[PairDraw, str]:
    """A draw that belongs to the model, and what could not be checked about it."""
    draw = PairDraw.load(path, model.bank.device)
    origin = read_origin(path)
    if origin is not None:
        require_origin(model, origin, subject=path)
    require_fit(model, draw, subject=path)
    pairs = len(draw.anatomy.map_index)
    if pairs != 1:
        fix = "cut it with PairDraw.element and save its elements one by one"
        raise TrainingError(path, found=f"a draw of {pairs} pairs", fix=fix)
    return draw, "" if origin is not None else f"{path} does not say which bank and config it was made with"
