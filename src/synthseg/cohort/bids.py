"""Which scans of a BIDS dataset are to be segmented: found by the entities in their names, without an index.

A dataset is read by its folders alone (``sub-*/[ses-*/]anat|ct/*``): no database to build, to keep up to date or to
depend on, and listing 10,000 subjects is a matter of seconds.

Source: Brain Imaging Data Structure 1.10, "File name structure" and "Magnetic Resonance Imaging".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthseg.errors import UsageError
from synthseg.reading import exists, is_file, is_folder
from synthseg.volumes import is_volume_path, strip_extension
from synthseg.volumes.volume import extension_of

DESCRIPTION = "dataset_description.json"
DATATYPES = ("anat", "ct")  # "ct" is not in the standard yet (BEP 24), and in use all the same
# What is taken of a session by itself: the first of these that it has. Contrasts on which brains are easiest to see
# come first; parametric maps, angiograms and localisers are never taken unless they are asked for.
PREFERRED = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "UNIT1", "inplaneT1", "inplaneT2", "ct")
# What pybids calls entities, which files for --bids-filter-file use, and how they are written in names.
LONG_NAMES = {
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "direction": "dir",
    "modality": "mod",
    "inversion": "inv",
}
ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "chunk")
OTHER_KEYS = ("suffix", "datatype", "extension")
ANY = "*"
INDEXES = frozenset({"run", "echo", "flip", "inv", "split", "chunk"})  # numbers, which may have leading zeros

# Key -> accepted values: "" is to be absent, "*" anything that is there. None: must be absent.
Query = Mapping[str, tuple[str, ...] | None]


@dataclass(frozen=True)
class BidsScan:
    """A scan of a dataset.

    Attributes:
        path: the file. dataset: the folder of the dataset. datatype: its folder, e.g. "anat".
        entities: short name -> value, in the order of the file's name, values as they are written.
        suffix: what kind of image it is, e.g. "T1w".
    """

    path: Path
    dataset: Path
    entities: dict[str, str]
    suffix: str
    datatype: str

    @property
    def relative(self) -> str:
        """Path within the dataset, with forward slashes."""
        return self.path.relative_to(self.dataset).as_posix()

    @property
    def session(self) -> tuple[str, str]:
        """Subject and session label ("" without sessions)."""
        return self.entities["sub"], self.entities.get("ses", "")


@dataclass(frozen=True)
class LeftOut:
    """A file that is not segmented, and why."""

    path: Path
    why: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which scans are wanted; empty fields leave the choice to us.

    ``participants`` and ``sessions`` are labels with or without ``sub-`` and ``ses-``; ``suffixes`` kinds of images, or
    ("all",) for every one of :data:`PREFERRED`; a scan must fit one of the ``queries``.
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    queries: tuple[Query, ...] = field(default=())


@dataclass(frozen=True)
class Found:
    """Scans in the order of their paths, and what was left out."""

    scans: tuple[BidsScan, ...]
    left_out: tuple[LeftOut, ...]


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS dataset with scans: its description, and folders of subjects."""
    return is_file(folder / DESCRIPTION) and bool(subject_folders(folder))


def find_scans(dataset: Path, choice: Choice | None = None) -> Found:
    """The scans to segment.

    Without suffixes or queries one kind of image a session is taken, the first of :data:`PREFERRED` that it has, with
    all its runs and acquisitions. Phase, real and imaginary parts are only taken where a query names ``part``.

    Raises: UsageError for a folder that is no dataset, a participant or session it does not have, or no scan at all.
    """
    choice = choice or Choice()
    subjects = _subjects(dataset, choice.participants)
    sessions = tuple(label.removeprefix("ses-") for label in choice.sessions)
    images = [image for subject in subjects for image in _images_of(dataset, subject)]
    seen = [image for image in images if isinstance(image, BidsScan)]
    misnamed = [image for image in images if isinstance(image, LeftOut)]
    _require_sessions(dataset, sessions, seen)
    within = [scan for scan in seen if not sessions or scan.entities.get("ses") in sessions]
    fitting, left_out = _usable(within, choice)
    if not choice.suffixes and not choice.queries:
        fitting, passed_over = _one_kind_a_session(fitting)
        left_out += passed_over
    if not fitting:
        raise _nothing(dataset, within, misnamed, choice)
    return Found(tuple(fitting), (*left_out, *misnamed))


def plain(key: str, value: str) -> str:
    """A value as it is compared: without its prefix or a number's leading zeros."""
    value = value.removeprefix(f"{key}-") if key in ENTITIES else value
    if key == "extension":
        return value.lstrip(".").lower()
    return value.lstrip("0") or "0" if key in INDEXES and value.isdecimal() else value


def _fits(scan: BidsScan, query: Query) -> bool:
    said = {**scan.entities, "suffix": scan.suffix, "datatype": scan.datatype, "extension": extension_of(scan.path)}
    for key, accepted in query.items():
        value = plain(key, said[key]) if key in said else None
        if accepted is None:
            if value is not None:
                return False
        elif (value or "") not in accepted and (value is None or ANY not in accepted):
            return False
    return True


def subject_folders(dataset: Path) -> list[Path]:
    """The folders of a dataset's subjects, sorted."""
    return sorted(path for path in dataset.glob("sub-*") if path.is_dir())


