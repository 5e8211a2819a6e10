"""Which networks mri_synthseg uses, and its whole way with the original's five files, random weights in them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import save_random_weights
from keras_files import FAMILY, phantom, unet, write_family, write_keras
from mri_synthseg_helpers import Run, forget_originals, labels_of, rows_of, runner
from synthseg.cli import mri_synthseg
from synthseg.cli.original.networks import Choice, choose
from synthseg.cli.original.parser import Options, parse
from synthseg.errors import WeightsError
from synthseg.labels import load_protocol

ROBUST = {role: f"synthseg-2.0-{role}" for role in ("tissues", "denoiser", "guided")}


@pytest.fixture(autouse=True)
def _no_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_originals(monkeypatch)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the original's five files, their networks tiny and random."""
    folder = tmp_path_factory.mktemp("freesurfer") / "models"
    write_family(folder, features=2, levels=3)
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of smooth patches, 80 x 72 x 64 voxels of 1 mm, axes to the left, front and top."""
    image, _ = phantom(5)
    affine = np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = (40, -36, -32)
    path = tmp_path_factory.mktemp("scan") / "sub-01.nii.gz"
    nib.save(nib.Nifti1Image((1000 * image[:, :72, :64]).astype(np.float32), affine), path)
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def asked(*extra: object) -> Options:
    return parse(["--i", "a.nii", "--o", "b.nii", *map(str, extra)])


# Which networks


def test_freesurfers_models_are_found_and_used(family, monkeypatch):
    monkeypatch.setenv("FREESURFER_HOME", str(family.parent))
    assert choose(asked()) == Choice({"structures": "synthseg-2.0"}, False, False)
    assert choose(asked("--v1")) == Choice({"structures": "synthseg-1.0"}, False, False)
    assert choose(asked("--robust", "--parc", "--qc", "q.csv")) == Choice(
        ROBUST, "synthseg-2.0-parcels", "synthseg-2.0-quality"
    )
    assert choose(asked("--v1", "--parc")).parcels == "synthseg-2.0-parcels"
    assert choose(asked("--weights", "default", "--parc")) == Choice(None, True, False)


def test_without_any_of_the_originals_our_own_answer_and_a_note_says_so():
    choice = choose(asked("--parc"))
    assert choice.weights is None
    assert choice.parcels is True
    (note,) = choice.notes
    assert "not found" in note
    assert "--model-dir" in note
    assert choose(asked("--weights", "default")).notes == ()


@pytest.mark.parametrize("flag", ["--v1", "--strict-original"])
def test_what_only_the_originals_can_do_is_refused_without_them(command: Run, scan, tmp_path, flag):
    code, _, err = command("--i", scan, "--o", tmp_path / "s.nii", flag)
    assert code == 1
    file = "synthseg_1.0.h5" if flag == "--v1" else "synthseg_2.0.h5"
    assert err.startswith(f"mri_synthseg: {flag}: found none of the original's networks ({file})")
    assert "--model-dir" in err
    assert not (tmp_path / "s.nii").exists()


@pytest.mark.parametrize(
    ("extra", "missing"),
    [
        ("--parc", "synthseg_parc_2.0.h5"),
        ("--qc q.csv", "synthseg_qc_2.0.h5"),
        ("--robust", "synthseg_robust_2.0.h5"),
        ("--v1 --parc", "synthseg_1.0.h5"),
    ],
)
def test_a_part_of_the_family_does_not_stand_for_the_whole(tmp_path, monkeypatch, extra, missing):
    # Ours would not fit beside the original's (2 mm and 1 mm), and nothing is replaced without a word.
    (tmp_path / FAMILY["2.0"]).touch()
    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", str(tmp_path))
    if "--v1" in extra:
        (tmp_path / FAMILY["parc"]).touch()
    with pytest.raises(WeightsError, match="--weights default") as caught:
        choose(asked(*extra.split()))
    assert caught.value.subject == missing


def test_a_model_file_takes_the_structures_part(family, tmp_path, monkeypatch):
    path = family / FAMILY["2.0"]
    assert choose(asked("--model", path)) == Choice({"structures": path}, False, False)
    monkeypatch.setenv("SYNTHSEG_MODEL_DIR", str(family))
    assert choose(asked("--model", path, "--parc")).parcels == "synthseg-2.0-parcels"
    robust = family / FAMILY["robust"]
    assert choose(asked("--model", robust, "--robust")).weights == dict.fromkeys(ROBUST, robust)
    ours = save_random_weights(tmp_path / "tiny.safetensors")  # for 2 mm: the original's parcels do not fit it
    assert choose(asked("--model", ours, "--parc")) == Choice({"structures": ours}, True, False)


@pytest.mark.parametrize(
    ("flag", "value", "found"), [("--model", "gone.h5", "no such file"), ("--model-dir", "gone", "no such folder")]
)
def test_missing_files_and_folders_are_wrong_usage(command: Run, scan, tmp_path, flag, value, found):
    code, _, err = command("--i", scan, "--o", tmp_path / "s.nii", flag, tmp_path / value)
    assert code == 2
    assert err.startswith(f"mri_synthseg: {flag} {tmp_path / value}: found {found}")


def test_a_model_file_segments(command: Run, scan, tmp_path):
    ours = save_random_weights(tmp_path / "tiny.safetensors")
    code, said, _ = command("--i", scan, "--o", tmp_path / "s.nii", "--model", ours)
    assert code == 0
    assert "networks: tiny)" in said
    assert set(np.unique(labels_of(tmp_path / "s.nii"))) <= {0, 2, 16, 17, 24, 41, 53}


@pytest.mark.parametrize(
    ("extra", "file"), [(("--parc",), "synthseg_parc_2.0.h5"), (("--qc", "q.csv"), "synthseg_qc_2.0.h5")]
)
def test_what_goes_with_a_model_file_at_1_mm_is_missed_by_name(command: Run, scan, family, tmp_path, extra, file):
    model = family / FAMILY["2.0"]
    code, _, err = command("--i", scan, "--o", tmp_path / "s.nii", "--model", model, *extra)
    assert code == 1
    assert err.splitlines()[-1].startswith(f"mri_synthseg: {file}: found no such file")
    assert "--model-dir" in err


def test_a_file_of_another_networks_is_refused_in_words(command: Run, scan, family, tmp_path):
    code, _, err = command("--i", scan, "--o", tmp_path / "s.nii", "--model", family / FAMILY["parc"])
    assert code == 1
    assert FAMILY["parc"] in err
    assert "role" in err


# From the original's files to the outputs


@pytest.fixture(scope="module")
def both(scan: Path, family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the labels and volumes of the pipeline ("like") and of the original's steps ("strict")."""
    folder = tmp_path_factory.mktemp("both")
    image = nib.load(scan)
    wide = np.pad(image.get_fdata(dtype=np.float32), [((128 - n) // 2,) * 2 for n in image.shape])  # neither pads more
    nib.save(nib.Nifti1Image(wide, image.affine), folder / "sub-01.nii.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTHSEG_MODEL_DIR", str(family))
        for name, how in (("like", ()), ("strict", ("--strict-original",))):
            outputs = ("--o", folder / f"{name}.nii", "--vol", folder / f"{name}.csv")
            with pytest.raises(SystemExit) as stop:
                mri_synthseg.main([*map(str, ("--i", folder / "sub-01.nii.gz", *outputs, *how))])
            assert not stop.value.code
    return folder


@pytest.mark.parametrize("name", ["like", "strict"])
def test_structures_and_their_table(both: Path, name: str):
    protocol = load_protocol("synthseg-2.0")
    names = {label.value: label.name for label in protocol.labels}
    header, row = rows_of(both / f"{name}.csv")
    assert header == ["subject", "total intracranial", *(names[int(v)] for v in protocol.target_values[1:])]
    assert header[16:19] == ["left amygdala", "csf", "left accumbens area"]
    assert row[0] == "sub-01"
    labels = labels_of(both / f"{name}.nii")
    np.testing.assert_allclose(nib.load(both / f"{name}.nii").affine, nib.load(both / "sub-01.nii.gz").affine)
    counted = np.array([np.count_nonzero(labels == value) for value in protocol.target_values[1:]])
    soft = np.array(list(map(float, row[2:])))
    assert counted.any()
    assert np.corrcoef(counted, soft)[0, 1] > 0.9  # of random networks, whose answers are soft
    assert all(len(cell.partition(".")[2]) in (1, 2, 3) for cell in row[1:])


@pytest.mark.parametrize("how", [(), ("--strict-original",)])
def test_version_1_with_parcels_has_no_total(command: Run, scan, family, tmp_path, how):
    code, said, err = command(
        *("--i", scan, "--o", tmp_path / "s.mgz", "--vol", tmp_path / "v.csv", "--model-dir", family),
        *("--v1", "--parc", "--fast", *how),
    )
    assert code == 0, err
    assert said.startswith("SynthSeg 1.0 (fast)")
    header, _ = rows_of(tmp_path / "v.csv")
    assert header[:2] == ["subject", "left cerebral white matter"]
    assert len(header) == 1 + 31 + 68
    assert header[32:34] == ["ctx-lh-bankssts", "ctx-lh-caudalanteriorcingulate"]
    assert header[-1] == "ctx-rh-insula"
    assert "csf" not in header
    labels = np.unique(labels_of(tmp_path / "s.mgz"))
    assert not set(labels) & {3, 24, 42}


def test_the_pipeline_agrees_with_the_originals_steps(both: Path):
    like, strict = (labels_of(both / f"{name}.nii") for name in ("like", "strict"))
    assert len(np.unique(strict)) > 5
    assert np.mean(like == strict) > 0.9999
    (header, of_like), (same, of_strict) = (rows_of(both / f"{name}.csv") for name in ("like", "strict"))
    assert header == same
    # The original's running sums in single precision fall short, the more the larger the region (reference 6.8): here
    # one has over a million voxels, 0.5 %.
    like_mm3, strict_mm3 = (np.array(list(map(float, row[1:]))) for row in (of_like, of_strict))
    np.testing.assert_allclose(like_mm3, strict_mm3, rtol=1e-2, atol=1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--strict-original",)])
def test_robust_with_everything(command: Run, scan, family, tmp_path, how):
    code, said, err = command(
        *("--i", scan, "--o", tmp_path / "s.nii", "--vol", tmp_path / "v.csv", "--qc", tmp_path / "q.csv"),
        *("--post", tmp_path / "p.nii", "--model-dir", family, "--robust", "--parc", *how),
    )
    assert code == 0, err
    assert said.startswith("SynthSeg-robust 2.0")
    assert "PNAS" in said
    assert len(rows_of(tmp_path / "v.csv")[0]) == 1 + 1 + 32 + 68
    assert nib.load(tmp_path / "p.nii").shape[3] == 33
    header, row = rows_of(tmp_path / "q.csv")
    assert header == [
        *("subject", "general white matter", "general grey matter", "general csf", "cerebellum", "brainstem"),
        *("thalamus", "putamen+pallidum", "hippocampus+amygdala"),
    ]
    assert row[0] == "sub-01"
    assert all(len(cell) == 6 and 0 <= float(cell) <= 1 for cell in row[1:])


def test_strict_keeps_the_geometry_when_asked_to(command: Run, scan, family, tmp_path):
    image = nib.load(scan)
    coarse = nib.Nifti1Image(np.asanyarray(image.dataobj)[::2, ::2], image.affine @ np.diag([2, 2, 1, 1]))
    nib.save(coarse, tmp_path / "a.nii")
    outputs = ("--o", tmp_path / "s.nii", "--post", tmp_path / "p.nii", "--resample", tmp_path / "r.nii")
    code, _, err = command(
        "--i", tmp_path / "a.nii", *outputs, "--model-dir", family, "--strict-original", "--keepgeom", "--fast"
    )
    assert code == 0, err
    seg = nib.load(tmp_path / "s.nii")
    assert seg.shape == coarse.shape == nib.load(tmp_path / "p.nii").shape[:3]
    np.testing.assert_allclose(seg.affine, coarse.affine)
    assert nib.load(tmp_path / "r.nii").shape == (80, 72, 64)
    assert labels_of(tmp_path / "s.nii").any()


def test_strict_keeps_the_voxels_of_npz_files_whose_affine_it_does_not_know(command: Run, scan, family, tmp_path):
    image = nib.load(scan)
    np.savez(tmp_path / "a.npz", vol_data=image.get_fdata(dtype=np.float32), affine=image.affine)
    for name, extra in (("s.npz", ()), ("kept.npz", ("--keepgeom",))):
        shared = ("--model-dir", family, "--strict-original", "--fast", *extra)
        assert command("--i", tmp_path / "a.npz", "--o", tmp_path / name, *shared)[0] == 0
    plain, kept = (np.load(tmp_path / name)["vol_data"] for name in ("s.npz", "kept.npz"))
    assert plain.any()
    np.testing.assert_array_equal(kept, plain)


def test_networks_with_other_labels_are_refused_with_the_way_out(command: Run, scan, tmp_path):
    path = write_keras(tmp_path / "odd.h5", [unet(features=2, levels=2, n_out=7)])
    code, _, err = command("--i", scan, "--o", tmp_path / "s.nii", "--model", path)
    assert code == 1
    assert "odd.h5" in err
    assert "7 outputs" in err
