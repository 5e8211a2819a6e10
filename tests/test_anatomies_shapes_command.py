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
    assert (code, "0.3 to 3" in error, out.exists()) == (2, True, False)
    code, _, error = command("shapes", file, "-o", out, "--edit", "size=3")
    assert (code, "a_feta.nii.gz" in error, "nearer to 1" in error) == (2, True, True)
    assert not list(out.iterdir())
    (out / "a_feta_shape-01.nii.gz").write_bytes(b"someone's")
    code, _, error = command("shapes", file, "-o", out, "--edit", "size=0.8")
    assert (code, "--overwrite" in error) == (1, True)
    assert (out / "a_feta_shape-01.nii.gz").read_bytes() == b"someone's"
    assert command("shapes", file, "-o", out, "--edit", "size=0.8", "--overwrite")[0] == 0
    code, _, error = command("shapes", file, "-o", out, "--edit", "size=0.8", "--seed", 1)
    assert (code, "not the same seed)" in error) == (1, True)
    code, _, error = command("shapes", file, "-o", out, "--edit", "size=0.9")
    assert (code, "not the same settings)" in error) == (1, True)
    for more in ([], ["--originals"]):  # the next run would make versions of versions
        code, _, error = command("shapes", maps, "-o", maps, *more)
        assert (code, "the label maps themselves" in error) == (1, True)
    assert {path.name for path in maps.iterdir()} == {"a_feta.nii.gz", "b_feta.nii.gz"}


def test_overwriting_one_map_keeps_the_rows_of_the_others(maps: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    assert command("shapes", maps, "-o", out, "--edit", "size=0.8")[0] == 0
    assert command("shapes", maps / "a_feta.nii.gz", "-o", out, "--edit", "size=0.7", "--overwrite")[0] == 0
    assert {row["source"]: float(row["severity"]) for row in table(out)} == {"a_feta.nii.gz": 0.7, "b_feta.nii.gz": 0.8}
    code, said, _ = command("shapes", maps / "b_feta.nii.gz", "-o", out, "--edit", "size=0.8")
    assert (code, "there already" in said) == (0, True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_batch_killed_between_row_and_map_goes_on(
    maps: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    from synthseg.anatomies.shapes import files

    file, out = maps / "a_feta.nii.gz", tmp_path / "out"
    if overwrite:
        assert command("shapes", file, "-o", out, "--edit", "size=0.7")[0] == 0

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = ("shapes", file, "-o", out, "--edit", "size=0.8")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_write", killed)
        command(*arguments, *["--overwrite"] * overwrite)
    # The map of the run before must not pass for the one whose row is there.
    assert [path.name for path in out.iterdir()] == ["shapes.tsv"]
    code, said, _ = command(*arguments)
    assert (code, "there already" in said) == (0, False)
    assert float(table(out)[0]["severity"]) == 0.8
    after = np.asarray(nib.load(out / "a_feta_shape-01.nii.gz").dataobj)
    assert np.count_nonzero(after) / np.count_nonzero(fetal_brain()) == pytest.approx(0.8, abs=0.02)


def test_a_map_that_has_changed_is_noticed(maps: Path, tmp_path: Path, command: Command) -> None:
    file, out = maps / "a_feta.nii.gz", tmp_path / "out"
    assert command("shapes", file, "-o", out, "--edit", "size=0.8")[0] == 0
    data = np.asarray(nib.load(file).dataobj).copy()
    data[data == 6] = 3
    nib.Nifti1Image(data, AFFINE).to_filename(file)
    code, _, error = command("shapes", file, "-o", out, "--edit", "size=0.8")
    assert (code, "not the same inputs" in error) == (1, True)
    assert command("shapes", file, "-o", out, "--edit", "size=0.8", "--overwrite")[0] == 0
    assert 6 not in np.asarray(nib.load(out / "a_feta_shape-01.nii.gz").dataobj)


def test_a_damaged_table_is_refused_and_replaced_on_demand(maps: Path, tmp_path: Path, command: Command) -> None:
    file, out = maps / "a_feta.nii.gz", tmp_path / "out"
    arguments = ("shapes", file, "-o", out, "--edit", "size=0.8")
    assert command(*arguments)[0] == 0
    good = (out / "shapes.tsv").read_text(encoding="utf-8")
    for bad, said in ((good.replace("0.8000", "much", 1), "no numbers in the row"), ("map\twhat\na\tb\n", "columns")):
        (out / "shapes.tsv").write_text(bad, encoding="utf-8")
        code, _, error = command(*arguments)
        assert (code, said in error, "shapes.tsv" in error) == (1, True, True)
    assert command(*arguments, "--overwrite")[0] == 0
    assert (out / "shapes.tsv").read_text(encoding="utf-8") == good


def test_any_name_that_a_file_can_have_is_listed(maps: Path, tmp_path: Path, command: Command) -> None:
    file = maps / "a_feta.nii.gz"
    for name in ("ein Gehirn ü.nii.gz", "two\nlines\r\ttab.nii.gz"):
        odd = file.rename(tmp_path / "maps" / name)
        for again in (False, True):
            code, said, _ = command("shapes", odd, "-o", tmp_path / "out", "--edit", "size=0.8")
            assert (code, "there already" in said) == (0, again)
        file = odd
