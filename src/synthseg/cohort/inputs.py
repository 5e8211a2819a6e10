"""From what was typed to scans that can be read: files, folders, globs, lists, BIDS datasets, DICOM folders and zips.

What is taken of a DICOM study and of a BIDS session, and what is left out and why, is part of the answer.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthseg.cohort.archives import unpack
from synthseg.cohort.bids import Choice, LeftOut, find_scans, is_bids
from synthseg.cohort.convert import convert, series_key
from synthseg.cohort.dicom import dicom_files, looks_like_dicom, read_headers
from synthseg.cohort.patterns import fitting, is_pattern
from synthseg.cohort.series import Series, group, impossible, pick, told, unfit
from synthseg.cohort.texts import tsv
from synthseg.errors import SynthsegError, UsageError, VolumeError
from synthseg.files import at_home, read_list
from synthseg.inference.discovery import discover
from synthseg.reading import exists, is_file, is_folder, list_folder, real_path
from synthseg.volumes import is_volume_path

ALL = "all"
_STEM = 100  # characters of a folder's name that become a file's: names end at 255


@dataclass(frozen=True)
class Input:
    """A scan to segment.

    Attributes:
        path: a file that :func:`synthseg.volumes.read_volume` reads.
        entities: what is known of it beside its name: BIDS entities.
        origin: where a converted scan came from, in words; "" for a file that was given.
    """

    path: Path
    entities: dict[str, str] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True)
class Inputs:
    """Scans in the order they were named.

    Attributes:
        left_out: what is not segmented, and why. failed: DICOM studies that should have been and could not.
        notes: what is worth saying, such as which series was taken of a study.
    """

    scans: tuple[Input, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    failed: tuple[LeftOut, ...] = ()

    def table(self) -> str:
        """What was left out and why, as a TSV with a header."""
        rows = [(" ".join(str(one.path).split()), " ".join(one.why.split())) for one in self.left_out]
        return tsv([("left_out", "why"), *rows])


def gather(
    entries: Sequence[str | Path], work: Path, *, series: str | None = None, choice: Choice | None = None
) -> Inputs:
    """Find the scans that were named, and convert those that are DICOM.

    Args:
        entries: files; folders of scans, of DICOM files (also in folders below) or BIDS datasets; zips of DICOM files;
            patterns such as ``data/*/T1w.nii.gz`` (``**``: any number of folders); ``.txt`` lists of all of these.
        work: where converted scans are put, and found again by the next run.
        series: of DICOM studies, instead of the best one: a series number, part of a description, or "all".
        choice: which scans of BIDS datasets.
    Returns: the scans; a study or archive that could not be used is in ``failed`` where there are scans beside it.
    Raises: UsageError for a pattern, folder or list without scans; where there is no scan at all, also for a study of
        which nothing can be segmented, and VolumeError for an archive or series that cannot be unpacked or converted.
    """
    gathering = _Gathering(work, series, choice)
    for entry in entries:
        gathering.add(entry)
    unique = {scan.path: scan for scan in gathering.scans}
    notes = gathering.notes
    if len(unique) < len(gathering.scans):
        notes.append(f"{len(gathering.scans) - len(unique)} scan(s) were named more than once and are done once")
    if gathering.errors and not unique:
        raise gathering.errors[0]
    failed = tuple(LeftOut(Path(error.subject), str(error)) for error in gathering.errors)
    return Inputs(tuple(unique.values()), tuple(gathering.left_out), tuple(notes), failed)


class _Gathering:
    """What has been found so far."""

    def __init__(self, work: Path, series: str | None, choice: Choice | None) -> None:
        self.work, self.series, self.choice = work, series, choice
        self.scans: list[Input] = []
        self.left_out: list[LeftOut] = []
        self.notes: list[str] = []
        self.errors: list[SynthsegError] = []
        self.lists: list[Path] = []  # that are being read, one named by the other
        self.stood_for: set[Path] = set()  # files of series of which one file was named

    def add(self, entry: str | Path) -> None:
        path = at_home(entry)
        if is_pattern(path) and not exists(path):
            found = fitting(path)
            if not found:
                raise UsageError(path, found="a pattern that no file or folder fits", fix="check it, or quote it")
            for one in found:
                self.add_path(one)
        else:
            self.add_path(path)

    def add_path(self, path: Path) -> None:
        suffix = path.suffix.lower()
        if is_folder(path):
            self._folder(path)
        elif suffix == ".txt":
            self._list(path)
        elif suffix == ".zip":
            self._zip(path)
        elif is_file(path) and not is_volume_path(path) and looks_like_dicom(path):
            self._dicom_file(path)
        else:  # also one that is missing: it fails by itself later, and the others are still done
            self.scans.append(Input(path))

    def _list(self, path: Path) -> None:
        """What of a list cannot be used is told of, and the rest is done. It may name other lists, but not itself."""
        if real_path(path) in self.lists:
            raise UsageError(path, found="a list that names itself", fix="take out the line that leads back to it")
        self.lists.append(real_path(path))
        for entry in read_list(path):
            try:
                self.add(entry)
            except UsageError as error:
                self.errors.append(UsageError(f"{path}: {error.subject}", found=error.found, fix=error.fix))
        self.lists.pop()

    def _folder(self, folder: Path) -> None:
        if is_bids(folder):
            found = find_scans(folder, self.choice)
            self.scans += [Input(scan.path, {**scan.entities, "suffix": scan.suffix}) for scan in found.scans]
            self.left_out += found.left_out
            return
        if not any(is_volume_path(path) for path in list_folder(folder)):
            files = list(dicom_files(folder))
            if files:
                self._studies(folder, files, _stem(real_path(folder).name))
                return
        scans, notes = discover([folder])
        self.scans += [Input(path) for path in scans]
        self.notes += notes

    def _zip(self, archive: Path) -> None:
        if not is_file(archive):
            self.errors.append(UsageError(archive, found="no such file", fix="check the path"))
            return
        self.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.work, prefix=".unzipped-") as place:
            try:
                files = [path for path in unpack(archive, Path(place)) if looks_like_dicom(path)]
            except VolumeError as error:
                self.errors.append(error)
                return
            if not files:
                fix = "give a zip of DICOM files, or unpack it and give the scans"
                self.errors.append(UsageError(archive, found="a zip without DICOM files", fix=fix))
                return
            self._studies(archive, files, _stem(archive.stem))

    def _dicom_file(self, path: Path) -> None:
        """One file stands for its series: slices alone are of no use. Naming all of them is naming the series once."""
        if path.absolute() in self.stood_for:
            return
        headers, _ = read_headers([path])
        if not headers:
            self.scans.append(Input(path))
            return
        beside = [other for other in list_folder(path.parent) if looks_like_dicom(other)]
        same = [header for header in read_headers(beside)[0] if header.series == headers[0].series]
        self.stood_for |= {header.path.absolute() for header in same}
        one = group(same)[0]
        if reason := impossible(one):
            fix = "name a file of another series, or the folder"
            self.errors.append(UsageError(path, found=f"a file of {one.name}: {reason}", fix=fix))
            return
        self._take(path, one, _stem(real_path(path).parent.name), "the series of the file that was named")

    def _studies(self, place: Path, files: Sequence[Path], stem: str) -> None:
        headers, others = read_headers(files)
        if others:
            self.notes.append(f"{place}: {len(others)} file(s) could not be read as DICOM and were left out")
        studies: dict[str, list[Series]] = {}
        for one in group(headers):
            studies.setdefault(one.first.study, []).append(one)
        if not studies:
            fix = "give a folder or zip of DICOM files, or NIfTI files"
            self.errors.append(UsageError(place, found="no DICOM image", fix=fix))
        for found in studies.values():
            self._study(place, found, stem)

    def _study(self, place: Path, study: Sequence[Series], stem: str) -> None:
        """Take the best series of a study, or those asked for; the others are left out, each with its reason."""
        reasons = {id(one): impossible(one) or ("" if self.series else unfit(one)) for one in study}
        candidates = [one for one in study if not reasons[id(one)]]
        chosen = candidates
        if self.series and self.series != ALL:
            chosen = [one for one in candidates if _is_asked_for(one, self.series)]
        elif candidates and not self.series:
            chosen = [pick(candidates)]
        if not chosen:
            self.errors.append(_nothing(place, study, reasons, self.series))
            return
        why = f"asked for as '{self.series}'" if self.series else f"the best of {len(candidates)} usable"
        for one in chosen:
            self._take(place, one, stem, why)
        best = chosen[0].name
        for one in study:
            if one not in chosen:
                reason = reasons[id(one)] or (
                    f"not '{self.series}'" if self.series else f"{best} is better: {told(one)}"
                )
                self.left_out.append(LeftOut(place / one.name, reason))

    def _take(self, place: Path, series: Series, stem: str, why: str) -> None:
        number = "" if series.first.number is None else f"-s{series.first.number:03d}"
        target = self.work / f"{stem}{number}-{series_key(series)}.nii.gz"
        try:
            convert(series, target, archive=place if place.suffix.lower() == ".zip" else None)
        except VolumeError as error:
            self.errors.append(error)
            return
        origin = f"{place}: took {series.name} ({told(series)}), {why}"
        self.notes.append(origin)
        self.scans.append(Input(target, origin=origin))


def _stem(name: str) -> str:
    """A folder's name as the beginning of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name)[:_STEM].strip("-.") or "dicom"


def _is_asked_for(series: Series, asked: str) -> bool:
    if asked.isdecimal():
        return series.first.number == int(asked)
    return asked.lower() in series.first.description.lower()


def _nothing(place: Path, study: Sequence[Series], reasons: dict[int, str], asked: str | None) -> SynthsegError:
    what = "; ".join(f"{one.name}: {reasons[id(one)] or 'not asked for'}" for one in study)
    fix = "look for the right folder"
    if not all(impossible(one) for one in study):
        fix = "name one of these series" if asked else f"name a series to take it all the same (--series), or {fix}"
    return UsageError(place, found=f"no series to segment ({what})", fix=fix)
