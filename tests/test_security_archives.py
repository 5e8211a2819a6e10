"""Zips: whatever they hold and say, files appear inside of the folder that was given, plain, few and small enough."""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_files import make_series, noise
from synthseg.cohort import archives
from synthseg.cohort.archives import unpack
from synthseg.cohort.inputs import gather
from synthseg.errors import SynthsegError, VolumeError

PARTS = st.sampled_from(
    [
        "..",
        ".",
        "",
        "a",
        "a.dcm",
        "C:",
        "\\",
        "..\\..",
        "/",
        "~",
        "\x00",
        "\n",
        "CON",
        "é",
        "\u202e",
        "x" * 300,
        "-rf",
        "$(x)",
    ]
)
NAMES = st.one_of(st.lists(PARTS, min_size=1, max_size=5).map("/".join), st.text(min_size=1, max_size=30))
KINDS = st.sampled_from(
    [0, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o666, stat.S_IFREG | 0o4777, stat.S_IFCHR]
)


def _zip(path: Path, entries: list[tuple[str, bytes, int]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content, mode in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is: the constructor would tidy it up
            info.external_attr = mode << 16
            made.writestr(info, content)
    return path


def _unpacked(archive: Path, folder: Path) -> tuple[list[Path] | None, str]:
    """The files, or None and why not; anything but our own error comes through."""
    try:
        return unpack(archive, folder), ""
    except VolumeError as error:
        return None, str(error)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=100)
@given(entries=st.lists(st.tuples(NAMES, st.binary(max_size=50), KINDS), min_size=1, max_size=6))
def test_only_plain_files_inside_of_the_folder_appear(entries: list[tuple[str, bytes, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        around = Path(place)
        try:
            archive = _zip(around / "a.zip", entries)
        except (ValueError, UnicodeEncodeError, struct.error):
            return  # no such zip can be made
        folder = around / "deep" / "out"
        files, error = _unpacked(archive, folder)
        assert str(archive) in error or files is not None
        found = [Path(top, name) for top, _, names in os.walk(around) for name in names if name != "a.zip"]
        for path in found:
            assert path.parent == folder
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode)
            assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)
        if files is not None:
            assert set(files) == set(found)
            assert len(set(files)) == len(files)


@given(data=st.binary(min_size=1, max_size=60), seed=st.integers(0, 10_000))
@settings(max_examples=100)
def test_a_damaged_archive_is_one_clear_error_or_what_it_was(data: bytes, seed: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        archive = _zip(Path(place, "a.zip"), [("a.dcm", data, 0), ("b/c.dcm", data * 3, 0)])
        content, draw = bytearray(archive.read_bytes()), random.Random(seed)
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        archive.write_bytes(content[: draw.randint(len(content) // 2, len(content))] if seed % 3 else content)
        files, error = _unpacked(archive, Path(place, "out"))
        assert "a.zip: found" in error or files is not None
        assert all(file.parent == Path(place, "out") for file in files or ())
        assert sum(file.stat().st_size for file in files or ()) < 2**20


@pytest.mark.parametrize(
    ("limit", "value", "match"),
    [
        ("MAX_ZIP_FILES", 9, "10 files of 0.0 GiB in all"),
        ("MAX_ZIP_BYTES", 999, "10 files of 0.0 GiB in all"),
        ("MAX_INDEX_BYTES", 100, "a list of contents of 0 MiB, as of millions of files"),
    ],
)
def test_too_many_too_large_and_too_long_lists_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, match: str
) -> None:
    archive = _zip(tmp_path / "a.zip", [(f"{n}.dcm", bytes(100), 0) for n in range(10)])
    assert len(unpack(archive, tmp_path / "fine")) == 10
    monkeypatch.setattr(archives, limit, value)
    with pytest.raises(VolumeError, match=match):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_list_of_contents_is_measured_as_zipfile_does_also_beyond_four_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large archives say their sizes in another record (zip64), which small ones may have, too."""
    archive = _zip(tmp_path / "a.zip", [("a.dcm", b"1", 0)])
    content = archive.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    size = end - start
    large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    short = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    archive.write_bytes(content[:end] + large + locator + short)
    assert zipfile.ZipFile(archive).namelist() == ["a.dcm"]
    assert len(unpack(archive, tmp_path / "fine")) == 1
    monkeypatch.setattr(archives, "MAX_INDEX_BYTES", size - 1)
    with pytest.raises(VolumeError, match="a list of contents"):
        unpack(archive, tmp_path / "out")


def test_entries_that_overlap_or_lie_about_their_size_do_not_multiply(tmp_path: Path) -> None:
    """One compressed body that many entries point to (Fifield 2019), and a size of ten where a mebibyte comes out."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("0.dcm", random.Random(0).randbytes(5000))
    content = body.getvalue()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    central = content[start:end]
    many = content[:start] + central * 300
    many += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 300, 300, len(central) * 300, start, 0)
    (tmp_path / "overlap.zip").write_bytes(many)
    with pytest.raises(VolumeError, match=r"overlap\.zip: found entries that share their content"):
        unpack(tmp_path / "overlap.zip", tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "lies.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("0.dcm", bytes(2**20))
    content = (tmp_path / "lies.zip").read_bytes().replace(struct.pack("<L", 2**20), struct.pack("<L", 10))
    (tmp_path / "lies.zip").write_bytes(content)
    with pytest.raises(VolumeError, match=r"lies\.zip: found"):
        unpack(tmp_path / "lies.zip", tmp_path / "b")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.dcm")) < 2**20


def test_zips_within_zips_are_not_opened(tmp_path: Path) -> None:
    make_series(tmp_path / "s", noise(14, 8, 8))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as made:
        for path in (tmp_path / "s").iterdir():
            made.write(path, path.name)
    _zip(tmp_path / "outer.zip", [("inner.zip", inner.getvalue(), 0), ("inner.dcm", inner.getvalue(), 0)])
    with pytest.raises(SynthsegError, match="a zip without DICOM files"):
        gather([tmp_path / "outer.zip"], tmp_path / "work")


def test_what_was_unpacked_is_gone_afterwards_and_was_nobody_elses_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_series(tmp_path / "s", noise(14, 8, 8))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        for path in (tmp_path / "s").iterdir():
            made.write(path, path.name)
    seen: list[int] = []
    real = archives.unpack

    def watched(archive: Path, folder: Path) -> list[Path]:
        seen.append(stat.S_IMODE(folder.stat().st_mode))
        return real(archive, folder)

    monkeypatch.setattr("synthseg.cohort.inputs.unpack", watched)
    gather([tmp_path / "a.zip"], tmp_path / "work")
    assert seen == [0o700]
    assert {path.suffix for path in (tmp_path / "work").iterdir()} == {".gz", ".json"}
