"""Which prediction belongs to which truth, decided by name and never by position in a folder.

The rule, tried in this order for each prediction, over the file names without extension (*stems*):

1. a truth of the same stem;
2. a truth of the same *core*: the stem without the trailing words of :data:`KIND_WORDS`, which say what a file is and
   not whose (``sub-01_t1_synthseg`` and ``sub-01_aseg`` share the core ``sub-01``);
3. the longest common beginning: of the truths whose core begins the prediction's stem, or whose stem begins with the
   prediction's core, word by word, the one that shares most words.

Two truths that fit equally well, no truth that fits, a truth wanted by two predictions, and a truth left without a
prediction are problems that name the files; none is ever settled by guessing. A common beginning must be one name's
whole core, because "study_anna_pred" and "study_bob_gt" begin alike too.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.reading import as_text, is_file, is_folder, list_folder
from synthseg.volumes.volume import VOLUME_EXTENSIONS, is_volume_path, strip_extension

KIND_WORDS = frozenset(
    {"synthseg", "seg", "segmentation", "dseg", "pred", "prediction", "predicted", "labels", "label", "mask"}
    | {"gt", "truth", "manual", "aseg", "aparc", "image", "img", "orig", "native", "resampled"}
    | {"t1", "t1w", "t2", "t2w", "pd", "pdw", "flair", "ct", "head", "brain"}
)


@dataclass(frozen=True)
class FilePair:
    """A prediction and its truth."""

    name: str  # the prediction's stem: the scan's name in the wide table and in messages
    predicted: Path
    truth: Path
    scan: str = ""  # the scan's name in the long table, the same for every method scored on this truth
    method: str = ""  # whose prediction it is


@dataclass(frozen=True)
class Pairing:
    """What was paired, and what was not: (file name, sentence) each."""

    pairs: tuple[FilePair, ...]
    problems: tuple[tuple[str, str], ...] = ()


def pair_files(predicted: Path, truth: Path, *, truth_pattern: str = "*", predicted_pattern: str = "*") -> Pairing:
    """Pair the label maps of two folders, or two files, by the rule above.

    Two files are a pair whatever their names. One truth file serves every prediction of a folder. One prediction file
    picks its truth from a folder.

    Args:
        predicted, truth: a file or a folder (not searched recursively).
        truth_pattern, predicted_pattern: only files whose name fits this shell pattern, e.g. ``*_aseg.nii.gz``; a
            file that is named itself is taken whatever its name.
    Raises: UsageError when a path does not exist or a folder holds no volume.
    """
    ours = _volumes(predicted, predicted_pattern)
    theirs = _volumes(truth, truth_pattern)
    if is_file(truth):
        alone = len(ours) == 1
        return Pairing(tuple(FilePair(_stem(p), p, truth, core_of(_stem(truth)) if alone else _stem(p)) for p in ours))
    return _match(ours, theirs, report_unused=is_folder(predicted))


def core_of(stem: str) -> str:
    """The stem without its trailing kind words; never empty."""
    words = _words(stem)
    while len(words) > 1 and words[-1].lower() in KIND_WORDS:
        words = words[:-1]
    return _joined(words)


def _match(ours: Sequence[Path], theirs: Sequence[Path], *, report_unused: bool) -> Pairing:
    chosen: dict[Path, Path] = {}
    problems: list[tuple[str, str]] = []
    named: set[Path] = set()  # truths that a problem already names
    for path in ours:
        candidates = _candidates(_stem(path), theirs)
        if len(candidates) == 1:
            chosen[path] = candidates[0]
        elif candidates:
            named.update(candidates)
            names = ", ".join(candidate.name for candidate in candidates)
            problems.append((path.name, f"more than one truth fits: {names}; narrow them down with a truth pattern"))
        else:
            problems.append((path.name, f"no truth fits the name among {len(theirs)} files in {theirs[0].parent}"))
    problems += settle(chosen, theirs, passed_over=named if report_unused else set(theirs))
    scans = distinct_names({path: core_of(_stem(path)) for path in theirs})
    pairs = tuple(FilePair(_stem(path), path, target, scans[target]) for path, target in chosen.items())
    return Pairing(pairs, tuple(problems))


def settle(chosen: dict[Path, Path], theirs: Sequence[Path], *, passed_over: Set[Path]) -> list[tuple[str, str]]:
    """Take truths that several predictions want out of ``chosen``, and tell of them and of those that nobody wants.

    Args:
        chosen: prediction -> truth; changed.
        passed_over: truths of which nothing is said if nobody wants them.
    Returns: problems, (file name, sentence) each, in the order of ``theirs``.
    """
    problems = []
    for target in theirs:
        wanting = [path for path, wanted in chosen.items() if wanted == target]
        if len(wanting) > 1:
            names = ", ".join(path.name for path in wanting)
            problems.append((target.name, f"wanted by several predictions: {names}"))
            for path in wanting:
                del chosen[path]
        elif not wanting and target not in passed_over:
            problems.append((target.name, "no prediction for this truth"))
    return problems


def distinct_names(names: Mapping[Path, str]) -> dict[Path, str]:
    """Each file's name if no other file has it as well, otherwise its stem."""
    counts = Counter(names.values())
    return {path: name if counts[name] == 1 else _stem(path) for path, name in names.items()}


def _candidates(stem: str, theirs: Sequence[Path]) -> list[Path]:
    same = [path for path in theirs if _stem(path) == stem]
    if same:
        return same
    core = _words(core_of(stem))
    same = [path for path in theirs if _words(core_of(_stem(path))) == core]
    if same:
        return same
    shared = {path: _shared_words(_words(stem), core, path) for path in theirs}
    longest = max(shared.values(), default=0)
    return [path for path in theirs if longest and shared[path] == longest]


def _shared_words(words: list[str], core: list[str], path: Path) -> int:
    """Number of words that one name's core has in common with the other name's beginning, if all of it; else 0."""
    their_words = _words(_stem(path))
    their_core = _words(core_of(_stem(path)))
    if words[: len(their_core)] == their_core:
        return len(their_core)
    return len(core) if their_words[: len(core)] == core else 0


def _words(stem: str) -> list[str]:
    return [word for word in re.split(r"[_.\s]+", stem) if word] or [stem]


def _joined(words: list[str]) -> str:
    return "_".join(words)


def _volumes(path: Path, pattern: str) -> list[Path]:
    if is_file(path):
        return [path]
    if not is_folder(path):
        raise UsageError(path, found="no such file or folder", fix="check the path")
    files = [p for p in list_folder(path) if is_volume_path(p) and fnmatch.fnmatch(p.name, pattern) and is_file(p)]
    if not files:
        kinds = " ".join(VOLUME_EXTENSIONS)
        named = "" if pattern == "*" else f" named {pattern!r}"
        raise UsageError(
            path, found=f"no label map{named} in this folder ({kinds})", fix="check the folder and pattern"
        )
    return files


def _stem(path: Path) -> str:
    return as_text(strip_extension(path))
