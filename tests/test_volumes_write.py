"""Writing: what was written is what is read, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from synthseg.errors import OutputError
from synthseg.files import atomic_file
from synthseg.volumes import Volume, read_volume, write_array4d, write_volume

NAMES = ["a.nii", "a.nii.gz", "a.mgz", "a.mgh", "a.npz"]
OBLIQUE = nib.affines.from_matvec(
    Rotation.from_euler("xyz", [10, 20, -15], degrees=True).as_matrix() @ np.diag([-1.0, 0.8, 3.0]), [30, -12, 7]
)


def labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 2, 41, 2035, 100_001], size=(7, 8, 9)).astype(np.int32)


def type_on_disk(path: Path) -> str:
    return nib.load(path).get_data_dtype().name  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_label_maps_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    path = write_volume(Volume(labels(), OBLIQUE), tmp_path / "new" / "folder" / name)
    volume = read_volume(path, labels=True)
    assert np.array_equal(volume.data, labels())
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert not [note for note in volume.notes if "slices" not in note]
    if not name.endswith("npz"):
        assert type_on_disk(path) == "int32"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    name=st.sampled_from(NAMES),
    shape=st.tuples(*[st.integers(4, 8)] * 3),
    flips=st.tuples(*[st.booleans()] * 3),
    degrees=st.floats(-180, 180),
    dtype=st.sampled_from([np.float32, np.float64, np.int16, np.uint8]),
)
def test_images_come_back_as_they_were(
    tmp_path: Path, name: str, shape: tuple[int, ...], flips: tuple[bool, ...], degrees: float, dtype: type
) -> None:
    data = (np.random.default_rng(1).random(shape) * 200).astype(dtype)
    turn = Rotation.from_euler("zxy", [degrees, degrees / 3, 5], degrees=True).as_matrix()
    affine = nib.affines.from_matvec(turn @ np.diag(np.where(flips, -1.2, 0.9)), [1, 2, 3])
    stored = data.transpose(2, 0, 1)[::-1]  # a view in odd order, as from_ras gives
    volume = read_volume(write_volume(Volume(stored, affine), tmp_path / name))
    assert np.array_equal(volume.data, stored.astype(np.float32))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    assert "disagree" not in " ".join(volume.notes)


def test_both_forms_and_the_unit_are_set(tmp_path: Path) -> None:
    header = nib.load(write_volume(Volume(labels(), OBLIQUE), tmp_path / "a.nii.gz")).header  # type: ignore[attr-defined]
    for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(form, OBLIQUE, atol=1e-4)
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_zooms(), [1, 0.8, 3], atol=1e-6)


def test_a_sheared_affine_is_left_to_the_sform(tmp_path: Path) -> None:
    sheared = OBLIQUE.copy()
    sheared[:3, 0] += 0.2 * sheared[:3, 1]  # a CT gantry's tilt
    path = write_volume(Volume(labels(), sheared), tmp_path / "a.nii")
    assert int(nib.load(path).header["qform_code"]) == 0  # type: ignore[attr-defined]
    np.testing.assert_allclose(read_volume(path).affine, sheared, atol=1e-5)


def test_the_space_of_the_input_is_kept_on_request(tmp_path: Path) -> None:
    image = nib.Nifti1Image(labels(), OBLIQUE)
    image.set_sform(OBLIQUE, code=4)  # MNI
    nib.save(image, tmp_path / "scan.nii")
    path = write_volume(Volume(labels(), OBLIQUE), tmp_path / "out.nii", header_like=tmp_path / "scan.nii")
    assert int(nib.load(path).header["sform_code"]) == 4  # type: ignore[attr-defined]
    posteriors = np.zeros((2, *labels().shape), np.float32)
    path = write_array4d(posteriors, OBLIQUE, tmp_path / "4d.nii", header_like=tmp_path / "scan.nii")
    assert int(nib.load(path).header["sform_code"]) == 4  # type: ignore[attr-defined]
    image.set_sform(None, code=0)
    image.set_qform(OBLIQUE, code=2)  # aligned: the form that is used then
    nib.save(image, tmp_path / "scan.nii")
    path = write_volume(Volume(labels(), OBLIQUE), tmp_path / "out.nii", header_like=tmp_path / "scan.nii")
    assert int(nib.load(path).header["sform_code"]) == 2  # type: ignore[attr-defined]
    path = write_volume(Volume(labels(), OBLIQUE), tmp_path / "out.nii", header_like=tmp_path / "scan.npz")
    assert int(nib.load(path).header["sform_code"]) == 1  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"gone\.nii: found no readable NIfTI header"):
        write_volume(Volume(labels(), OBLIQUE), tmp_path / "out.nii", header_like=tmp_path / "gone.nii")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz", "a.npz"])
def test_the_same_data_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    first = write_volume(Volume(labels(), OBLIQUE), tmp_path / "1" / name).read_bytes()
    os.utime(tmp_path / "1" / name, (0, 0))
    assert write_volume(Volume(labels(), OBLIQUE), tmp_path / "2" / name).read_bytes() == first


def test_the_type_on_disk_is_the_one_asked_for(tmp_path: Path) -> None:
    small = Volume(labels() % 50, OBLIQUE)
    path = write_volume(small, tmp_path / "a.nii", dtype=np.uint8)
    assert type_on_disk(path) == "uint8"
    assert np.array_equal(read_volume(path, labels=True).data, small.data)
    path = write_volume(Volume((labels() % 50).astype(np.uint16), OBLIQUE), tmp_path / "a.mgz")
    assert type_on_disk(path) == "int32"
    path = write_volume(Volume(labels().astype(np.int64), OBLIQUE), tmp_path / "b.nii")
    assert type_on_disk(path) == "int32"
    path = write_volume(Volume(labels() > 0, OBLIQUE), tmp_path / "c.nii")
    assert type_on_disk(path) == "uint8"


def test_values_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    with pytest.raises(OutputError, match=r"a\.nii: found values from 0 to 100001 that uint8 cannot hold"):
        write_volume(Volume(labels(), OBLIQUE), path, dtype=np.uint8)
    with pytest.raises(OutputError, match=r"a\.nii: found values from .* that int32 cannot hold exactly"):
        write_volume(Volume(labels() * np.float32(0.5) + np.float32(0.25), OBLIQUE), path, dtype=np.int32)
    with pytest.raises(OutputError, match=r"a\.mgz: found int64 values, which MGH cannot hold"):
        write_volume(Volume(labels(), OBLIQUE), tmp_path / "a.mgz", dtype=np.int64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_posteriors_have_their_channels_last(tmp_path: Path, name: str) -> None:
    posteriors = np.random.default_rng(0).random((3, 4, 5, 6)).astype(np.float32)
    names = ["background", "left white matter", "CSF"]
    path = write_array4d(posteriors, OBLIQUE, tmp_path / name, names)
    if name == "a.npz":
        with np.load(path) as stored:
            assert stored["vol_data"].shape == (4, 5, 6, 3)
            assert stored["channels"].tolist() == names
        return
    image = nib.load(path)
    assert type_on_disk(path) == "float32"
    assert np.array_equal(image.get_fdata(), np.moveaxis(posteriors, 0, -1))  # type: ignore[attr-defined]
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)  # type: ignore[attr-defined]
    if ".nii" in name:
        (comment,) = image.header.extensions  # type: ignore[attr-defined]
        text = comment.get_content()
        assert json.loads(text) == {"channels": names}


def test_posteriors_and_names_must_match(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.nii: found an array of shape \(3, 4, 5, 6\) with 2 names"):
        write_array4d(np.zeros((3, 4, 5, 6)), OBLIQUE, tmp_path / "a.nii", ["one", "two"])


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_seen_under_the_name_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"a\.nii\.gz: found no way to write it \(No space left.*free space"):
        write_volume(Volume(labels(), OBLIQUE), tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    volume = Volume(labels(), OBLIQUE)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"a\.nii: found no way to write it"):
        write_volume(volume, tmp_path / "file" / "a.nii")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(OutputError, match=r"folder\.nii: found a folder where a file should be"):
        write_volume(volume, tmp_path / "folder.nii")
    with pytest.raises(OutputError, match=r"a\.img: found a file name without a volume's extension.*\.nii\.gz"):
        write_volume(volume, tmp_path / "a.img")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folders_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match=r"a\.nii: found no way to write it \(Permission denied\)"):
            write_volume(Volume(labels(), OBLIQUE), tmp_path / "a.nii")
    finally:
        tmp_path.chmod(0o700)
