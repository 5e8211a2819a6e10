"""Which anatomies an arm sees, and how often: maps held out, weights that favour the rare, edited maps; test brains
with wide ventricles.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from experiments.contrasts import CONTRASTS
from experiments.study import Evaluation, Size
from experiments.toy import SHAPE as TOY_SHAPE
from experiments.toy import labels_of, plain_config

from synthseg.anatomies.settings import Scheme, preset
from synthseg.errors import ConfigError
from synthseg.evaluation import Case
from synthseg.generation.bank import LabelBank
from synthseg.generation.model import GenerativeModel
from synthseg.volumes import read_volume
from synthseg.volumes.volume import Volume, strip_extension
from synthseg.volumes.write import write_volume

VENTRICLES = (4, 5, 43, 44)  # lateral ones and their temporal horns
SIX_TISSUES = (
    "grey matter=3+42,white matter=2+41,ventricles=4+5+43+44,cerebellum=7+8+46+47,"
    "deep grey matter=10+11+12+13+49+50+51+52,brainstem=16"
)
_SCAN_SHAPE = (168, 200, 176)  # of test scans at 1 mm


def held_out(n_maps: int, count: int) -> tuple[int, ...]:
    """Positions of ``count`` maps spread evenly over a bank. Raises: ConfigError where too few would be left."""
    if not 0 <= count < n_maps:
        found = f"{count} of {n_maps} label maps"
        raise ConfigError("evaluation.held_out", found=found, fix=f"give 0 to {n_maps - 1}")
    return tuple(round((number + 0.5) * n_maps / count - 0.5) for number in range(count))


def part_of(bank: LabelBank, positions: Sequence[int]) -> LabelBank:
    """Some of a bank's maps, as a bank."""
    values = bank.protocol.values
    return LabelBank.from_maps(
        [values[bank.label_map(n).numpy()].astype(np.int32) for n in positions],
        [bank.spacing_mm[n].tolist() for n in positions],
        [bank.names[n] for n in positions],
        bank.protocol,
    )


def training_bank(bank: Path, out: Path, *, held: int, shapes: int) -> Path:
    """Where the bank that an arm trains on is: the given one, or what :func:`make_training_bank` makes of it."""
    if not held and not shapes:
        return bank
    return out / "banks" / f"{LabelBank.load(bank).sha256[:12]}-without-{held}-shapes-{shapes}.safetensors"


def make_training_bank(bank: Path, out: Path, *, held: int, shapes: int, toy: bool = False) -> Path:
    """A bank without the maps held out, and with edited variants of the others; made once.

    Each variant depends on its own map alone, so that nothing of a map held out is in it.

    Args:
        shapes: edited variants a map. held: maps that are left out. toy: keep two of the others only.
    """
    path = training_bank(bank, out, held=held, shapes=shapes)
    if path != bank and not path.is_file():
        given = LabelBank.load(bank)
        gone = held_out(len(given), held)
        kept = part_of(given, [n for n in range(len(given)) if n not in gone][: 2 if toy else None])
        (with_shapes(kept, shapes) if shapes else kept).save(path)
    return path


def with_shapes(bank: LabelBank, count: int) -> LabelBank:
    """A bank's maps, each followed by edited variants ``NAME_shape-NN``."""
    from synthseg.anatomies.shapes import ShapeSpec, vary

    maps, spacings, names = [], [], []
    for n, name in enumerate(bank.names):
        own = bank.protocol.values[bank.label_map(n).numpy()].astype(np.int32)
        spacing = bank.spacing_mm[n].tolist()
        for variant in range(count + 1):
            rng = torch.Generator().manual_seed(zlib.crc32(f"{name}/{variant}".encode()))
            maps.append(vary(own, spacing, bank.protocol, ShapeSpec(), rng)[0] if variant else own)
            spacings.append(spacing)
            names.append(f"{strip_extension(name)}_shape-{variant:02d}" if variant else name)
    return LabelBank.from_maps(maps, spacings, names, bank.protocol)


def weights_table(out: Path, arm: str) -> Path:
    """Where an arm's weights are."""
    return out / "weights" / arm / "weights.tsv"


