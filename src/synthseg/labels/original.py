"""The original's label lists (``.npy``) as our tables (reference 1.1 to 1.7, 1.10).

There, side, partner and class of a label follow from its place in a list: background and other neutral labels first,
then the left ones, then the right ones in the same order; every further list is aligned with the first. Here they
become columns. ``entry`` in messages counts from 0, as numpy does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from synthseg.errors import LabelError
from synthseg.labels.aligned import Columns, Names, Values, class_list, read_numbers, subject_of
from synthseg.labels.arrays import read_npy
from synthseg.labels.checks import check_labels
from synthseg.labels.freesurfer import neutral_count
from synthseg.labels.protocol import LabelProtocol

SET_LABELS = "generation_labels.npy"
# The original's file names by argument of `protocol_from_npy`, the preferred one first. The published "_2.0" lists have
# one entry more than the published generation labels (reference 1.1) and are passed over where they do not fit.
SET_FILES = {
    "classes": ("generation_classes_2.0.npy", "generation_classes.npy"),
    "contrast_classes": ("generation_classes_contrast_specific.npy",),
    "targets": ("synthseg_segmentation_labels_2.0.npy", "synthseg_segmentation_labels.npy"),
    "names": ("synthseg_segmentation_names_2.0.npy", "synthseg_segmentation_names.npy"),
    "topology": ("synthseg_topological_classes_2.0.npy", "synthseg_topological_classes.npy"),
    "quality": ("synthseg_qc_labels_2.0.npy", "synthseg_qc_labels.npy"),
    "tissue": ("synthseg_denoiser_labels_2.0.npy", "segmentation_labels_s1.npy"),
}
_MAY_NOT_FIT = "_2.0.npy"


def protocol_from_npy(
    labels: Values,
    *,
    n_neutral: int | None = None,
    classes: Values | None = None,
    contrast_classes: Values | None = None,
    targets: Values | None = None,
    names: Names | None = None,
    topology: Values | None = None,
    quality: Values | None = None,
    tissue: Values | None = None,
    name: str | None = None,
) -> LabelProtocol:
    """The label table that the original's training lists stand for. Every list is a ``.npy`` file or plain values.

    Args:
        labels: ``generation_labels``, K distinct values: background, other neutral ones, left, right.
        n_neutral: ``n_neutral_labels``. None: by FreeSurfer's numbering, if that and the list's order agree.
        classes: ``generation_classes``, 0 to G - 1 without gaps; None: a Gaussian for each label.
        contrast_classes: classes for a contrast's priors, likewise; None: ``classes`` serve both.
        targets: ``output_labels`` / ``segmentation_labels``; None: the labels themselves. Channels are the distinct
            targets in ascending order.
        names: of the *targets*, as in ``segmentation_names``; a label merged into another target keeps FreeSurfer's
            name, unless every entry has a name of its own. None: FreeSurfer's names where we know the value, else
            "label N".
        topology: ``topology_classes``. quality: QC groups. tissue: groups of S1 and the denoiser. None: all 0.
        name: of the protocol; None: the file's.
    Returns: rows in the lists' order.
    Raises: LabelError naming the file and the entry.
    """
    subject = subject_of(labels, "generation labels")
    values = read_numbers(labels, subject)
    _check_values(values, subject)
    count = neutral_count(values, subject) if n_neutral is None else n_neutral
    sides, partners = _sides(values, count, subject)
    columns = Columns.read(values, targets, names, topology, quality, tissue, subject)
    generation = class_list(classes, "generation classes", values, subject)
    contrast = generation
    if contrast_classes is not None:
        contrast = class_list(contrast_classes, "contrast-specific classes", values, subject)
    rows = [
        replace(columns.row(i, value), side=sides[i], partner=partners[i], generation_class=a, contrast_class=b)
        for i, (value, a, b) in enumerate(zip(values, generation, contrast, strict=True))
    ]
    check_labels(rows, subject=subject, where=[f"entry {i}" for i in range(len(rows))])
    title = name or (Path(subject).stem if isinstance(labels, str | Path) else "original")
    return LabelProtocol(title, f"{len(rows)} labels, {count} of them neutral", tuple(rows), _source(subject))


def outputs_from_npy(
    targets: Values,
    *,
    n_neutral: int | None = None,
    names: Names | None = None,
    topology: Values | None = None,
    quality: Values | None = None,
    tissue: Values | None = None,
    name: str | None = None,
) -> LabelProtocol:
    """The table of what a network puts out, from a list of targets alone (54 or 55 entries in the original's files).

    A row for each distinct target, in channel order. Names and groups are those of a target's first entry, sides and
    partners follow from the order of first entries (reference 1.3), as in the original's prediction.

    Args:
        targets: ``segmentation_labels``: neutral, left, right, in any number of repetitions.
        n_neutral: how many *entries* come before the left ones. None: by FreeSurfer's numbering.
        names, topology, quality, tissue, name: as in :func:`protocol_from_npy`.
    Raises: LabelError naming the file and the entry.
    """
    subject = subject_of(targets, "segmentation labels")
    entries = read_numbers(targets, subject)
    first = sorted(entries.index(value) for value in set(entries))
    values = tuple(entries[i] for i in first)
    if n_neutral is None:
        sides, partners = _sides(values, neutral_count(values, subject), subject)
    else:
        sides, partners = _sides_of_targets(entries, first, n_neutral, subject)
    columns = Columns.read(entries, None, names, topology, quality, tissue, subject)
    found = [
        replace(columns.row(i, value), side=side, partner=partner)
        for i, value, side, partner in zip(first, values, sides, partners, strict=True)
    ]
    found.sort(key=lambda row: row.value)
    rows = [replace(row, generation_class=n, contrast_class=n) for n, row in enumerate(found)]
    check_labels(rows, subject=subject, where=[f"entry {entries.index(row.value)}" for row in rows])
    title = name or (Path(subject).stem if isinstance(targets, str | Path) else "original-outputs")
    return LabelProtocol(title, f"{len(rows)} outputs, in channel order", tuple(rows), _source(subject))


def load_npy_protocol(path: str | Path) -> LabelProtocol:
    """A folder of the original's lists under its own file names, or one ``.npy`` of labels alone.

    In a folder ``generation_labels.npy`` is needed and the files of ``SET_FILES`` are used; one file alone is what the
    original makes of ``generation_labels`` without further arguments: a Gaussian and a target for each label. The
    number of neutral labels comes from FreeSurfer's numbering; for other numberings make a table once
    (``synthseg labels from-original --n-neutral N``).

    Raises: LabelError naming the file and the entry.
    """
    path = Path(path)
    if not path.is_dir():
        return protocol_from_npy(path)
    labels = path / SET_LABELS
    if not labels.is_file():
        found = f"no readable file {SET_LABELS} in this folder"
        raise LabelError(path, found=found, fix="give the folder of the original's lists, or a table's file")
    length = read_npy(labels).size
    lists: dict[str, Any] = {}
    for key, candidates in SET_FILES.items():
        for file in (path / name for name in candidates):
            if file.is_file() and not (file.name.endswith(_MAY_NOT_FIT) and read_npy(file).shape != (length,)):
                lists[key] = file
                break
    return protocol_from_npy(labels, name=path.resolve().name, **lists)


def _source(subject: str) -> str:
    return f"the original's lists: {Path(subject).name}"


def _check_values(values: tuple[int, ...], subject: str) -> None:
    first: dict[int, int] = {}
    for entry, value in enumerate(values):
        if first.setdefault(value, entry) != entry:
            found = f"entry {entry}: {value} again, already entry {first[value]}"
            raise LabelError(subject, found=found, fix="list every value once (for a list of targets use --targets)")
    if values[0] != 0:
        found = f"entry 0: {values[0]}, not the background"
        raise LabelError(subject, found=found, fix="list the background (0) first, then neutral, left and right labels")


def _check_count(count: int, length: int, subject: str) -> None:
    if not 1 <= count <= length:
        fix = f"give 1 to {length}: the background is neutral, and so may be all"
        raise LabelError(subject, found=f"{count} neutral labels of {length}", fix=fix)


def _sides(values: tuple[int, ...], count: int, subject: str) -> tuple[list[str], list[int]]:
    """Sides and partners by position: neutral | left | right."""
    _check_count(count, len(values), subject)
    sided = values[count:]
    if len(sided) % 2:
        found = f"{len(values)} labels, {count} neutral: {len(sided)} remain, which do not make left and right pairs"
        fix = "give as many right labels as left ones, or correct the number of neutral labels"
        raise LabelError(subject, found=found, fix=fix)
    half = len(sided) // 2
    sides = ["neutral"] * count + ["left"] * half + ["right"] * half
    return sides, [*values[:count], *sided[half:], *sided[:half]]


def _sides_of_targets(
    entries: tuple[int, ...], first: list[int], count: int, subject: str
) -> tuple[list[str], list[int]]:
    """Sides and partners of distinct targets: what stands opposite their entries (neutral: themselves)."""
    sides, opposite = _sides(tuple(range(len(entries))), count, subject)
    partner_of: dict[int, int] = {}
    for entry, value in enumerate(entries):
        partner = entries[opposite[entry]]
        if partner_of.setdefault(value, partner) != partner:
            found = f"entry {entry}: {value}, opposite {partner} here and {partner_of[value]} before"
            raise LabelError(subject, found=found, fix="list the right labels in the order of the left ones")
    partners = [partner_of[entries[i]] for i in first]
    return ["neutral" if partner_of[entries[i]] == entries[i] else sides[i] for i in first], partners
