"""Files that are refused, and the sentences that say so."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthseg.errors import VolumeError
from synthseg.volumes import read_volume
from synthseg.volumes.checks import check_size
from volume_files import AFFINE, SHAPE, patch, save

# What is refused


def test_a_missing_file_a_folder_and_an_empty_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"gone\.nii\.gz: found no such file\. Fix: check the path"):
        read_volume(tmp_path / "gone.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(VolumeError, match=r"folder\.nii: found a folder\. Fix: give one file"):
        read_volume(tmp_path / "folder.nii")
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(VolumeError, match=r"empty\.nii\.gz: found an empty file \(0 bytes\)"):
        read_volume(tmp_path / "empty.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.mgh", "a.npz"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, head: np.ndarray, name: str, kept: float) -> None:
    path = tmp_path / name
    if name == "a.npz":
        np.savez_compressed(path, vol_data=head)
    else:
        nib.save((nib.MGHImage if "mg" in name else nib.Nifti1Image)(head, AFFINE), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(VolumeError, match=r"a\..*: found (a truncated or damaged file|no readable image) \(.*download"):
        read_volume(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    name=st.sampled_from(["a.nii", "a.nii.gz", "a.mgz", "a.npz"]),
    damage=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=5),
    labels=st.booleans(),
)
def test_damaged_bytes_never_end_in_another_error(
    tmp_path: Path, name: str, damage: list[tuple[int, int]], labels: bool
) -> None:
    path = tmp_path / name
    data = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    if name == "a.npz":
        np.savez(path, vol_data=data)
    else:
        nib.save((nib.MGHImage if "mg" in name else nib.Nifti1Image)(data, AFFINE), path)
    raw = bytearray(path.read_bytes())
    for place, value in damage:
        raw[place] = value
    path.write_bytes(raw)
    try:
        volume = read_volume(path, labels=labels)
    except VolumeError:
        return  # the one error a file may end in
    assert volume.data.ndim == 3
    assert np.isfinite(volume.data).all()
    assert np.isfinite(volume.affine).all()


@pytest.mark.parametrize("name", ["a.nii", "a.mgh", "a.npz"])
def test_other_files_under_a_volumes_name_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("subject,age\n1,2\n" * 200)
    with pytest.raises(VolumeError, match=r"a\..*: found (no readable image|a truncated or damaged file) \("):
        read_volume(tmp_path / name)


def test_wrong_names_are_explained(tmp_path: Path, head: np.ndarray) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(VolumeError, match=r"a\.txt: found the unknown file type '\.txt'.*\.nii\.gz, .*dcm2niix"):
        read_volume(tmp_path / "a.txt")
    (tmp_path / "d.nii").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 400)
    with pytest.raises(VolumeError, match=r"d\.nii: found a DICOM file.*dcm2niix"):
        read_volume(tmp_path / "d.nii")
    packed = save(tmp_path / "b.nii.gz", head)
    packed.rename(tmp_path / "b.nii")
    with pytest.raises(
        VolumeError, match=r"b\.nii: found a gzip-compressed file named \.nii\. Fix: rename it to \.nii\.gz"
    ):
        read_volume(tmp_path / "b.nii")
    plain = save(tmp_path / "c.nii", head)
    plain.rename(tmp_path / "c.nii.gz")
    with pytest.raises(VolumeError, match=r"c\.nii\.gz: found a file that is not gzip-compressed"):
        read_volume(tmp_path / "c.nii.gz")


def test_several_volumes_in_one_file_are_refused(tmp_path: Path, head: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", np.stack([head] * 5, -1))
    with pytest.raises(
        VolumeError, match=r"a\.nii: found a 4D image of shape \(12, 13, 14, 5\), i\.e\. 5 volumes.*slicer"
    ):
        read_volume(path)


@pytest.mark.parametrize("shape", [(12, 13), (12, 13, 1), (1, 12, 13)])
def test_single_slices_are_refused(tmp_path: Path, head: np.ndarray, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.nii", head.ravel()[: 12 * 13].reshape(shape))
    with pytest.raises(VolumeError, match=r"a\.nii: found a 2D image of shape .*one slice"):
        read_volume(path)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_hardly_any_slices_are_refused(tmp_path: Path, head: np.ndarray, count: int, axis: int) -> None:
    path = save(tmp_path / "a.nii", head.take(range(count), axis=axis))
    with pytest.raises(VolumeError, match=rf"a\.nii: found only {count} slices.*at least 4"):
        read_volume(path)


def test_images_without_a_finite_voxel_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(VolumeError, match=r"a\.nii: found no finite voxel"):
        read_volume(path)
    with pytest.raises(VolumeError, match=r"a\.nii: found label values that are NaN"):
        read_volume(path, labels=True)


@pytest.mark.parametrize(
    ("dtype", "words"), [(np.complex64, "complex numbers"), ([("R", "u1"), ("G", "u1"), ("B", "u1")], "colours")]
)
def test_voxels_that_are_no_real_numbers_are_refused(tmp_path: Path, dtype: object, words: str) -> None:
    path = save(tmp_path / "a.nii", np.zeros(SHAPE, np.dtype(dtype)))  # type: ignore[call-overload]
    with pytest.raises(VolumeError, match=rf"a\.nii: found {words}"):
        read_volume(path)


def test_empty_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", vol_data=np.zeros((0, 5, 5)))
    with pytest.raises(VolumeError, match=r"a\.npz: found an empty image of shape \(0, 5, 5\)"):
        read_volume(tmp_path / "a.npz")


def test_npz_files_without_one_clear_volume_are_refused(tmp_path: Path, head: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", one=head, two=head)
    with pytest.raises(VolumeError, match=r"a\.npz: found 2 3D arrays among \['one', 'two'\].*vol_data"):
        read_volume(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", vol_data=head, affine=np.eye(3))
    with pytest.raises(VolumeError, match=r"b\.npz: found an 'affine' of shape \(3, 3\)"):
        read_volume(tmp_path / "b.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (marker,)  # type: ignore[return-value]

    np.savez(tmp_path / "a.npz", vol_data=np.array([[[Trap()] * 4] * 4] * 4, dtype=object))
    with pytest.raises(VolumeError, match=r"a\.npz: found no numbers as voxels"):
        read_volume(tmp_path / "a.npz")
    assert not marker.exists()


@pytest.mark.parametrize("size", [0.1, 30.0])
def test_unbelievable_voxel_sizes_are_refused(tmp_path: Path, head: np.ndarray, size: float) -> None:
    path = save(tmp_path / "a.nii", head, np.diag([size, 1, 1, 1]))
    with pytest.raises(VolumeError, match=rf"a\.nii: found voxels of {size:g} x 1 x 1 mm.*units may be wrong"):
        read_volume(path)


def test_label_maps_may_be_those_of_small_animals(tmp_path: Path, head: np.ndarray) -> None:
    path = save(tmp_path / "mouse.nii", head, np.diag([0.02, 0.025, 0.1, 1]))
    np.testing.assert_allclose(read_volume(path, labels=True).spacing_mm, [0.02, 0.025, 0.1], rtol=1e-6)
    with pytest.raises(VolumeError, match=r"mouse\.nii: found voxels of 0\.02 x .* outside 0\.15 to 20 mm"):
        read_volume(path)
    path = save(tmp_path / "whale.nii", head, np.diag([20.0, 5, 5, 1]))
    assert read_volume(path, labels=True).spacing_mm[0] == 20
    for size in (0.01, 21.0):
        path = save(tmp_path / "a.nii", head, np.diag([1, 1, size, 1]))
        with pytest.raises(VolumeError, match=rf"1 x 1 x {size:g} mm, outside 0\.02 to 20 mm"):
            read_volume(path, labels=True)


def test_mm_called_microns_are_refused_with_the_unit_named(tmp_path: Path, head: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", head, xyzt_units=3)
    with pytest.raises(VolumeError, match=r"a\.nii: found voxels of 0\.001 x .*\(the header's unit is the micron\)"):
        read_volume(path)


def test_unusable_affines_are_refused(tmp_path: Path, head: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", head, sform_code=1, qform_code=0, srow_x=[1, 0, 0, 0], srow_y=[1, 0, 0, 0])
    with pytest.raises(VolumeError, match=r"a\.nii: found a singular affine"):
        read_volume(path)
    patch(path, srow_y=[0, np.nan, 0, 0])
    with pytest.raises(VolumeError, match=r"a\.nii: found an affine with values that are not finite"):
        read_volume(path)
    np.savez(tmp_path / "b.npz", vol_data=head, affine=np.zeros((4, 4)))
    with pytest.raises(VolumeError, match=r"b\.npz: found a singular affine"):
        read_volume(tmp_path / "b.npz")


def test_huge_scans_are_refused_before_a_voxel_is_read(tmp_path: Path, head: np.ndarray) -> None:
    # the headers promise gigabytes; the files hold almost nothing, so reading voxels would say "truncated"
    dim = [3, 600, 600, 600, 1, 1, 1, 1]
    path = save(tmp_path / "a.nii", head, np.diag([0.5, 0.5, 0.5, 1]), dim=dim)
    with pytest.raises(VolumeError, match=r"a\.nii: found 216 million voxels.*limit is 200 million.*crop"):
        read_volume(path)
    dim = [3, 200, 200, 100, 1, 1, 1, 1]
    path = save(tmp_path / "b.nii", head, np.diag([5.0, 5.0, 5.0, 1]), dim=dim)
    with pytest.raises(VolumeError, match=r"b\.nii: found a field of view of 1000 x 1000 x 500 mm, 500 million voxels"):
        read_volume(path)


def test_a_ct_of_half_the_body_is_no_huge_scan() -> None:
    check_size((500, 500, 300), np.eye(4), Path("ct.nii"))
    check_size((512, 512, 400), np.diag([0.98, 0.98, 1.25, 1]), Path("ct.nii"))
    with pytest.raises(VolumeError, match=r"ct\.nii: found 216 million voxels"):
        check_size((600, 600, 600), np.eye(4), Path("ct.nii"))
    with pytest.raises(VolumeError, match=r"ct\.nii: found .*154 million voxels at 1 mm: the limit is 130 million"):
        check_size((512, 512, 300), np.diag([1.25, 1.25, 1.25, 1]), Path("ct.nii"))


def test_running_out_of_memory_is_said_plainly(
    tmp_path: Path, head: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> np.ndarray:
        raise MemoryError

    path = save(tmp_path / "a.nii", head)
    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, "_get_unscaled", full)
    with pytest.raises(VolumeError, match=r"a\.nii: found more voxels than there is memory for"):
        read_volume(path)
