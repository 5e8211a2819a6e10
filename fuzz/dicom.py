"""DICOM files, folders and zips: examples, changes that know their formats, and how they are read."""

from __future__ import annotations

import random
import re
import struct
import tempfile
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np

from fuzz.mutate import any_bytes, number_bytes
from synthseg.cohort.archives import unpack
from synthseg.cohort.dicom import looks_like_dicom, read_headers
from synthseg.cohort.series import group, impossible, pick, rank, told, unfit
from synthseg.errors import UsageError

_MR = "1.2.840.10008.5.1.4.1.1.4"
_REPRESENTATIONS = re.compile(rb"(DS|IS|UI|CS|LO|SQ|US|UL|FD|SH|PN|OW|UN|DA)")
_VALUES: tuple[bytes, ...] = (
    b"nan",
    b"1e400",
    b"-1",
    b"inf",
    b"1\\2\\3\\4",
    b"\\",
    b"\x1b[31m",
    b"\n\n",
    b"\xff\xff",
    b"9" * 12,
)
_SYNTAXES = (b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.90")


def _slice(index: int, *, deflated: bool = False, enhanced: bool = False) -> bytes:
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID, meta.MediaStorageSOPClassUID = UID(f"1.2.3.{index}"), UID(_MR)
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = _MR, f"1.2.3.{index}"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = "1.2.3", "1.2.3.0", "MR"
    data.SeriesNumber, data.SeriesDescription, data.ImageType = 3, "t1 mprage", ["ORIGINAL", "PRIMARY", "M"]
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-20, -30, index * 9.0]
    data.PixelSpacing, data.SliceThickness, data.EchoTime = [1.5, 1.5], 9, 3.1
    data.Rows = data.Columns = 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = np.arange(64, dtype="<u2").tobytes()
    if enhanced:
        frame, plane, measures = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient, measures.PixelSpacing, measures.SliceThickness = [0, 0, 5], [1, 1], 2
        frame.PlanePositionSequence, frame.PixelMeasuresSequence = Sequence([plane]), Sequence([measures])
        data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = Sequence([frame, frame]), 2
    out = BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def dicom_seeds(folder: Path) -> list[Path]:
    kinds = {"plain": {}, "deflated": {"deflated": True}, "enhanced": {"enhanced": True}}
    made = [folder / f"{name}.dcm" for name in kinds]
    for path, kind in zip(made, kinds.values(), strict=True):
        path.write_bytes(_slice(1, **kind))
    made.append(folder / "bare.ima")  # as old exports are: no preamble, no mark
    made[-1].write_bytes(_slice(1)[132:])
    return made


def hostile_dicom(rng: random.Random, content: bytes) -> bytes:
    """Another length, type or value of an element, another transfer syntax."""
    places = [match.start() for match in _REPRESENTATIONS.finditer(content)]
    if not places or rng.random() < 0.2:
        return any_bytes(rng, content)
    at, how = rng.choice(places), rng.randrange(5)
    if how == 0:
        return content[: at + 2] + number_bytes(rng)[:4] + content[at + 6 :]
    if how == 1:
        return content[:at] + rng.choice((b"SQ", b"UN", b"DS", b"IS", b"FD", b"ZZ")) + content[at + 2 :]
    if how == 2:
        value = rng.choice(_VALUES)
        return content[: at + 2] + struct.pack("<H", len(value)) + value + content[at + 4 :]
    if how == 3:
        return re.sub(rb"1\.2\.840\.10008\.1\.2(\.1(\.99)?)?\0?", lambda _: rng.choice(_SYNTAXES), content, count=1)
    return content[:at] + content[at : at + 12] * rng.choice((2, 50, 5000)) + content[at:]


def read_series(paths: list[Path]) -> object:
    headers, _ = read_headers(paths)
    series = group(headers)
    usable = [one for one in series if not impossible(one)]
    said = [(unfit(one), told(one), one.name, rank(one)) for one in usable]
    return (pick(usable), said) if usable else None


def read_dicom(path: Path) -> object:
    if not looks_like_dicom(path):
        raise UsageError(path, found="no DICOM", fix="give one")
    return read_series([path])


def zip_seeds(folder: Path) -> list[Path]:
    made = []
    for name, method in (("deflated", zipfile.ZIP_DEFLATED), ("stored", zipfile.ZIP_STORED)):
        made.append(folder / f"{name}.zip")
        with zipfile.ZipFile(made[-1], "w", method) as archive:
            for index in range(2):
                archive.writestr(zipfile.ZipInfo(f"study/series 1/im{index}.dcm"), _slice(index), method)
            archive.writestr(zipfile.ZipInfo("study/readme.txt"), b"hello")
    return made


_NAMES: tuple[str, ...] = (
    "../evil.dcm",
    "/etc/evil.dcm",
    "C:\\evil.dcm",
    "a/../../b.dcm",
    "..\\b.dcm",
    "a\nb.dcm",
    "\x1b[2J.dcm",
    "x" * 300,
    "DICOMDIR",
)


def hostile_zip(rng: random.Random, content: bytes) -> bytes:
    """Entries renamed, linked, doubled, huge; records that lie about sizes, places, counts and encryption."""
    how = rng.randrange(8)
    records = [m.start() for m in re.finditer(b"PK(\1\2|\3\4|\5\6)", content)]
    if how < 4 and records:
        at = rng.choice(records)
        field = at + 4 + 2 * rng.randrange(20)
        new = number_bytes(rng)
        return content[:field] + new + content[field + len(new) :]
    out, method = BytesIO(), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")
        for _ in range(rng.choice((0, 1, 2, 40))):
            info = zipfile.ZipInfo(rng.choice(_NAMES))
            info.external_attr = rng.choice((0, 0o120777 << 16, 0o040755 << 16, 0o100644 << 16))
            archive.writestr(info, rng.choice((_slice(1), b"", bytes(2**21), b"../../etc/passwd", content)), method)
    return out.getvalue() if how < 7 else any_bytes(rng, content)


def read_zip(path: Path) -> object:
    with tempfile.TemporaryDirectory() as place:
        files = unpack(path, Path(place))
        outside = [file for file in files if Path(place) not in file.resolve().parents or file.is_symlink()]
        assert not outside, outside
        return read_series([file for file in files if looks_like_dicom(file)])


def folder_seeds(folder: Path) -> list[Path]:
    place = folder / "study"
    place.mkdir()
    for n in range(9):
        (place / f"{n}.dcm").write_bytes(_slice(n))
    return [place]
