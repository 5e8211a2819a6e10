"""`synthseg segment` as a user meets it: exit codes and messages, above all for input that cannot be used."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import COARSE, coarse_scan, phantom, phantom_affine, save_random_weights, save_scan
from synthseg.cli import main


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_random_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def command(weights, capsys):
    """Run `synthseg segment ARGUMENTS`: (exit code, standard output, standard error)."""

    def run(*arguments: object, weights: object = weights) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(["segment", *map(str, arguments), "--weights", str(weights), "--device", "cpu"])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(exit_.value.code or 0), out, " ".join(err.split())

    return run


def test_a_folder_of_scans_becomes_labels_and_a_table(tmp_path, command):
    for name in ("a.nii.gz", "b.nii"):
        coarse_scan(tmp_path / "scans" / name)
    out = tmp_path / "out"
    code, said, _ = command(tmp_path / "scans", "-o", out, "--volumes", out / "v.csv", "--overlay", "--fast")
    assert code == 0
    assert "2 done" in said
    assert {path.name for path in out.iterdir()} == {
        *(f"{s}_synthseg{e}" for s in "ab" for e in (".nii.gz", ".json", "_overlay.png")),
        "v.csv",
        "v_warnings.csv",
    }
    assert nib.load(out / "a_synthseg.nii.gz").shape == nib.load(tmp_path / "scans" / "a.nii.gz").shape
    code, said, _ = command(tmp_path / "scans", "-o", out, "--volumes", out / "v.csv", "--overlay", "--mode", "fast")
    assert code == 0
    assert "2 skipped" in said


def test_failed_scans_are_told_and_the_others_done(tmp_path, command):
    good = coarse_scan(tmp_path / "good.nii.gz")
    code, said, err = command(good, tmp_path / "lost.nii.gz", "-o", tmp_path / "out")
    assert code == 1
    assert "1 done, 1 failed" in said
    assert f"{tmp_path / 'lost.nii.gz'}: found no such file. Fix: check the path" in err


def test_debug_shows_where_a_failed_scans_error_came_from(tmp_path, weights, capsys):
    lost = tmp_path / "lost.nii"
    with pytest.raises(SystemExit):
        main(["segment", str(lost), "-o", str(tmp_path / "out"), "--weights", str(weights), "--debug"])
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "read_volume" in err


# Every input that cannot be used: how it is made, and what the message says.


def _missing(path: Path) -> None:
    assert not path.exists()


def _truncated(path: Path) -> None:
    rng = np.random.default_rng(0)
    save_scan(path, rng.random((64, 64, 64)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:20000])


def _text(path: Path) -> None:
    path.write_bytes(gzip.compress(b"once upon a time" * 100))


def _two_d(path: Path) -> None:
    save_scan(path, phantom()[:, :, 30])


def _frames(path: Path) -> None:
    save_scan(path, np.stack([phantom(spacing_mm=COARSE)] * 12, axis=-1))


def _slices(path: Path) -> None:
    save_scan(path, phantom()[:, :, 30:33])


def _nan(path: Path) -> None:
    save_scan(path, np.full((64, 64, 64), np.nan, np.float32))


def _constant(path: Path) -> None:
    save_scan(path, np.full((64, 64, 64), 7, np.float32))


def _nearly_constant(path: Path) -> None:
    data = np.zeros((64, 64, 64), np.float32)
    data[0, 0, 0] = 1
    save_scan(path, data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _singular(path: Path) -> None:
    image = nib.Nifti1Image(phantom(), phantom_affine())
    image.header["srow_z"] = image.header["srow_y"]
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    _write_header_and_data(path, image.header, phantom())


def _write_header_and_data(path: Path, header: nib.Nifti1Header, data: np.ndarray) -> None:
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(gzip.compress(header.binaryblock + b"\0" * 4 + data.tobytes(order="F")))


def _tiny_voxels(path: Path) -> None:
    save_scan(path, phantom(), np.diag([0.1, 0.1, 0.1, 1]))


def _huge_voxels(path: Path) -> None:
    save_scan(path, phantom(), np.diag([30.0, 30, 30, 1]))


def _small_view(path: Path) -> None:
    save_scan(path, phantom(), np.diag([0.3, 0.3, 0.3, 1]))


UNUSABLE = [
    (_missing, "no such file"),
    (_truncated, "truncated or damaged file"),
    (_text, "no readable image|truncated or damaged"),
    (_two_d, "a 2D image of shape"),
    (_frames, r"4D image of shape \(36, 40, 32, 12\), i.e. 12 volumes"),
    (_slices, "only 3 slices"),
    (_nan, "no finite voxel"),
    (_constant, "a constant image: every voxel is 7"),
    (_nearly_constant, "no contrast: percentiles 1 and 99 are both 0 .range 0 to"),
    (_empty, r"an empty file \(0 bytes\)"),
    (_singular, "singular affine"),
    (_tiny_voxels, "voxels of 0.1 x 0.1 x 0.1 mm"),
    (_huge_voxels, "voxels of 30 x 30 x 30 mm"),
    (_small_view, "a field of view of 22 x 24 x 19 mm"),
]


@pytest.mark.parametrize(("make", "said"), UNUSABLE, ids=[make.__name__.strip("_") for make, _ in UNUSABLE])
def test_an_unusable_scan_is_named_with_what_was_found_and_the_fix(tmp_path, command, make, said):
    path = tmp_path / "scan.nii.gz"
    make(path)
    code, _, err = command(path, "-o", tmp_path / "out")
    assert code == 1
    assert re.search(rf"{path}: found .*({said}).*Fix: ", err), err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["scan_synthseg_failed.json"]
    assert f"kept in {tmp_path / 'out'}/*_synthseg_failed.json" in err


def test_a_scan_of_600_cubed_is_refused_by_its_header(tmp_path, command):
    header = nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)).header
    header["dim"][1:4] = 600
    header["vox_offset"] = 352
    path = tmp_path / "huge.nii"
    with path.open("wb") as file:  # 864 MB that are not on the disk
        file.write(header.binaryblock)
        file.truncate(352 + 600**3 * 4)
    code, _, err = command(path, "-o", tmp_path / "out")
    assert code == 1
    assert "huge.nii: found 216 million voxels" in err


def test_what_is_mended_is_said(tmp_path, command):
    data = phantom(spacing_mm=COARSE)
    data[3, 3, 3] = np.nan
    scan = save_scan(tmp_path / "a.nii.gz", data, phantom_affine(COARSE))
    code, said, _ = command(scan, "-o", tmp_path / "out")
    assert code == 0
    assert "NaN or infinite and became 0" in said


def test_ct_is_recognised_aloud_or_told(tmp_path, command):
    data = phantom(spacing_mm=COARSE) / 20
    data[data == 0] = -1000
    scan = save_scan(tmp_path / "ct.nii.gz", data, phantom_affine(COARSE))
    assert "recognised as CT" in command(scan, "-o", tmp_path / "1")[1]
    assert "recognised as CT" not in command(scan, "-o", tmp_path / "2", "--ct")[1]
    labels = [np.asarray(nib.load(tmp_path / n / "ct_synthseg.nii.gz").dataobj) for n in "12"]
    np.testing.assert_array_equal(*labels)
    assert command(scan, "-o", tmp_path / "3", "--no-ct")[0] == 0
    assert (np.asarray(nib.load(tmp_path / "3" / "ct_synthseg.nii.gz").dataobj) != labels[0]).any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode", "robustt"], "mode: found 'robustt'. Fix: use one of default, fast, robust, robust-fast"),
        (["--robust", "--mode", "fast"], "--robust: found together with --mode fast"),
        (["--fast", "--mode", "default"], "--fast: found together with --mode default"),
        (["--repeat", "1"], "--repeat: found 1. Fix: use at least 2 copies"),
        (["--repeat", "-1"], "Invalid value for '--repeat'"),
        (["--space", "mni"], "space: found 'mni'. Fix: use one of native, 1mm, both"),
        (["--structures", "brane"], "structure 'brane': found no such label"),
        (["--percentiles", "99", "1"], "inference setting percentiles: found (99.0, 1.0)"),
        (["--volumes", "v.xlsx"], "v.xlsx: found suffix '.xlsx'"),
        (["--threads", "0"], "Invalid value for '--threads'"),
        (["--nonsense"], "No such option: --nonsense"),
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path, command, arguments, said):
    code, _, err = command(coarse_scan(tmp_path / "a.nii.gz"), "-o", tmp_path / "out", *arguments)
    assert code == 2
    assert said in err
    assert not list(tmp_path.glob("out/*"))


def test_an_overlay_without_matplotlib_is_refused_before_anything_is_done(tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, said, err = command(coarse_scan(tmp_path / "a.nii.gz"), "-o", tmp_path / "out", "--overlay")
    assert code == 2
    assert "the overlay picture: found no matplotlib. Fix: install it" in err
    assert said == ""
    assert not (tmp_path / "out").exists()


def test_two_scans_with_one_output_are_wrong_usage(tmp_path, command):
    scans = [coarse_scan(tmp_path / folder / "t1.nii.gz") for folder in "pq"]
    code, _, err = command(*scans, "-o", tmp_path / "out")
    assert code == 2
    assert str(scans[0]) in err
    assert str(scans[1]) in err


def test_an_output_folder_that_cannot_be_written_is_exit_code_1(tmp_path, command):
    (tmp_path / "file").write_text("x")
    code, _, err = command(coarse_scan(tmp_path / "a.nii.gz"), "-o", tmp_path / "file" / "out")
    assert code == 1
    assert "found a folder that cannot be written to" in err


def test_weights_that_are_none_are_refused(tmp_path, command, weights):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    fake = tmp_path / "fake.safetensors"
    fake.write_bytes(b"no weights")
    code, _, err = command(scan, "-o", tmp_path / "out", weights=fake)
    assert code == 1
    assert "fake.safetensors: found" in err
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    code, _, err = command(scan, "-o", tmp_path / "out", weights=cut)
    assert code == 1
    assert "cut.safetensors: found" in err
    code, _, err = command(scan, "-o", tmp_path / "out", weights="no-such-weights")
    assert code == 1
    assert "no-such-weights" in err


def test_weights_of_another_protocol_say_so_by_their_structures(tmp_path, command):
    """The labels come from the weights' card: what another protocol lacks cannot be asked for."""
    code, _, err = command(coarse_scan(tmp_path / "a.nii.gz"), "-o", tmp_path / "out", "--structures", "thalamus")
    assert code == 2
    assert "structure 'thalamus': found no such label. Fix: use any of: brain-stem" in err


