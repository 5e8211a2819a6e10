"""Zips and DICOM files that lie about themselves: refused by name, nothing outside of the folder, no memory taken."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")
pytest.importorskip("dcm2niix")

from dicom_files import make_series
from synthseg.cohort import dicom
from synthseg.cohort.archives import unpack
from synthseg.cohort.dicom import looks_like_dicom, read_header, read_headers
from synthseg.cohort.inputs import gather
from synthseg.cohort.series import group, impossible, told, unfit
from synthseg.errors import SynthsegError, VolumeError


def zipped(path: Path, *, entries: int = 1, data: bytes = b"", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for index in range(entries):
            archive.writestr(f"im{index}.dcm", data)
    return path


def patched(path: Path, mark: bytes, offset: int, kind: str, value: int) -> Path:
    """Every record of a zip that begins with ``mark`` gets another number."""
    content = bytearray(path.read_bytes())
    at = content.find(mark)
    while at >= 0:
        struct.pack_into(kind, content, at + offset, value)
        at = content.find(mark, at + 4)
    path.write_bytes(bytes(content))
    return path


CENTRAL, LOCAL = b"PK\1\2", b"PK\3\4"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: zipped(p, data=bytes(50_000_000)), "zip bomb"),
        (lambda p: zipped(p, data=bytes(3000), method=zipfile.ZIP_LZMA), "compression of the kind 14"),
        (lambda p: zipped(p, data=bytes(3000), method=zipfile.ZIP_BZIP2), "compression of the kind 12"),
        (lambda p: patched(zipped(p, data=b"x" * 99), CENTRAL, 24, "<I", 5), "cannot be unpacked|longer than it says"),
        (lambda p: patched(zipped(p, data=b"x" * 99), CENTRAL, 24, "<I", 2**31), "zip bomb"),
        (lambda p: patched(zipped(p, data=b"x" * 99), CENTRAL, 8, "<H", 1), "encrypted"),
        (lambda p: patched(zipped(p, data=b"x" * 99), CENTRAL, 42, "<I", 2**31), "cannot be unpacked"),
        (lambda p: patched(zipped(p, data=b"x" * 99), LOCAL, 0, "<I", 0), "cannot be unpacked"),
        (lambda p: patched(zipped(p, data=b"x" * 99), CENTRAL, 16, "<I", 7), "cannot be unpacked"),
        (lambda p: p.write_bytes(b""), "cannot be unpacked"),
        (lambda p: os.mkfifo(p), "no such file"),
        (lambda p: p.symlink_to(p.name), "no such file"),
    ],
)
def test_archives_that_lie_are_refused_by_name(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    path = tmp_path / "study.zip"
    make(path)
    with pytest.raises(VolumeError, match=rf"study\.zip: found .*({told})"):
        unpack(path, tmp_path / "into")


def test_entries_on_top_of_each_other_are_a_bomb(tmp_path: Path) -> None:
    # 60 entries that all point at one packed megabyte: each by itself is in order, and so is the sum of their sizes.
    path = zipped(tmp_path / "study.zip", entries=60, data=os.urandom(20_000) * 100)
    content = path.read_bytes()
    first = content.index(CENTRAL)
    directory, start = bytearray(content[first:]), content.index(LOCAL, 4)
    at = 0
    while (at := directory.find(CENTRAL, at)) >= 0:
        struct.pack_into("<I", directory, at + 42, 0)
        at += 4
    struct.pack_into("<I", directory, directory.rindex(b"PK\5\6") + 16, start)
    path.write_bytes(content[:start] + bytes(directory))
    with pytest.raises(VolumeError, match="zip bomb"):
        unpack(path, tmp_path / "into")


def raw_changed(path: Path, old: bytes, new: bytes) -> Path:
    """Bytes replaced by as many others."""
    assert len(old) == len(new)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def test_a_deflated_file_that_unpacks_to_more_than_there_may_be_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.filereader import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    path = make_series(tmp_path, np.zeros((1, 8, 8), np.int16))[0]
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)
    header = read_header(path)
    assert header is not None
    assert header.rows == 8
    packed = zlib.compressobj(wbits=-15)
    start = path.read_bytes()
    meta = int(dcmread(path).file_meta.FileMetaInformationGroupLength) + 144
    path.write_bytes(start[:meta] + packed.compress(bytes(40_000_000)) + packed.flush())
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(dicom, "MAX_INFLATED", 10_000_000)
    assert dicom._inflates(path)
    assert read_header(path) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"-30.0", b"nan  "),
        (b"-30.0", b"1e400"),
        (b"t1 mprage", b"t1\x1b[31m\n\n"),
    ],
)
def test_numbers_that_are_none_and_words_that_terminals_obey_do_no_harm(tmp_path: Path, old: bytes, new: bytes) -> None:
    for path in make_series(tmp_path, np.ones((9, 8, 8), np.int16), gap=9.0):
        raw_changed(path, old, new)
    headers, _ = read_headers(sorted(tmp_path.iterdir()))
    one = group(headers)[0]
    assert one.name.isprintable()
    if b"t1" in old:
        assert not impossible(one)
        assert told(one).isprintable()
        unfit(one)
    else:
        assert impossible(one) == "without positions of its slices"


def test_pipes_among_dicom_files_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / ("n" * 200)
    make_series(folder, np.ones((3, 8, 8), np.int16))
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.dcm")
    assert not looks_like_dicom(folder / "pipe")
    with pytest.raises(SynthsegError, match=r"no series to segment \(series 1 't1 mprage': only 3 slice"):
        gather([folder], tmp_path / "work")


def test_a_folder_with_a_long_name_is_converted_to_files_that_systems_take(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 500, (9, 16, 16)).astype(np.int16)
    folder = tmp_path / ("n" * 240)
    make_series(folder, pixels, gap=9.0, number=5)
    (scan,) = gather([folder], tmp_path / "work").scans
    assert scan.path.is_file()
    assert len(scan.path.name) < 140
