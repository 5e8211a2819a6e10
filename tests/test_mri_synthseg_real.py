"""mri_synthseg with the shipped weights on real scans: the original's grid, the labels of `synthseg segment`."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synthseg.cli import mri_synthseg
from synthseg.inference import Segmenter, Want
from synthseg.metrics import dice

pytestmark = pytest.mark.slow


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        mri_synthseg.main([*map(str, arguments), "--threads", "2", "--cpu"])
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    return out + err


@pytest.fixture(autouse=True)
def _no_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SYNTHSEG_MODEL_DIR", "SYNTHSEG_WEIGHTS_DIR", "FREESURFER_HOME"):
        monkeypatch.setenv(variable, "")


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Mean Dice of the structures that either has."""
    values = [int(value) for value in np.union1d(first, second) if value]
    return float(np.mean(dice(first.astype(np.int32), second.astype(np.int32), values)))


def test_a_scan_of_1_mm_keeps_its_grid(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = shared / "data" / "validation" / "oasis" / "oasis_1000_t1.nii.gz"
    told = run(capsys, "--i", scan, "--o", tmp_path / "s.mgz", "--vol", tmp_path / "v.csv", "--parc")
    assert "the original's networks were not found" in told
    seg, image = nib.load(tmp_path / "s.mgz"), nib.load(scan)
    assert seg.shape == image.shape
    np.testing.assert_allclose(seg.affine, image.affine, atol=1e-4)
    ours = Segmenter(parcels=True, device="cpu").segment(scan, Want(space="native")).labels.data
    assert agreement(np.asanyarray(seg.dataobj), ours) > 0.95


def test_a_coarse_scan_comes_at_1_mm_or_keeps_its_geometry(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = shared / "data" / "validation" / "mni" / "mni152lin_2mm_t1.nii.gz"
    run(capsys, "--i", scan, "--o", tmp_path / "s.nii.gz", "--resample", tmp_path / "r.nii.gz")
    run(capsys, "--i", scan, "--o", tmp_path / "k.nii.gz", "--keepgeom")
    seg, resampled, kept, image = (nib.load(path) for path in (*(tmp_path / f"{name}.nii.gz" for name in "srk"), scan))
    assert seg.shape == resampled.shape == tuple(2 * n for n in image.shape)
    np.testing.assert_allclose(seg.affine, resampled.affine)
    np.testing.assert_allclose(seg.header.get_zooms(), 1)
    assert kept.shape == image.shape
    np.testing.assert_allclose(kept.affine, image.affine)
    ours = Segmenter(device="cpu").segment(scan, Want(space="both"))
    assert ours.native is not None
    assert ours.fine is not None
    assert agreement(np.asanyarray(kept.dataobj), ours.native.data) > 0.95
    # The scan's x axis runs to the left; its sides are whole millimetres, so that both 1 mm grids are the same.
    canonical = nib.as_closest_canonical(seg)
    np.testing.assert_allclose(canonical.affine, ours.fine.affine, atol=1e-4)
    assert agreement(np.asanyarray(canonical.dataobj), ours.fine.data) > 0.95
