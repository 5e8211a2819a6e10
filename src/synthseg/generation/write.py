"""Write generated pairs as volumes, to look at or to train elsewhere (the command ``synthseg generate``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from synthseg.errors import OutputError, TrainingError
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GenerationConfig
from synthseg.generation.model import GenerativeModel, PairDraw
from synthseg.labels.protocol import LabelProtocol


@dataclass(frozen=True)
class WrittenPair:
    """One pair on disk and in memory."""

    image: Path
    labels: Path
    draw: Path
    map_name: str
    image_data: np.ndarray  # [X, Y, Z] float32 in [0, 1]
    label_data: np.ndarray  # [X, Y, Z] int32 target values


def open_bank(source: Path, protocol: LabelProtocol, *, on_map: Callable[[str], None] = lambda _: None) -> LabelBank:
    """A bank from a packed file, one label map, or a folder of label maps.

    Raises: TrainingError for a missing place or a folder without label maps; LabelError for unknown values, named.
    """
    from synthseg.generation.pack import pack_files
    from synthseg.volumes.volume import is_volume_path

    if source.suffix == ".safetensors":
        return LabelBank.load(source)
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if is_volume_path(path))
        if not files:
            raise TrainingError(
                source, found="no label maps", fix="give a folder with .nii.gz, .nii, .mgz or .npz files"
            )
        return pack_files(files, protocol, on_map=on_map)
    if not source.exists():
        raise TrainingError(source, found="no such file or folder", fix="give label maps or a packed bank")
    return pack_files([source], protocol, on_map=on_map)


def write_pair(model: GenerativeModel, draw: PairDraw, folder: Path, stem: str) -> WrittenPair:
    """Make the pair of a draw (one element) and write ``STEM_image``, ``STEM_labels`` and the draw itself.

    Raises: OutputError when the folder cannot be written.
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw.save(record)
    except OSError as error:
        raise OutputError(folder, found=f"no way to write there ({error})", fix="choose a writable folder") from error
    return WrittenPair(
        image=write_volume(Volume(image, affine), folder / f"{stem}_image.nii.gz"),
        labels=write_volume(Volume(labels, affine), folder / f"{stem}_labels.nii.gz"),
        draw=record,
        map_name=model.bank.names[int(draw.anatomy.map_index[0])],
        image_data=image,
        label_data=labels,
    )


def generate_pairs(
    bank: LabelBank,
    config: GenerationConfig,
    folder: Path,
    *,
    count: int,
    seed: int,
    replay: Sequence[Path] = (),
) -> Iterator[WrittenPair]:
    """Write ``count`` pairs of a seed, or one pair for each recorded draw, and yield them as they are finished."""
    model = GenerativeModel(config, bank)
    if replay:
        for path in replay:
            yield write_pair(model, PairDraw.load(path), folder, path.name.split("_draw")[0])
        return
    rng = torch.Generator().manual_seed(seed)
    for number in range(count):
        yield write_pair(model, model.draw(1, rng=rng), folder, f"pair_{number:04d}")
