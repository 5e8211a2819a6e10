"""What tables of scores may do to commands: odd quotation marks, two units, results over inputs, families of few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from synthseg.errors import UsageError
from synthseg.evaluation.measurements import read_measurements

Command = Callable[..., tuple[int, str, str]]
HEADER = "scan\tmethod\tlabel\tstructure\tmetric\tvalue\tunit\n"


def write(path: Path, n_scans: dict[str, int], unit: str = "", metric: str = "dice") -> Path:
    """Two methods on so many scans of each structure; "new" is the better one everywhere, by steps of their own."""
    lines = [
        "\t".join((f"s{scan}", method, "", structure, metric, f"{0.5 + (scan + 1) * gain:.3f}", unit))
        for structure, n in n_scans.items()
        for scan in range(n)
        for method, gain in (("new", 0.001), ("old", 0.0))
    ]
    path.write_text(HEADER + "\n".join(lines), encoding="utf-8")
    return path


def test_quotation_marks_that_nothing_closes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    lines = "".join(f"a{number}\tx\tdice\t1\n" for number in range(20_000))
    path.write_text(f'scan\tstructure\tmetric\tvalue\n"a\tx\tdice\t1\n{lines}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"t\.tsv.*quotation marks"):
        read_measurements(path)


def test_values_of_two_units_are_not_drawn_on_one_axis(command: Command, tmp_path: Path) -> None:
    tables = [write(tmp_path / f"{mm}.tsv", {"a": 4}, unit=f"within {mm} mm", metric="surface_dice") for mm in (1, 2)]
    both = tmp_path / "both.tsv"
    both.write_text(tables[0].read_text() + "\n" + tables[1].read_text().removeprefix(HEADER), encoding="utf-8")
    arguments = ("plot", both, "--metric", "surface_dice", "--resamples", 200, "-o", tmp_path / "f.svg")
    code, _, err = command(*arguments)
    assert (code, "values in 'within 1 mm' and 'within 2 mm'" in err) == (2, True)
    code, _, _ = command(*arguments, "--where", "unit=within 2 mm")
    assert (code, (tmp_path / "f.svg").is_file()) == (0, True)


def test_scores_are_not_overwritten_by_what_is_made_of_them(command: Command, tmp_path: Path) -> None:
    table = write(tmp_path / "a.tsv", {"a": 4})
    before = table.read_bytes()
    code, _, err = command("compare", table, "-o", tmp_path / "x" / ".." / "a.tsv")
    assert (code, "a file which the command reads" in err, table.read_bytes() == before) == (2, True, True)


@pytest.mark.parametrize(("correction", "weak"), [("bonferroni", 1), ("holm", 0), ("none", 0)])
def test_a_test_that_holm_may_still_find_is_not_called_hopeless(
    command: Command, tmp_path: Path, correction: str, weak: int
) -> None:
    """Six pairs give p = 1/32: too much for half of 5 %, enough for Holm once the other test is found."""
    table = write(tmp_path / "a.tsv", {"small": 6, "large": 12})
    out = tmp_path / "t.tsv"
    code, text, _ = command("compare", table, "--resamples", 200, "--correction", correction, "-o", out)
    assert code == 0
    assert ("too few differing pairs" in text) == bool(weak)
    found = np.genfromtxt(out, delimiter="\t", names=True, dtype=None, encoding="utf-8")
    assert (found["p_corrected"][0] < 0.05) == (not weak)


@pytest.mark.parametrize("name", ["a$x^{$b", "$a$b", "_ours"])
def test_methods_may_be_called_anything(command: Command, tmp_path: Path, name: str) -> None:
    table = write(tmp_path / "a.tsv", {"a": 4})
    table.write_text(table.read_text(encoding="utf-8").replace("new", name), encoding="utf-8")
    code, _, err = command("compare", table, "--resamples", 200, "--figure", tmp_path / "f.svg")
    assert code == 0, err
    assert name in (tmp_path / "f.svg").read_text(encoding="utf-8")


def test_a_table_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, command: Command) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    maps = tmp_path / "maps"
    maps.mkdir()
    code, said, err = command("evaluate", maps, maps, "-o", blocked / "scores.tsv")
    assert code == 1
    assert "file: found a folder that cannot be written to" in err
    assert not said
