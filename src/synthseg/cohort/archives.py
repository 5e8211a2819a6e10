"""Zipped series, unpacked so that nothing in an archive can do harm."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from synthseg.cohort.dicom import OTHER_FILES
from synthseg.errors import VolumeError
from synthseg.reading import is_file

MAX_ZIP_BYTES = 20 * 2**30
MAX_ZIP_FILES = 200_000
MAX_INDEX_BYTES = 2**27  # 128 MiB: MAX_ZIP_FILES with names of some 600 letters
MAX_RATIO = 200  # DICOM compresses to a half or a third, empty slices to a hundredth

# what zipfile raises for archives of which a byte was changed
_DAMAGED = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError),
    *(RuntimeError, ValueError, OverflowError, IndexError, KeyError, AttributeError, TypeError),
)


def unpack(archive: Path, folder: Path) -> list[Path]:
    """The files of a zip, under numbers instead of their names: nothing in it can lead outside of ``folder``.

    Raises: VolumeError for a damaged, encrypted or absurdly large archive, or one with entries that lead elsewhere.
    """
    files = []
    if not is_file(archive):
        raise VolumeError(archive, found="no such file", fix="check the path")
    try:
        _check_index(archive)
        with zipfile.ZipFile(archive) as zipped:
            entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
            _check_entries(archive, entries, archive.stat().st_size)
            folder.mkdir(parents=True, exist_ok=True)
            for index, entry in enumerate(entries):
                name = PurePosixPath(entry.filename.replace("\\", "/"))
                suffix = name.suffix.lower()
                if suffix in OTHER_FILES or name.name.upper() == "DICOMDIR":
                    continue
                target = folder / f"{index:06d}{suffix if suffix[1:].isalnum() else ''}"
                with zipped.open(entry) as source, target.open("wb") as file:
                    _copy(source, file, entry.file_size, archive)
                files.append(target)
    except _DAMAGED as error:
        fix = "unpack it yourself and give the folder, or export it again"
        raise VolumeError(archive, found=f"a zip that cannot be unpacked ({error})", fix=fix) from error
    return files


def _check_index(archive: Path) -> None:
    """Refuse a list of contents that is itself absurd, before zipfile reads all of it into memory.

    Source: PKWARE's APPNOTE 6.3, 4.3.14 and 4.3.16: the records at the end say how long the list is.
    """
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 2**17))
        end = file.read()
    place = end.rfind(b"PK\5\6")
    short = int.from_bytes(end[place + 12 : place + 16], "little") if place >= 0 else 0
    large = end.rfind(b"PK\6\6", 0, max(place, 0))
    size = int.from_bytes(end[large + 40 : large + 48], "little") if large >= 0 else short
    if size > MAX_INDEX_BYTES:
        found = f"a list of contents of {size / 2**20:.0f} MiB, as of millions of files"
        raise VolumeError(archive, found=found, fix="unpack it yourself if you trust it, and give the folder")


def _check_entries(archive: Path, entries: Sequence[zipfile.ZipInfo], size: int) -> None:
    again = "unpack it yourself if you trust it, and give the folder"
    total, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if packed > size:  # they lie on top of each other, which Python before 3.11.8 does not mind
        raise VolumeError(archive, found="entries that share their content, as of a zip bomb", fix=again)
    if len(entries) > MAX_ZIP_FILES or total > MAX_ZIP_BYTES:
        raise VolumeError(archive, found=f"{len(entries)} files of {total / 2**30:.1f} GiB in all", fix=again)
    if total > 2**20 and total > MAX_RATIO * max(packed, 1):
        raise VolumeError(archive, found=f"{total / max(packed, 1):.0f}-fold compression, as of a zip bomb", fix=again)
    for entry in entries:
        if ".." in entry.filename.replace("\\", "/").split("/"):  # no harm, as files get numbers; nothing honest has it
            raise VolumeError(archive, found=f"an entry that leads outside of it ({entry.filename!r})", fix=again)
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise VolumeError(archive, found=f"a link in it ({entry.filename!r})", fix=again)
        if entry.flag_bits & 1:
            raise VolumeError(archive, found="an encrypted archive", fix="unpack it yourself, and give the folder")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # bzip2 and LZMA take what memory the archive says, up to gigabytes
            raise VolumeError(archive, found=f"compression of the kind {entry.compress_type}", fix=again)


def _copy(source: Any, file: Any, size: int, archive: Path) -> None:
    """Copy at most what the entry says it holds: the sum of these was checked."""
    left = size
    while chunk := source.read(2**20):
        left -= len(chunk)
        if left < 0:
            raise VolumeError(archive, found="an entry longer than it says", fix="export it again")
        file.write(chunk)