def _subjects(dataset: Path, participants: Sequence[str]) -> list[Path]:
    if not is_folder(dataset):
        raise UsageError(dataset, found="no such folder", fix="give the folder of a BIDS dataset")
    folders = {path.name: path for path in subject_folders(dataset)}
    if not folders:
        fix = "give the folder that holds sub-* folders; for scans in another order use synthseg segment"
        raise UsageError(dataset, found="no folder of a subject (sub-*)", fix=fix)
    wanted = [f"sub-{label.removeprefix('sub-')}" for label in participants] or list(folders)
    for name in wanted:
        if name not in folders:
            near = difflib.get_close_matches(name, folders, n=3) or list(folders)[:3]
            raise UsageError(dataset, found=f"no participant {name}", fix=f"use a label that is there: {_and(near)}")
    return [folders[name] for name in dict.fromkeys(wanted)]


def _images_of(dataset: Path, subject: Path) -> list[BidsScan | LeftOut]:
    """A subject's images; those whose names the standard does not have, or that lie in another's folder, are left out.

    What they are of cannot be known, and their results would have other scans' names.
    """
    places = [subject, *sorted(path for path in subject.glob("ses-*") if path.is_dir())]
    found: list[BidsScan | LeftOut] = []
    for place, kind in ((place, kind) for place in places for kind in DATATYPES):
        session = "" if place == subject else place.name.removeprefix("ses-")
        for path in sorted(path for path in (place / kind).glob("*") if is_volume_path(path)):
            scan = _read_name(path, dataset, kind)
            if scan is None:
                found.append(LeftOut(path, "a name that is not built as BIDS has it (sub-LABEL[_KEY-VALUE...]_SUFFIX)"))
            elif scan.session != (subject.name.removeprefix("sub-"), session):
                found.append(LeftOut(path, "a name of another subject or session than the folder that it lies in"))
            else:
                found.append(scan)
    return found


def _read_name(path: Path, dataset: Path, datatype: str) -> BidsScan | None:
    """What a name says; None where it is not built as the standard has it."""
    *words, suffix = strip_extension(path).split("_")
    pairs = [word.partition("-")[::2] for word in words]
    entities = dict(pairs)
    # What cannot be printed (line ends, bytes that are no text) would be in tables, sidecars and the names of results.
    if not path.name.isprintable() or "sub" not in entities:
        return None
    if len(entities) < len(pairs) or not all(key and value for key, value in pairs):
        return None
    return BidsScan(path, dataset, entities, suffix, datatype)


def _usable(scans: Iterable[BidsScan], choice: Choice) -> tuple[list[BidsScan], list[LeftOut]]:
    """Those that were asked for and can be used, and the others of the dataset with the reason."""
    suffixes = PREFERRED if choice.suffixes in ((), ("all",)) else choice.suffixes
    fitting, left_out = [], []
    for scan in scans:
        queries = [query for query in choice.queries if _fits(scan, query)]
        why = ""
        if choice.queries and not queries:
            why = "no query of the filter file asks for it"
        elif scan.suffix not in suffixes and not (queries and not choice.suffixes):
            why = f"{scan.suffix} images are not asked for (--suffix {scan.suffix} takes them)"
        elif scan.entities.get("part", "mag") != "mag" and not any("part" in query for query in queries):
            why = f"the {scan.entities['part']} part of a complex image"
        elif not exists(scan.path):
            why = "a link to a file that is not here (with DataLad: datalad get)"
        if why:
            left_out.append(LeftOut(scan.path, why))
        else:
            fitting.append(scan)
    return fitting, left_out


def _one_kind_a_session(scans: Sequence[BidsScan]) -> tuple[list[BidsScan], list[LeftOut]]:
    best: dict[tuple[str, str], str] = {}
    for scan in sorted(scans, key=lambda scan: PREFERRED.index(scan.suffix)):
        best.setdefault(scan.session, scan.suffix)
    left_out = [
        LeftOut(s.path, f"this session has a {best[s.session]}, which is taken (--suffix {s.suffix} takes this one)")
        for s in scans
        if s.suffix != best[s.session]
    ]
    return [scan for scan in scans if scan.suffix == best[scan.session]], left_out


def _require_sessions(dataset: Path, sessions: Sequence[str], seen: Sequence[BidsScan]) -> None:
    there = sorted({scan.entities["ses"] for scan in seen if "ses" in scan.entities})
    for label in sessions:
        if label not in there:
            fix = f"use a label that is there: {_and(there[:5])}" if there else "leave --session-label out"
            raise UsageError(dataset, found=f"no session ses-{label} of these participants", fix=fix)


def _nothing(dataset: Path, within: Sequence[BidsScan], misnamed: Sequence[LeftOut], choice: Choice) -> UsageError:
    kinds = sorted({scan.suffix for scan in within})
    inside = f"images, but only of the kinds {_and(kinds)}" if kinds else "no image in anat/ folders (.nii, .nii.gz)"
    if misnamed:
        inside += f"; {len(misnamed)} more cannot be used, e.g. {misnamed[0].path.name}: {misnamed[0].why}"
    asked = choice.suffixes or choice.queries
    fix = "loosen --suffix or --bids-filter-file" if asked else "name the kind with --suffix, or check the dataset"
    return UsageError(dataset, found=f"no scan to segment: {inside}", fix=fix)


def _and(names: Iterable[str]) -> str:
    return ", ".join(names)