def test_weights_of_another_protocol_than_the_expected_one_are_refused(tmp_path, command):
    scan = coarse_scan(tmp_path / "scan.nii.gz")
    code, _, said = command(scan, "-o", tmp_path / "out", "--protocol", "feta")
    assert code == 1
    assert "weights of another protocol" in said
    assert "'feta'" in said
    assert not (tmp_path / "out").exists()


def test_a_table_of_other_weights_is_not_mixed_with_ours(tmp_path, command):
    table = tmp_path / "v.csv"
    table.write_text("subject,heart\r\nx,1\r\n")
    code, _, err = command(coarse_scan(tmp_path / "a.nii.gz"), "-o", tmp_path / "out", "--volumes", table)
    assert code == 2
    assert "v.csv: found an existing table with other columns" in err


def test_python_api_is_reached_from_the_package(tmp_path, weights):
    import synthseg

    scan = coarse_scan(tmp_path / "a.nii.gz")
    result = synthseg.segment(scan, weights=weights)
    assert result.labels.data.shape == (36, 40, 32)
    assert synthseg.Segmenter(weights).segment(scan).volumes_mm3 == result.volumes_mm3


def test_unknown_names_of_the_package_are_attribute_errors():
    import synthseg
    import synthseg.inference

    assert synthseg.__version__ == "0.1.0"
    for module in (synthseg, synthseg.inference):
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            _ = module.nonsense


def test_importing_the_room_loads_no_torch():
    code = (
        "import sys, synthseg, synthseg.inference; assert 'torch' not in sys.modules and 'nibabel' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
