"""Pairing the label maps of two BIDS datasets by their entities.

A derivative's name says of which scan it is (``sub``, ``ses``, ``acq``, ``run``, ...) and how it was made
(:data:`HOW_MADE`: ``space``, ``desc``, ...). The first kind decides what belongs together:

1. truths whose entities of the first kind are those of the prediction;
2. otherwise, truths of the same subject that contradict it in none of them, of these the ones that share most;
3. of several, those in the prediction's ``space`` and then at its ``res``, if there are any.

What is then not one file is a problem that names the candidates. ``run-01`` and ``run-1`` are the same.

Source: Brain Imaging Data Structure 1.10, "File name structure" and "Derivatives: Imaging, segmentations".
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthseg.cohort.bids import DESCRIPTION, plain, subject_folders
from synthseg.errors import UsageError
from synthseg.evaluation.pairing import FilePair, Pairing, distinct_names, settle
from synthseg.reading import as_text, is_file, is_folder, list_folder
from synthseg.volumes.volume import is_volume_path, strip_extension

HOW_MADE = frozenset({"space", "res", "den", "desc", "label", "atlas", "seg", "scale"})
LABEL_MAP = "dseg"  # suffix of a discrete segmentation


@dataclass(frozen=True)
class BidsName:
    """A file and what its name says."""

    path: Path
    scan: dict[str, str]  # entities that say of which scan it is
    made: dict[str, str]  # those that say how it was made
    suffix: str


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a BIDS dataset: its description, or folders of subjects."""
    return is_folder(folder) and (is_file(folder / DESCRIPTION) or bool(subject_folders(folder)))


def read_name(path: Path) -> BidsName | None:
    """What the name of a volume says; None for one that does not begin with ``sub-`` or repeats an entity."""
    words = strip_extension(path).split("_")
    pairs = [word.partition("-")[::2] for word in words if "-" in word]
    entities = {key: plain(key, value) for key, value in pairs}
    if not words[0].startswith("sub-") or len(entities) < len(pairs) or not all(entities.values()):
        return None
    scan = {key: value for key, value in entities.items() if key not in HOW_MADE}
    made = {key: value for key, value in entities.items() if key in HOW_MADE}
    return BidsName(path, scan, made, "" if "-" in words[-1] else words[-1])


def pair_datasets(predicted: Path, truth: Path, *, truth_pattern: str = "*", predicted_pattern: str = "*") -> Pairing:
    """Pair the label maps (``_dseg``) of two datasets by the rule above.

    A folder without subjects' folders may stand for a dataset: all its volumes named ``sub-*`` are taken, whatever
    their suffix, such as those that ``synthseg segment`` writes for the scans of a dataset.

    Args:
        predicted, truth: folders. Derivatives within a dataset are datasets of their own: name their folder.
        truth_pattern, predicted_pattern: only files whose name fits this shell pattern, e.g. ``*_desc-manual_*``.
    Raises: UsageError for a folder that does not exist or has no label map.
    """
    ours, theirs = label_maps(predicted, predicted_pattern), label_maps(truth, truth_pattern)
    chosen: dict[Path, Path] = {}
    problems: list[tuple[str, str]] = []
    named: set[Path] = set()  # truths that a problem already names
    for name in ours:
        fitting = _candidates(name, theirs)
        if len(fitting) == 1:
            chosen[name.path] = fitting[0].path
            continue
        named.update(candidate.path for candidate in fitting)
        problems.append((name.path.name, _told(fitting, len(theirs), truth)))
    problems += settle(chosen, [name.path for name in theirs], passed_over=named)
    scans = distinct_names({name.path: _joined(name) for name in theirs})
    pairs = tuple(
        FilePair(as_text(strip_extension(path)), path, target, scans[target]) for path, target in chosen.items()
    )
    return Pairing(pairs, tuple(problems))


def label_maps(folder: Path, pattern: str = "*") -> list[BidsName]:
    """A dataset's label maps in the order of their paths. Raises: UsageError when there is none."""
    if not is_folder(folder):
        raise UsageError(folder, found="no such folder", fix="give the folder of a BIDS dataset")
    subjects = subject_folders(folder)
    paths = [path for subject in subjects for path in subject.rglob("*")] if subjects else list_folder(folder)
    volumes = sorted(path for path in paths if is_volume_path(path) and is_file(path))
    fitting = (read_name(path) for path in volumes if fnmatch.fnmatch(path.name, pattern))
    names = [name for name in fitting if name is not None and (not subjects or name.suffix == LABEL_MAP)]
    if not names:
        inside = sorted(path.name for path in (folder / "derivatives").glob("*") if path.is_dir())
        hint = f", e.g. {folder / 'derivatives' / inside[0]}" if inside else ""
        asked = "" if pattern == "*" else f" named {pattern!r}"
        kind = f"*_{LABEL_MAP}.nii.gz" if subjects else "sub-*.nii.gz"
        fix = f"give the folder of the derivative that holds them{hint}"
        raise UsageError(folder, found=f"no label map ({kind}){asked}", fix=fix)
    return names


def _candidates(name: BidsName, theirs: Sequence[BidsName]) -> list[BidsName]:
    fitting = [other for other in theirs if other.scan == name.scan]
    if not fitting:
        shared = [_shared(name.scan, other.scan) for other in theirs]
        most = max(shared, default=0)
        fitting = [other for other, n in zip(theirs, shared, strict=True) if n == most > 0]
    for key in ("space", "res"):
        same = [other for other in fitting if other.made.get(key) == name.made.get(key)]
        fitting = same or fitting
    return fitting


def _shared(ours: dict[str, str], theirs: dict[str, str]) -> int:
    """Number of entities that two names share; 0 when they contradict each other in one of them."""
    common = ours.keys() & theirs.keys()
    return len(common) if all(ours[key] == theirs[key] for key in common) else 0


def _told(fitting: Sequence[BidsName], n_truths: int, truth: Path) -> str:
    if not fitting:
        return f"no truth of this scan among {n_truths} label maps in {truth}"
    names = ", ".join(candidate.path.name for candidate in fitting)
    return f"more than one truth fits: {names}; narrow them down with a truth pattern"


def _joined(name: BidsName) -> str:
    return as_text("_".join(f"{key}-{value}" for key, value in name.scan.items()))
