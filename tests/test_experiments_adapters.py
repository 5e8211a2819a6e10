"""Other tools' label maps: values, names and what has no counterpart."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments are no part of the installed package

from experiments.adapters import MAPPINGS, adapt_folder, main

from synthseg.errors import LabelError, UsageError
from synthseg.evaluation import evaluate_pair, read_mapping
from synthseg.labels import load_protocol


def _save(values: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(kind(values.astype(np.int32), np.eye(4)), path)
    return path


def test_consecutive_labels_become_the_protocols_values_in_order(tmp_path):
    values = load_protocol("synthseg-2.0").target_values
    maps = np.arange(64).reshape(4, 4, 4) % 33
    _save(maps, tmp_path / "in" / "case_01.nii.gz")
    (written,) = adapt_folder("nnunet", tmp_path / "in", tmp_path / "out")
    assert written.name == "case_01_nnunet.nii.gz"
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), values[maps])


def test_a_converted_map_scores_as_the_map_it_was_made_from(tmp_path):
    values = load_protocol("synthseg-2.0").target_values
    maps = np.random.default_rng(0).integers(0, 33, (6, 6, 6))
    truth = _save(values[maps], tmp_path / "truth.nii.gz")
    _save(maps, tmp_path / "in" / "x.nii.gz")
    (written,) = adapt_folder("sifa", tmp_path / "in", tmp_path / "out")
    assert {row.dice for row in evaluate_pair(written, truth).rows} == {1.0}


@pytest.mark.parametrize(("tool", "place"), [("freesurfer", "ann/mri/aseg.mgz"), ("samseg", "ann/seg.mgz")])
def test_freesurfers_own_values_find_their_structure_and_side(tool, place, tmp_path):
    maps = np.zeros((10, 4, 4), dtype=int)
    maps[:3], maps[7:], maps[3], maps[6] = 2, 41, 77, 251  # hypointensities and callosum, each beside one side
    maps[0, 0] = [31, 1002, 2030, 85]
    _save(maps, tmp_path / place)
    (written,) = adapt_folder(tool, tmp_path, tmp_path / "out")
    assert written.name == f"ann_{tool}.nii.gz"
    found = np.asarray(nib.load(written).dataobj)
    assert (found[3] == 2).all()
    assert (found[6] == 41).all()
    assert found[0, 0].tolist() == [4, 3, 42, 0]


def test_every_table_maps_onto_the_protocol_and_keeps_its_values():
    targets = set(load_protocol("synthseg-2.0").target_values.tolist())
    for path in MAPPINGS.glob("*.tsv"):
        table = read_mapping(path).targets
        assert {t for choices in table.values() for t in choices} <= targets
    own = read_mapping(MAPPINGS / "freesurfer.tsv").targets
    assert all(own[value] == (value,) for value in targets)


def test_what_a_table_does_not_know_is_named(tmp_path, capsys):
    _save(np.full((4, 4, 4), 40), tmp_path / "in" / "a.nii.gz")
    with pytest.raises(LabelError, match=r"a\.nii\.gz.*40"):
        adapt_folder("nnunet", tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match=r"no \*/seg\.mgz"):
        adapt_folder("samseg", tmp_path / "in", tmp_path / "out")
    assert main(["samseg", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "Traceback" not in capsys.readouterr().err
