"""Zipped series, unpacked so that nothing in an archive can do harm."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from synthseg.cohort.dicom import OTHER_FILES
from synthseg.errors import VolumeError

MAX_ZIP_BYTES = 20 * 2**30
MAX_ZIP_FILES = 200_000
MAX_RATIO = 200  # DICOM compresses to a half or a third, empty slices to a hundredth


def unpack(archive: Path, folder: Path) -> list[Path]:
    """The files of a zip, under numbers instead of their names: nothing in it can lead outside of ``folder``.

    Raises: VolumeError for a damaged, encrypted or absurdly large archive, or one with entries that lead elsewhere.
    """
    files = []
    try:
        with zipfile.ZipFile(archive) as zipped:
            entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
            _check_entries(archive, entries)
            folder.mkdir(parents=True, exist_ok=True)
            for index, entry in enumerate(entries):
                suffix = PurePosixPath(entry.filename).suffix.lower()
                if suffix in OTHER_FILES or PurePosixPath(entry.filename).name.upper() == "DICOMDIR":
                    continue
                target = folder / f"{index:06d}{suffix if suffix[1:].isalnum() else ''}"
                with zipped.open(entry) as source, target.open("wb") as file:
                    _copy(source, file, entry.file_size, archive)
                files.append(target)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        fix = "unpack it yourself and give the folder, or export it again"
        raise VolumeError(archive, found=f"a zip that cannot be unpacked ({error})", fix=fix) from error
    return files


def _check_entries(archive: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    again = "unpack it yourself if you trust it, and give the folder"
    total, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if len(entries) > MAX_ZIP_FILES or total > MAX_ZIP_BYTES:
        raise VolumeError(archive, found=f"{len(entries)} files of {total / 2**30:.1f} GiB in all", fix=again)
    if total > 2**20 and total > MAX_RATIO * max(packed, 1):
        raise VolumeError(archive, found=f"{total / max(packed, 1):.0f}-fold compression, as of a zip bomb", fix=again)
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        if name.startswith("/") or ":" in name.split("/")[0] or ".." in name.split("/"):
            raise VolumeError(archive, found=f"an entry that leads outside of it ({entry.filename!r})", fix=again)
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise VolumeError(archive, found=f"a link in it ({entry.filename!r})", fix=again)
        if entry.flag_bits & 1:
            raise VolumeError(archive, found="an encrypted archive", fix="unpack it yourself, and give the folder")


def _copy(source: Any, file: Any, size: int, archive: Path) -> None:
    """Copy at most what the entry says it holds: the sum of these was checked."""
    left = size
    while chunk := source.read(2**20):
        left -= len(chunk)
        if left < 0:
            raise VolumeError(archive, found="an entry longer than it says", fix="export it again")
        file.write(chunk)
