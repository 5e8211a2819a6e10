"""mri_synthseg from the command line to its files, with tiny networks whose answer is known."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import band_model, coarse_scan, phantom, phantom_affine, save_scan
from mri_synthseg_helpers import Run, labels_of, rows_of
from plus_helpers import SHAPE, hierarchy_models, painted, parcels_model, quality_model, scan_of, structures_model
from synthseg.cli import mri_synthseg
from synthseg.cli.original import networks
from synthseg.cli.original.networks import Loaded
from synthseg.cli.original.parser import Options
from synthseg.errors import OutputError
from synthseg.inference.original.like import LikeOriginal, settings_of
from synthseg.volumes import Volume

pytestmark = pytest.mark.usefixtures("no_originals")


def test_a_folder_with_everything_asked_for(tmp_path, run_mri: Run, small):
    source, out = tmp_path / "in", tmp_path / "out"
    save_scan(source / "a.nii.gz", phantom())
    coarse_scan(source / "b.nii")
    code, said, err = run_mri(
        "--i", source, "--o", out, "--post", out, "--resample", out, "--vol", tmp_path / "v", "--threads", 2
    )
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir()) == [
        "a_posteriors.nii.gz",
        "a_synthseg.nii.gz",
        "b_posteriors.nii",
        "b_resampled.nii",
        "b_synthseg.nii",
    ]
    a, b = (nib.load(out / name) for name in ("a_synthseg.nii.gz", "b_synthseg.nii"))
    assert a.get_data_dtype() == b.get_data_dtype() == np.int32
    np.testing.assert_allclose(a.affine, phantom_affine())
    np.testing.assert_allclose(b.header.get_zooms(), 1)
    posteriors = nib.load(out / "b_posteriors.nii")
    assert posteriors.shape == (*b.shape, 7)
    assert posteriors.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.asanyarray(posteriors.dataobj).sum(-1), 1, atol=1e-5)
    resampled = nib.load(out / "b_resampled.nii")
    assert resampled.shape == b.shape
    np.testing.assert_allclose(resampled.affine, b.affine)
    header, *rows = rows_of(tmp_path / "v.csv")
    assert header[:3] == ["subject", "total intracranial", "left cerebral white matter"]
    assert [row[0] for row in rows] == ["a", "b.nii"]
    assert (tmp_path / "v.csv").read_bytes().count(b"\r\n") == 3
    total = np.array([[float(cell) for cell in row[1:]] for row in rows])
    np.testing.assert_allclose(total[:, 0], total[:, 1:].sum(1), atol=0.01)
    assert said.startswith("SynthSeg 2.0 (synthseg 0.1.0; networks: bands)\nsegmenting 1/2 a.nii.gz\n")
    assert "segmenting 2/2 b.nii\n" in said
    assert "segmented 2 of 2 scan(s)" in said
    assert f"volumes: {tmp_path / 'v.csv'}" in said
    assert "Billot et al." in said
    assert ".csv was added" in err
    assert "a.nii.gz: is at 1 mm already: nothing was resampled" in err
    assert small[0].threads == 2


@pytest.mark.usefixtures("small")
def test_a_list_with_a_table_a_scan(tmp_path, run_mri: Run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_scan(Path("a.nii"), phantom())
    save_scan(Path("b.nii"), phantom()[::-1].copy())
    Path("i.txt").write_text("a.nii\nb.nii\n")
    Path("o.txt").write_text("1.nii\n2.mgz\n")
    Path("v.txt").write_text("1.csv\nnew/2.csv\n")
    code, _, err = run_mri("--i", "i.txt", "--o", "o.txt", "--vol", "v.txt", "--fast")
    assert code == 0, err
    assert [rows_of(Path(name))[0][0] for name in ("1.csv", "new/2.csv")] == ["", ""]
    assert [row[0] for name in ("1.csv", "new/2.csv") for row in rows_of(Path(name))[1:]] == ["a.nii", "b.nii"]
    assert labels_of(Path("2.mgz")).dtype == np.dtype(">i4")
    assert labels_of(Path("1.nii")).any()


@pytest.mark.usefixtures("small")
def test_scans_that_fail_are_told_and_the_rest_is_done(tmp_path, run_mri: Run):
    source, out = tmp_path / "in", tmp_path / "out"
    save_scan(source / "a.nii", np.zeros((70, 70, 70), np.float32))
    (source / "b.nii").write_bytes(b"no image")
    save_scan(source / "c.nii", phantom())
    code, said, err = run_mri("--i", source, "--o", out, "--vol", tmp_path / "v.csv")
    assert code == 1
    assert [path.name for path in out.iterdir()] == ["c_synthseg.nii"]
    assert [row[0] for row in rows_of(tmp_path / "v.csv")] == ["subject", "c.nii"]
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    assert "a.nii: found a constant image" in failed[0]
    assert "2 scan(s) failed and have no row in the tables:" in err
    assert [line.strip() for line in err.splitlines()[-2:]] == [str(source / "a.nii"), str(source / "b.nii")]
    assert "segmented 1 of 3 scan(s)" in said


@pytest.mark.usefixtures("small")
def test_a_surprise_is_one_line_and_debug_shows_where_it_came_from(tmp_path, run_mri: Run, monkeypatch, capsys):
    save_scan(tmp_path / "a.nii", phantom())

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(LikeOriginal, "segment", broken)
    arguments = ("--i", tmp_path / "a.nii", "--o", tmp_path / "s.nii")
    code, said, err = run_mri(*arguments)
    assert code == 1
    assert "an unexpected error, RuntimeError: out of luck" in err.splitlines()[0]
    assert "cite" not in said
    with pytest.raises(SystemExit):
        mri_synthseg.main([*map(str, arguments), "--debug"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_an_interrupt_keeps_what_is_finished(tmp_path, run_mri: Run, monkeypatch):
    for name in ("a.nii", "b.nii", "c.nii"):
        save_scan(tmp_path / "in" / name, phantom())
    segment = LikeOriginal.segment

    def interrupted(self: LikeOriginal, scan: Path, **asked: bool) -> object:
        if scan.name == "b.nii":
            raise KeyboardInterrupt
        return segment(self, scan, **asked)

    monkeypatch.setattr(LikeOriginal, "segment", interrupted)
    code, _, err = run_mri("--i", tmp_path / "in", "--o", tmp_path / "out", "--vol", tmp_path / "v.csv")
    assert code == 130
    assert "interrupted with 2 of 3 scan(s) left" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_synthseg.nii"]
    assert [row[0] for row in rows_of(tmp_path / "v.csv")] == ["subject", "a.nii"]


def test_a_place_that_cannot_be_written_to_is_told_before_any_work(tmp_path, run_mri: Run, small):
    save_scan(tmp_path / "a.nii", phantom())
    (tmp_path / "file").touch()
    code, said, err = run_mri("--i", tmp_path / "a.nii", "--o", tmp_path / "file" / "out")
    assert code == 1
    assert "a folder that cannot be written to" in err
    assert "another place with --o," in err
    assert said == ""
    assert small == []


@pytest.mark.usefixtures("small")
def test_a_table_that_cannot_be_written_is_told_and_labels_stay(tmp_path, run_mri: Run, monkeypatch):
    save_scan(tmp_path / "a.nii", phantom())

    def full(*_: object) -> None:
        raise OutputError(tmp_path / "v.csv", found="no way to write it (disk full)", fix="free some space")

    monkeypatch.setattr("synthseg.cli.original.tables.OriginalTable.add", full)
    code, _, err = run_mri("--i", tmp_path / "a.nii", "--o", tmp_path / "s.nii", "--vol", tmp_path / "v.csv")
    assert code == 1
    assert "disk full" in err
    assert "v.csv lacks rows" in err
    assert labels_of(tmp_path / "s.nii").any()


@pytest.mark.usefixtures("small")
def test_file_names_that_are_no_text_do_not_stop_a_run(tmp_path, run_mri: Run):
    source = tmp_path / "in"
    scan = save_scan(source / "a.nii", phantom())
    scan.rename(os.fsdecode(os.fsencode(source) + b"/\xff.nii"))
    code, said, _ = run_mri("--i", source, "--o", tmp_path / "out", "--vol", tmp_path / "v.csv")
    assert code == 0
    assert "segmenting 1/1" in said
    assert b"\xff.nii," in (tmp_path / "v.csv").read_bytes()


@pytest.mark.usefixtures("small")
def test_what_the_terminal_cannot_show_is_escaped(tmp_path, monkeypatch):
    name = "b\u00e4nder.h5"
    load = networks.load
    monkeypatch.setattr(networks, "load", lambda options: replace(load(options), sources=(name,)))
    save_scan(tmp_path / "a.nii", phantom())
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    with pytest.raises(SystemExit) as stop:
        mri_synthseg.main(["--i", str(tmp_path / "a.nii"), "--o", str(tmp_path / "s.nii")])
    assert stop.value.code == 0
    assert b"networks: b\\xe4nder.h5" in shown.buffer.getvalue()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "synthseg_2.0.h5"), "synthseg_2.0.h5: found no way to use it"),
        (BrokenPipeError(32, "Broken pipe"), "nothing reads its output any more"),
    ],
)
def test_trouble_with_files_before_the_first_scan_is_one_line(tmp_path, run_mri: Run, monkeypatch, error, told):
    def load(_: Options) -> Loaded:
        raise error

    monkeypatch.setattr(networks, "load", load)
    save_scan(tmp_path / "a.nii", phantom())
    code, _, err = run_mri("--i", tmp_path / "a.nii", "--o", tmp_path / "s.nii")
    assert code == 1
    assert told in err
    assert err.count("\n") == 1


# Settings


def test_settings_are_the_originals():
    default, fast, robust = (
        settings_of(robust=robust, fast=fast, ct=False)
        for robust, fast in ((False, False), (False, True), (True, False))
    )
    assert default.percentiles == fast.percentiles == robust.percentiles == (0.5, 99.5)
    assert (default.flip, default.topology, default.smoothing_sigma_vox) == (True, True, 0.5)
    assert (fast.flip, fast.topology, fast.smoothing_sigma_vox) == (False, False, 0.5)
    assert (robust.flip, robust.topology, robust.smoothing_sigma_vox) == (False, False, 0)
    assert robust.parcel_smoothing_sigma_vox == 0.5
    assert (default.foreground_threshold, default.class_threshold, fast.channel_threshold) == (0.25, 0.25, 0.2)
    assert settings_of(robust=True, fast=True, ct=False) == robust


def test_ct_is_what_it_is_told_to_be_and_never_guessed():
    data = phantom()
    units = np.where(data == 0, np.float32(-1000), data * np.float32(0.08))
    units[0, :, :] = 2000  # metal
    scan = Volume(units, phantom_affine())
    clipped = LikeOriginal(band_model(), ct=True).segment(scan)
    again = LikeOriginal(band_model(), ct=True).segment(replace(scan, data=np.clip(units, 0, 80)))
    np.testing.assert_array_equal(clipped.labels.data, again.labels.data)
    assert clipped.notes == ()
    plain = LikeOriginal(band_model()).segment(scan)
    assert any("without --ct" in note for note in plain.notes)
    assert not np.array_equal(plain.labels.data, clipped.labels.data)


def test_every_output_of_one_scan_with_parcels_and_quality():
    engine = LikeOriginal(structures_model(), parcels=parcels_model(), quality=quality_model())
    result = engine.segment(scan_of(painted()), posteriors=True, resampled=True)
    assert result.labels.shape == SHAPE
    assert result.posteriors is not None
    assert result.posteriors.shape == (*SHAPE, 33)  # parcels have none
    assert result.resampled is None
    columns = list(result.volumes_mm3)
    assert columns[0] == "total intracranial"
    assert len(columns) == 1 + 32 + 68
    assert columns[1:33] == [s.name for s in engine.structures[1:33]]
    assert all(round(volume, 3) == volume for volume in result.volumes_mm3.values())
    parcels = sum(result.volumes_mm3[name] for name in columns[33:67])
    assert parcels == pytest.approx(result.volumes_mm3["left cerebral cortex"], abs=0.05)
    assert list(result.quality or {})[-1] == "hippocampus+amygdala"


def test_robust_is_the_chain_of_three():
    engine = LikeOriginal(hierarchy_models(), robust=True)
    assert {"tissues", "denoiser", "guided"} <= set(engine.segmenter.models)
    labels = engine.segment(scan_of(painted())).labels.data
    assert np.isin([2, 41], labels).all()
    assert not np.isin(labels, (8, 47)).any()  # the denoiser takes the cerebellum away
