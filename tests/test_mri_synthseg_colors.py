"""The colour table that mri_synthseg puts into label maps, or beside them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference_helpers import phantom, phantom_affine, save_scan
from mri_synthseg_helpers import Run, labels_of

pytestmark = pytest.mark.usefixtures("no_originals")


def embedded_table(path: Path, tmp_path: Path) -> tuple[np.ndarray, list[str]]:
    """The colour table at the end of an MGZ file, as nibabel reads that of an .annot file."""
    import gzip

    content = gzip.decompress(path.read_bytes())
    image = nib.load(path)
    begin = image.header.get_footer_offset() + 20  # five scan parameters
    annot = tmp_path / "table.annot"
    annot.write_bytes(b"\0\0\0\1" + b"\0" * 8 + content[begin:])  # one vertex
    _, table, names = nib.freesurfer.read_annot(annot, orig_ids=True)
    return table, [name.decode() for name in names]


@pytest.mark.usefixtures("small")
def test_mgz_labels_hold_their_colours(tmp_path, run_mri: Run):
    nib.save(nib.MGHImage(phantom(), phantom_affine()), tmp_path / "a.mgz")
    assert run_mri("--i", tmp_path / "a.mgz", "--o", tmp_path / "s.mgz")[0] == 0
    table, names = embedded_table(tmp_path / "s.mgz", tmp_path)
    assert names[1:3] == ["left-cerebral-white-matter", "brain-stem"]
    assert table[[0, 2, 16, 53], :4].tolist() == [[v, 2 * v, 3 * v, 0] for v in (0, 2, 16, 53)]
    assert run_mri("--i", tmp_path / "a.mgz", "--o", tmp_path / "plain.mgz", "--noaddctab")[0] == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "s.mgz"), labels_of(tmp_path / "plain.mgz"))
    assert not list(tmp_path.glob("*_colors.txt"))


@pytest.mark.usefixtures("small")
def test_nifti_labels_get_a_colour_table_beside_when_it_is_asked_for(tmp_path, run_mri: Run):
    save_scan(tmp_path / "a.nii", phantom())
    code, _, err = run_mri("--i", tmp_path / "a.nii", "--o", tmp_path / "s.nii.gz", "--addctab")
    assert code == 0
    assert "17     left-hippocampus" in (tmp_path / "s_colors.txt").read_text()
    assert "s_colors.txt" in err
