"""Volumes that lie about their size, inflate, or are no files: what fuzzing found, made here from code."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fuzz.mutate import Example
from fuzz.places import ODD_NAMES, odd_places
from fuzz.volumes import bomb

from synthseg.errors import VolumeError
from synthseg.inference.original.scan import read_scan
from synthseg.volumes import Volume, read_volume
from synthseg.volumes.channels import read_channels
from synthseg.volumes.npz import npz_array, npz_headers
from volume_files import AFFINE, make_head, patch, save

READERS: tuple[Callable[[Path], Any], ...] = (read_volume, partial(read_volume, labels=True), read_scan)
MIB = 1 << 20


def refusal(path: Path, read: Callable[[Path], Any] = read_volume, most: int = 32 * MIB) -> str:
    """The one clear sentence with which a file is refused, using no more memory than said."""
    tracemalloc.start()
    try:
        with pytest.raises(VolumeError) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    told = str(caught.value)
    assert told.isprintable()
    assert path.name in told
    return told


@pytest.mark.parametrize("read", [*READERS, partial(read_channels, channels=2)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgh", "a.mgz", "a.npz"])
def test_what_is_no_file_is_refused_and_never_waited_for(
    tmp_path: Path, name: str, read: Callable[[Path], Any]
) -> None:
    for path, acceptable in odd_places(Example(name, {"": b"unused"}), tmp_path):
        if acceptable:
            refusal(path, read)
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize("folder", ODD_NAMES)
def test_volumes_under_odd_names_are_read_and_refusals_stay_one_line(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True)
    for name in ("a.nii.gz", "a.mgz"):
        (nib.MGHImage if name == "a.mgz" else nib.Nifti1Image)(make_head(), AFFINE).to_filename(place / name)
        assert isinstance(read_volume(place / name), Volume)
        (place / name).write_bytes((place / name).read_bytes()[:100])
        refusal(place / name)
    np.savez(place / "a.npz", vol_data=make_head())
    assert isinstance(read_volume(place / "a.npz"), Volume)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "sides", [(32767, 32767, 32767), (585, 585, 584), (199, 1000, 1000), (6, 7, 8, 32767, 9, 9, 9)]
)
def test_headers_that_promise_more_than_their_file_holds_are_refused(
    tmp_path: Path, sides: tuple[int, ...], read: Callable[[Path], Any]
) -> None:
    plain, packed = tmp_path / "a.nii", tmp_path / "a.nii.gz"
    packed.write_bytes(bomb("nifti", sides, 5000))
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    for path in (plain, packed):
        refusal(path, read)
    if len(sides) == 3:
        (tmp_path / "a.mgz").write_bytes(bomb("mgh", sides, 5000))
        (tmp_path / "a.mgh").write_bytes(gzip.decompress((tmp_path / "a.mgz").read_bytes()))
        for name in ("a.mgz", "a.mgh"):
            refusal(tmp_path / name, read)


@pytest.mark.parametrize("kind", ["nifti", "mgh"])
def test_what_a_file_inflates_to_beyond_its_voxels_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.nii.gz" if kind == "nifti" else "a.mgz")
    path.write_bytes(bomb(kind, (6, 7, 8), 64 * MIB))
    told = refusal(path)
    assert "a constant image" in told  # zeros, and only the first of them


def test_a_bomb_beyond_the_limit_of_voxels_is_not_inflated(tmp_path: Path) -> None:
    for kind, name in (("nifti", "a.nii.gz"), ("mgh", "a.mgz")):
        (tmp_path / name).write_bytes(bomb(kind, (700, 700, 700), 32 * MIB))
        told = refusal(tmp_path / name)
        assert "343 million voxels" in told or "promises" in told


@pytest.mark.parametrize("offset", [-1.0, 1e9, 3e38, float("nan"), float("inf")])
def test_voxels_that_begin_nowhere_are_refused(tmp_path: Path, offset: float) -> None:
    path = save(tmp_path / "a.nii", make_head())
    patch(path, vox_offset=offset)
    assert "voxels that begin at byte" in refusal(path)
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert "voxels that begin at byte" in refusal(packed)


@pytest.mark.parametrize("size", [7, 0, -8, -(2**31), 2**31 - 1, 64])
def test_header_extensions_that_lie_about_their_size_are_refused(tmp_path: Path, size: int) -> None:
    path = save(tmp_path / "a.nii", make_head())
    whole = path.read_bytes()
    extended = whole[:348] + b"\1\0\0\0" + struct.pack("<ii", size, 6) + b"hello, extension" + bytes(8) + whole[352:]
    path.write_bytes(extended)
    patch(path, vox_offset=352 + 32)
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes() + bytes(40 * MIB)))
    for file in (path, packed):  # 7 would read all that follows
        assert "a header extension of" in refusal(file)


def test_header_extensions_as_they_should_be_are_read(tmp_path: Path) -> None:
    image = nib.Nifti1Image(make_head(), AFFINE)
    for text in (b"one", b"two" * 50):
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text))
    image.to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").data, make_head())


@pytest.mark.parametrize("slope", [float("nan"), float("inf"), 3e38, 1e-45, -1e30])
def test_absurd_scales_leave_finite_voxels_or_a_refusal(tmp_path: Path, slope: float) -> None:
    path = save(tmp_path / "a.nii", make_head())
    patch(path, scl_slope=slope, scl_inter=1.0)
    for read in (read_volume, read_scan):
        try:
            assert np.isfinite(read(path).data).all()
        except VolumeError:
            refusal(path, read)


def npz(path: Path, header: str, data: bytes = b"", method: int = zipfile.ZIP_DEFLATED, name: str = "vol_data") -> Path:
    """An .npz file of one array with any header."""
    coded = header.encode()
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(coded)) + coded + data)
    return path


def described(shape: str, kind: str = "<f4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "shape", ["(32767, 32767, 32767)", "(500, 500, 500)", "(4611686018427387904, 4, 4)", "(-6, 7, 8)", "(6, 7, 8, 9)"]
)
def test_arrays_that_promise_more_than_their_file_holds_are_refused(
    tmp_path: Path, shape: str, read: Callable[[Path], Any]
) -> None:
    refusal(npz(tmp_path / "a.npz", described(shape), bytes(6 * 7 * 8 * 4)), read)


def test_arrays_packed_in_another_way_are_refused(tmp_path: Path) -> None:
    # bzip2 turns 45 bytes into 900,000: its size would say nothing about what it holds
    path = npz(tmp_path / "a.npz", described("(250, 250, 250)", "|u1"), bytes(250**3), zipfile.ZIP_BZIP2)
    assert path.stat().st_size < 500
    assert "packed in another way" in refusal(path)


def test_archives_of_many_arrays_and_headers_without_end_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for n in range(1001):
            archive.writestr(f"{n}.npy", b"")
    assert "an archive of 1,001 files" in refusal(tmp_path / "many.npz")
    coded = io.BytesIO()
    with zipfile.ZipFile(coded, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vol_data.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + b" " * (40 * MIB))
    (tmp_path / "long.npz").write_bytes(coded.getvalue())
    refusal(tmp_path / "long.npz")
    names = {f"\x1b[31m{n}": make_head() for n in range(30)}
    np.savez(tmp_path / "names.npz", **names)
    assert "30 arrays" in refusal(tmp_path / "names.npz")


def test_damaged_headers_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.nii", np.stack([make_head()] * 2, -1))
    patch(path, datatype=255)  # about which nibabel logs
    refusal(path, partial(read_channels, channels=2))
    refusal(path, read_scan)
    assert capfd.readouterr() == ("", "")


def test_an_array_of_objects_beside_the_volume_is_left_alone(tmp_path: Path) -> None:
    data = np.arange(24.0).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", vol_data=data, meta=np.array([None] * 5000, dtype=object))
    np.testing.assert_array_equal(npz_array(tmp_path / "a.npz", "vol_data"), data)
    assert npz_headers(tmp_path / "a.npz")["vol_data"] == ((2, 3, 4), data.dtype)
