"""Priors from files to files: folders of pairs in; arrays, tables and recipe lines out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from synthseg.errors import LabelError, OutputError
from synthseg.files import atomic_file
from synthseg.generation.estimation import (
    ClassPriors,
    ClassStatistics,
    EstimationRules,
    class_statistics,
    stack_priors,
    summarise,
)
from synthseg.generation.paired import read_pair
from synthseg.generation.priors import COLUMNS
from synthseg.labels.arrays import read_npy, whole_numbers
from synthseg.labels.protocol import LabelProtocol

MEANS, STDS, CLASSES = "prior_means.npy", "prior_stds.npy", "generation_classes.npy"
RECIPE, ACQUISITION, IMAGES = "priors.toml", "acquisition.toml", "images.tsv"
CLIPPED_SHARE = 0.1
SHOWN_NAMES = 4  # labels of a class that tables name

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ClassColumn:
    """Which class each label of a protocol has."""

    kind: str  # "contrast", "random", or the file it came from
    values: np.ndarray  # [L] int64, 0 to K - 1

    @classmethod
    def of(cls, protocol: LabelProtocol, kind: str) -> ClassColumn:
        """The protocol's column, or a list of the original's (``.npy``) in the order of its labels.

        Raises: LabelError for a file of another length, or a kind that is neither.
        """
        if kind == "contrast":
            return cls(kind, protocol.contrast_classes)
        if kind == "random":
            return cls(kind, protocol.generation_classes)
        if not kind.lower().endswith(".npy"):
            raise LabelError("--classes", found=repr(kind), fix="give contrast, random, or a .npy file of classes")
        values = np.array(whole_numbers(read_npy(kind), kind), dtype=np.int64)
        if len(values) != len(protocol):
            found = f"{len(values)} classes for the {len(protocol)} labels of {protocol.name}"
            raise LabelError(kind, found=found, fix="give one class a label, in the protocol's order")
        if set(values.tolist()) != set(range(min(int(values.max()) + 1, len(values) + 1))):
            raise LabelError(kind, found="numbers left out", fix="number the classes 0, 1, 2, ... without gaps")
        return cls(kind, values)


@dataclass(frozen=True)
class Dataset:
    """Images of one contrast, each with its label map."""

    name: str
    pairs: tuple[tuple[Path, Path], ...]


@dataclass(frozen=True)
class Block:
    """Priors of one dataset and channel, and what each image gave."""

    name: str
    priors: ClassPriors
    images: tuple[tuple[str, ClassStatistics], ...]


@dataclass(frozen=True)
class Estimate:
    """What was measured."""

    protocol: LabelProtocol
    classes: ClassColumn
    blocks: tuple[Block, ...]  # dataset by dataset, channel by channel
    acquired_mm: tuple[Triple, ...]  # voxel sizes of each image file, RAS+

    def class_names(self) -> list[str]:
        """The labels of each class; "-" for numbers that no label has."""
        names: list[list[str]] = [[] for _ in range(int(self.classes.values.max()) + 1)]
        for label, index in zip(self.protocol.labels, self.classes.values, strict=True):
            names[index].append(label.name)
        return [shortened(members) for members in names]

    def clipped(self) -> dict[int, float]:
        """Classes of which a tenth or more lies at the clipped end of the scale, and the mean share over images."""
        shares: dict[int, float] = {}
        for block in self.blocks:
            found = np.mean([statistics.clipped for _, statistics in block.images], axis=0)
            shares |= {int(k): float(found[k]) for k in np.flatnonzero(found >= CLIPPED_SHARE) if k}
        return shares

    def unseen(self) -> list[int]:
        """Classes with labels that some block has no image of."""
        used = set(self.classes.values.tolist())
        return sorted({int(k) for block in self.blocks for k in np.flatnonzero(block.priors.images == 0)} & used)


def estimate_priors(
    datasets: Sequence[Dataset],
    protocol: LabelProtocol,
    classes: ClassColumn,
    rules: EstimationRules,
    *,
    channels: int = 1,
    resample: bool = True,
    on_pair: Callable[[str, tuple[str, ...]], None] = lambda _name, _notes: None,
) -> Estimate:
    """Measure every pair of every dataset.

    Args:
        protocol: of the label maps.
        channels: of each image.
        resample: see :func:`read_pair`.
        on_pair: called with an image's name and its notes when it has been measured.
    Raises: VolumeError and LabelError naming the file.
    Source: reference section 3.
    """
    blocks, acquired = [], []
    for dataset in datasets:
        measured: list[list[tuple[str, ClassStatistics]]] = [[] for _ in range(channels)]
        for image, labels in dataset.pairs:
            pair = read_pair(image, labels, channels=channels, resample=resample)
            index = protocol.index_of(pair.labels, subject=str(labels))
            for channel, data in enumerate(pair.channels):
                found = class_statistics(data, index, classes.values, rules, subject=str(image))
                measured[channel].append((pair.name, found))
            x, y, z = pair.acquired_mm
            acquired.append((x, y, z))
            on_pair(pair.name, pair.notes)
        for channel, images in enumerate(measured):
            name = dataset.name if channels == 1 else f"{dataset.name}, channel {channel + 1}"
            priors = summarise([statistics for _, statistics in images], rules)
            if not priors.images[1:].any():
                found_there = "nothing but background (class 0), or too few voxels of all else"
                raise LabelError(
                    f"labels of {name}", found=found_there, fix="check that these are the label maps meant"
                )
            blocks.append(Block(name, priors, tuple(images)))
    return Estimate(protocol, classes, tuple(blocks), tuple(acquired))


def write_estimate(estimate: Estimate, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write what was measured.

    ``prior_means.npy`` and ``prior_stds.npy`` in the original's layout; a table a block as ``load_priors`` reads it;
    what each image gave; and lines for a recipe: intensities (``priors.toml``), voxel sizes (``acquisition.toml``).

    Returns: the files.
    Raises: OutputError for files that are there already without ``overwrite``, or that cannot be written.
    """
    means, stds = stack_priors(block.priors for block in estimate.blocks)
    files: dict[str, bytes] = {MEANS: _npy(means), STDS: _npy(stds)}
    if estimate.classes.kind not in ("contrast", "random"):
        files[CLASSES] = _npy(estimate.classes.values)
    for number, block in enumerate(estimate.blocks, start=1):
        name = "priors.tsv" if len(estimate.blocks) == 1 else f"priors-{number}.tsv"
        files[name] = _table(estimate, block).encode()
    files[IMAGES] = _per_image(estimate).encode()
    files[RECIPE] = _recipe(estimate).encode()
    files[ACQUISITION] = acquisition_lines(estimate.acquired_mm).encode()
    require_free(folder, files, overwrite=overwrite)
    for name, content in files.items():
        with atomic_file(folder / name) as file:
            file.write(content)
    return [folder / name for name in files]