def make_weights(bank: Path, scheme: Scheme, table: Path) -> Path:
    """Weigh a bank's maps. Variants are anatomies of their own, as in the reference's 160 maps.

    Raises: UsageError without the extra packages of sampling.
    """
    from synthseg.anatomies.sampler import weights_of  # here: other studies run without its packages
    from synthseg.anatomies.table import write_tables

    settings = preset(scheme)
    features = settings.features
    if scheme == "reference":  # its labels are FeTA's: the adult labels of its six tissues take their place (B.3)
        features = replace(features, labels=SIX_TISSUES)
    settings = replace(settings, features=features, family=replace(settings.family, siblings=None))
    write_tables(weights_of(LabelBank.load(bank), settings), table.parent)
    return table


def held_out_cases(bank: Path, out: Path, evaluation: Evaluation, size: Size) -> list[Case]:
    """Synthetic scans of held-out maps, as they are and with wider ventricles, drawn once.

    A group for each factor and contrast, e.g. ``held-out maps, ventricles x 2``.
    """
    given = LabelBank.load(bank)
    folder = out / "held-out"
    cases = []
    for position in held_out(len(given), evaluation.held_out):
        name = strip_extension(given.names[position])
        own = given.protocol.values[given.label_map(position).numpy()].astype(np.int32)
        for factor in evaluation.ventricles:
            stem = f"{name}_ventricles-{factor:g}"
            _draw(own, given, position, factor, folder, stem, size)
            for contrast in CONTRASTS:
                image = folder / f"{stem}_{contrast}.nii.gz"
                group = f"held-out maps, {contrast}, ventricles x {factor:g}"
                truth = folder / f"{stem}_aseg.nii.gz"
                cases.append(Case(scan=f"{name}_{contrast}", image=image, truth=truth, group=group))
    return cases


def _draw(own: np.ndarray, bank: LabelBank, position: int, factor: float, folder: Path, stem: str, size: Size) -> None:
    truth = folder / f"{stem}_aseg.nii.gz"
    if truth.is_file():
        return
    spacing = bank.spacing_mm[position].tolist()
    rng = torch.Generator().manual_seed(zlib.crc32(stem.encode()))
    if factor != 1:
        from synthseg.anatomies.shapes import ShapeSpec, spec_with, vary

        spec = spec_with(("ventricles",), ShapeSpec(ventricles=(factor, factor)))
        own = vary(own, spacing, bank.protocol, spec, rng)[0]
    one = LabelBank.from_maps([own], [spacing], [stem], bank.protocol)
    spacing_mm, shape = (min(spacing), TOY_SHAPE) if size == "toy" else (1.0, _SCAN_SHAPE)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    for contrast in CONTRASTS:
        pair = GenerativeModel(plain_config(one, contrast, spacing_mm, shape), one).sample(1, rng=rng)
        write_volume(Volume((pair.image[0, 0] * 1000).numpy(), affine), folder / f"{stem}_{contrast}.nii.gz")
    write_volume(labels_of(pair.target[0], bank.protocol, affine), truth)  # last: it says that the scans are there


def ventricle_share(truth: Path) -> float:
    """Lateral ventricles in a label map as a share of all that it labels."""
    labels = read_volume(truth, labels=True).data
    inside = (labels > 0) & (labels != 255)
    return float(np.isin(labels, VENTRICLES).sum() / max(int(inside.sum()), 1))


def split_by_ventricles(cases: Sequence[Case]) -> list[Case]:
    """Cases of a group in two: the half with the larger lateral ventricles, and the other.

    Groups of fewer than four truths stay whole. A case's group is told by its truth, whatever its changes.
    """
    shares = {case.truth: 0.0 for case in cases}
    groups: dict[str, list[Path]] = {}
    for case in cases:
        if case.truth not in groups.setdefault(case.group, []):
            groups[case.group].append(case.truth)
    wide: set[Path] = set()
    for truths in groups.values():
        if len(truths) >= 4:
            shares = {truth: ventricle_share(truth) for truth in truths}
            wide |= set(sorted(truths, key=lambda truth: shares[truth])[len(truths) // 2 :])
    return [
        case
        if len(groups[case.group]) < 4
        else replace(case, group=f"{case.group}, {'wide' if case.truth in wide else 'narrow'} ventricles")
        for case in cases
    ]
