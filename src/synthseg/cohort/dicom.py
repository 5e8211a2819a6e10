"""DICOM files found in folders, and what is read of their headers. Names, birth dates and identifiers are not."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from synthseg.cohort.series import Header
from synthseg.errors import UsageError, one_line
from synthseg.reading import is_file

PREAMBLE = 128
MAX_INFLATED = 2**28  # bytes in one file whose content is compressed as a whole
_LONGEST = 200  # characters of a description; the standard allows 64
_LARGEST = 1e6  # mm or ms
# Files that are never DICOM images and often lie beside them.
OTHER_FILES = frozenset(
    {".nii", ".gz", ".json", ".txt", ".csv", ".tsv", ".png", ".jpg", ".jpeg", ".pdf", ".xml", ".html", ".zip", ".bval"}
    | {".bvec", ".mgz", ".mgh", ".npz", ".exe", ".inf", ".md", ".log"}
)
TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "Modality",
    "ImageType",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SliceThickness",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "EchoTime",
    "DiffusionBValue",
    "SamplesPerPixel",
    "ContrastBolusAgent",
    "ConvolutionKernel",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


def require_dicom() -> None:
    """Raises: UsageError where the packages are missing."""
    try:
        import dcm2niix  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        fix = "pip install 'synthseg[dicom]', or convert the series to NIfTI yourself"
        raise UsageError("DICOM", found=f"no package to read it with ({error.name})", fix=fix) from error


def looks_like_dicom(path: Path) -> bool:
    """Whether a file may be DICOM: by its mark, or by a name like those of old exports, which have no mark.

    Pipes and devices are not: opening one may wait for ever.
    """
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or path.suffix.lower() in OTHER_FILES:
        return False
    if not is_file(path):
        return False
    try:
        with path.open("rb") as file:
            start = file.read(PREAMBLE + 4)
    except OSError:
        return False
    if start[PREAMBLE:] == b"DICM":
        return True
    # Without a preamble a file begins with an element of group 2 or 8, little or big endian.
    return start[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08") and len(start) == PREAMBLE + 4


def dicom_files(folder: Path) -> Iterator[Path]:
    """Files of a folder and those below it that may be DICOM, in order. Links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if looks_like_dicom(path):
                yield path


def read_headers(files: Iterable[Path]) -> tuple[list[Header], list[Path]]:
    """The headers of DICOM files, pixels not read; and the files that turned out to be none.

    Raises: UsageError without pydicom.
    """
    require_dicom()
    headers, others = [], []
    for path in files:
        header = read_header(path)
        if header is None:
            others.append(path)
        else:
            headers.append(header)
    return headers, others


def read_header(path: Path) -> Header | None:
    """One file's header; None where it cannot be read or belongs to no series."""
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vendors break rules that matter to nobody here
            if _inflates(path):
                return None
            data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=TAGS)
            # Within: values are converted, and complained about, when they are asked for.
            study, series = str(data.get("StudyInstanceUID", "")), str(data.get("SeriesInstanceUID", ""))
            if not series or not data.get("SOPClassUID"):
                return None
            return _header(path, data, study, series)
    except Exception:  # damaged files make the parser raise anything; they are counted and told of by the caller
        return None


def _header(path: Path, data: Any, study: str, series: str) -> Header:
    shared = _group(data.get("SharedFunctionalGroupsSequence"))
    frames = [_group([one]) for one in data.get("PerFrameFunctionalGroupsSequence") or []] or [{}]
    every = [{**shared, **frame} for frame in frames]
    plane = [one.get("orientation") or _floats(data.get("ImageOrientationPatient")) for one in every]
    places = [one.get("position") or _floats(data.get("ImagePositionPatient")) for one in every]
    number = data.get("SeriesNumber")
    return Header(
        path=path,
        study=study,
        series=series,
        instance=str(data.get("SOPInstanceUID", "")),
        sop_class=str(data.get("SOPClassUID", "")),
        modality=str(data.get("Modality", "")).upper(),
        number=int(number) if number is not None and 0 <= int(number) < 10**9 else None,
        description=one_line(str(data.get("SeriesDescription") or data.get("ProtocolName") or "").strip())[:_LONGEST],
        image_type=tuple(str(value) for value in _many(data.get("ImageType"))),
        orientations=tuple(one for one in plane if len(one) == 6),
        positions=tuple(one for one in places if len(one) == 3),
        spacing_mm=every[0].get("spacing") or _floats(data.get("PixelSpacing")),
        thickness_mm=float((every[0].get("thickness") or _floats(data.get("SliceThickness")) or (0.0,))[0]),
        rows=int(data.get("Rows") or 0),
        columns=int(data.get("Columns") or 0),
        frames=int(data.get("NumberOfFrames") or 1),
        echo_ms=next(iter(_floats(data.get("EchoTime"))), None),
        b_value=max([*(one.get("b_value", (0.0,))[0] for one in every), *_floats(data.get("DiffusionBValue"))]),
        samples=int(data.get("SamplesPerPixel") or 1),
        contrast_agent=bool(str(data.get("ContrastBolusAgent") or "").strip()),
        kernel=" ".join(str(value) for value in _many(data.get("ConvolutionKernel"))),
    )


def _group(sequence: Any) -> dict[str, tuple[float, ...]]:
    """Geometry in a functional group of an enhanced (multi-frame) image; what is not there is left out."""
    places = {
        "orientation": ("PlaneOrientationSequence", "ImageOrientationPatient"),
        "position": ("PlanePositionSequence", "ImagePositionPatient"),
        "spacing": ("PixelMeasuresSequence", "PixelSpacing"),
        "thickness": ("PixelMeasuresSequence", "SliceThickness"),
        "b_value": ("MRDiffusionSequence", "DiffusionBValue"),
    }
    found: dict[str, tuple[float, ...]] = {}
    for group in list(sequence or [])[:1]:
        for name, (outer, inner) in places.items():
            holder = group.get(outer)
            values = _floats(holder[0].get(inner)) if holder else ()
            if values:
                found[name] = values
    return found


def _many(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def _floats(value: Any) -> tuple[float, ...]:
    """Numbers of an attribute; none at all where one of them is no number that a scanner could mean."""
    numbers = tuple(float(one) for one in _many(value))
    return numbers if all(abs(one) < _LARGEST for one in numbers) else ()  # false for NaN, too


def _inflates(path: Path) -> bool:
    """Whether a file is compressed as a whole (deflated transfer syntax) to more than such a file may hold.

    The parser would take all of it into memory at once: ten megabytes may hold ten gigabytes.
    """
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file:
        if file.read(PREAMBLE + 4)[PREAMBLE:] != b"DICM":
            return False
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return False
    length = int(meta.FileMetaInformationGroupLength)
    with path.open("rb") as file:
        file.seek(PREAMBLE + 4 + 12 + length)  # behind the mark, the element of the group's length, and the group
        unpacked, left = zlib.decompressobj(-zlib.MAX_WBITS), MAX_INFLATED
        while left > 0 and (packed := file.read(2**20)):
            while packed and left > 0:
                left -= len(unpacked.decompress(packed, 2**20))
                packed = unpacked.unconsumed_tail
    return left <= 0