def require_free(folder: Path, names: Iterable[str] = (MEANS, RECIPE), *, overwrite: bool = False) -> None:
    """Say before a long measurement what would stop its results from being written.

    Raises: OutputError where the folder is a file, or holds such files and ``overwrite`` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(folder, found="a file, not a folder", fix="choose another folder")
    taken = [name for name in names if (folder / name).exists()]
    if taken and not overwrite:
        raise OutputError(folder / taken[0], found="an existing file", fix="choose another folder, or add --overwrite")


def acquisition_lines(acquired_mm: Sequence[Triple]) -> str:
    """A recipe's ``[generation.acquisition]`` that gives every pair the voxel sizes of one of these images.

    Sizes are rounded to 0.01 mm; each set of sizes is listed as often as its share of the images asks for.
    """
    counts = Counter(tuple(round(s, 2) for s in sizes) for sizes in acquired_mm)
    shared = math.gcd(*counts.values())
    listed = [sizes for sizes, count in sorted(counts.items()) for _ in range(count // shared)]
    rows = ",\n".join(f"  [{', '.join(f'{s:g}' for s in sizes)}]" for sizes in listed)
    return (
        f"# Voxel sizes of {len(acquired_mm)} images (right, front, up; mm): training for this resolution only\n"
        "# (SynthSeg-R). Headers do not say how thick slices are: as thick as they lie apart, unless thicknesses_mm\n"
        "# says otherwise, row by row.\n"
        f"[generation.acquisition]\nspacings_mm = [\n{rows},\n]\n"
    )


def shortened(names: Sequence[str]) -> str:
    """A class's labels for a table: the first few, and how many more."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more or "-"


def _npy(values: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _table(estimate: Estimate, block: Block) -> str:
    lines = [f"# {block.name}: {len(block.images)} images", f"# labels of {estimate.protocol.name}, by class:"]
    shown = zip(estimate.class_names(), block.priors.images, strict=True)
    lines += [f"# {k}: {names} ({count} images)" for k, (names, count) in enumerate(shown)]
    lines.append("\t".join(COLUMNS))
    columns = np.concatenate([block.priors.means, block.priors.stds]).T
    lines += ["\t".join([str(k), *(f"{value:.6g}" for value in row)]) for k, row in enumerate(columns)]
    return "\n".join(lines) + "\n"


def _per_image(estimate: Estimate) -> str:
    lines = ["\t".join(("dataset", "image", "class", "voxels", "median", "deviation"))]
    for block in estimate.blocks:
        for name, found in block.images:
            rows = zip(found.voxels, found.medians, found.deviations, strict=True)
            for k, (voxels, median, deviation) in enumerate(rows):
                if voxels:
                    lines.append(
                        "\t".join((block.name, name, str(k), str(voxels), f"{median:.6g}", f"{deviation:.6g}"))
                    )
    return "\n".join(lines) + "\n"


def _recipe(estimate: Estimate) -> str:
    kind = estimate.classes.kind
    classes = kind if kind in ("contrast", "random") else CLASSES
    blocks = "; ".join(f"{block.name} ({len(block.images)} images)" for block in estimate.blocks)
    return (
        f"# Intensity priors of {blocks}.\n"
        f"# For label maps of protocol {estimate.protocol.name}. Paths start at the recipe's folder.\n"
        '[generation]\npreset = "paper"\n\n[generation.mixture]\nkind = "normal"\n'
        f'means = "{MEANS}"\nstds = "{STDS}"\nclasses = "{classes}"\n'
    )
