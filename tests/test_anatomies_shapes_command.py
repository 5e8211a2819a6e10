"""``synthseg shapes``: versions of label maps on disk, and their table."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shapes_helpers import fetal_brain

Command = Callable[..., tuple[int, str, str]]
AFFINE = np.array([[0.0, 0, -1.6, 9], [-1.6, 0, 0, 3], [0, 1.6, 0, -4], [0, 0, 0, 1]])


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Two maps whose axes are in no simple order."""
    folder = tmp_path / "maps"
    folder.mkdir()
    data = np.ascontiguousarray(fetal_brain()[::-1].transpose(1, 2, 0)[::-1]).astype(np.int16)
    stored = np.zeros(data.shape, dtype=np.int16)
    stored[:] = data
    for name in ("a_feta", "b_feta"):
        nib.Nifti1Image(stored, AFFINE).to_filename(folder / f"{name}.nii.gz")
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "shapes.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_versions_are_written_beside_their_table_and_a_stopped_batch_goes_on(
    maps: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    arguments = ("shapes", maps, "-o", out, "--per-map", 2, "--kinds", "callosum,size", "--seed", 3, "--originals")
    code, said, _ = command(*arguments)
    assert code == 0
    names = {f"{stem}_feta{end}.nii.gz" for stem in "ab" for end in ("", "_shape-01", "_shape-02")}
    assert {path.name for path in out.iterdir()} == names | {"shapes.tsv"}
    assert said.count("x ") >= 4
    rows = table(out)
    assert {row["map"] for row in rows} == names
    assert {row["kind"] for row in rows} <= {"none", "callosum", "size"}
    for row in rows:
        if row["kind"] != "none":
            assert float(row["after_mm3"]) / float(row["before_mm3"]) == pytest.approx(float(row["reached"]), abs=1e-3)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    given = nib.load(maps / "a_feta.nii.gz")
    copy = nib.load(out / "a_feta.nii.gz")
    np.testing.assert_array_equal(np.asarray(copy.dataobj), np.asarray(given.dataobj))
    np.testing.assert_allclose(copy.affine, given.affine)
    assert not np.array_equal(np.asarray(nib.load(out / "a_feta_shape-01.nii.gz").dataobj), np.asarray(given.dataobj))
    (out / "b_feta_shape-02.nii.gz").unlink()
    code, said, _ = command(*arguments)
    assert code == 0
    assert said.count("there already") == 5
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_one_change_by_name_is_what_was_asked(maps: Path, tmp_path: Path, command: Command) -> None:
    code, said, _ = command("shapes", maps / "a_feta.nii.gz", "-o", tmp_path / "out", "--edit", "external-csf=1.2")
    assert code == 0
    assert "external-csf x 1.20" in said
    after = np.asarray(nib.load(tmp_path / "out" / "a_feta_shape-01.nii.gz").dataobj)
    assert np.count_nonzero(after) / np.count_nonzero(fetal_brain()) == pytest.approx(1.2, abs=0.01)


def test_a_recipe_gives_the_ranges(maps: Path, tmp_path: Path, command: Command) -> None:
    recipe = tmp_path / "shapes.toml"
    recipe.write_text("size = [0.8, 0.8]\nprobability = 1.0\n", encoding="utf-8")
    file = maps / "a_feta.nii.gz"
    code, _, _ = command("shapes", file, "-o", tmp_path / "out", "--recipe", recipe, "--kinds", "size")
    assert code == 0
    (row,) = table(tmp_path / "out")
    assert (row["kind"], float(row["severity"])) == ("size", 0.8)
    recipe.write_text("ventricle = [0.8, 0.8]\n", encoding="utf-8")
    code, _, error = command("shapes", file, "-o", tmp_path / "other", "--recipe", recipe)
    assert (code, "did you mean 'ventricles'" in error, "shapes.toml" in error) == (2, True, True)


def test_what_cannot_be_done_is_refused_before_anything_is_lost(maps: Path, tmp_path: Path, command: Command) -> None:
    file, out = maps / "a_feta.nii.gz", tmp_path / "out"
    for change, said in (("size", "KIND=FACTOR"), ("sizes=2", "'sizes'"), ("size=big", "KIND=FACTOR")):
        code, _, error = command("shapes", file, "-o", out, "--edit", change)
        assert code == 2
        assert said in error
    code, _, error = command("shapes", file, "-o", out, "--edit", "size=9")
    assert code == 2
    assert "a_feta.nii.gz" in error
    assert not out.exists()
    out.mkdir()
    (out / "a_feta_shape-01.nii.gz").write_bytes(b"someone's")
    code, _, error = command("shapes", file, "-o", out, "--edit", "size=0.8")
    assert (code, "--overwrite" in error) == (1, True)
    assert (out / "a_feta_shape-01.nii.gz").read_bytes() == b"someone's"
    assert command("shapes", file, "-o", out, "--edit", "size=0.8", "--overwrite")[0] == 0
    code, _, error = command("shapes", file, "-o", out, "--edit", "size=0.8", "--seed", 1)
    assert (code, "made with seed 0" in error) == (1, True)
    code, _, error = command("shapes", file, "-o", out, "--edit", "size=0.9")
    assert (code, "another change" in error) == (1, True)
    code, _, error = command("shapes", maps, "-o", maps, "--originals")
    assert (code, "the label maps themselves" in error) == (1, True)
