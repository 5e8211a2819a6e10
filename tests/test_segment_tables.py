"""Tables of volumes and quality: their layout, and many runs that write into one."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference_helpers import NAMES, BandNetwork, band_model, coarse_scan, run_scans, small_protocol
from synthseg import locks
from synthseg.errors import UsageError
from synthseg.inference import Model, Segmenter, tables
from synthseg.inference.layouts import quality_cells, quality_layout, volume_cells, volume_layout
from synthseg.inference.quality import Quality
from synthseg.inference.segmentation import Interval
from synthseg.inference.tables import ScanTable


def volume_table(path: Path, names: Sequence[str] = ("total",), **options: bool) -> ScanTable:
    return ScanTable(path, volume_layout(names, {"x, y": 3}, **options))


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(band_model(spacing_mm=2.0), "fast")


def test_csv_has_the_originals_layout(tmp_path, segmenter):
    scans = [coarse_scan(tmp_path / "in" / name) for name in ("b.nii", "a.nii.gz")]
    table = tmp_path / "volumes.csv"
    outcomes = run_scans(segmenter, scans, tmp_path / "out", table=table).outcomes
    raw = table.read_bytes()
    assert raw.count(b"\r\n") == 3 == raw.count(b"\n")
    rows = list(csv.reader(raw.decode().splitlines()))
    assert rows[0] == ["subject", *NAMES]
    assert [row[0] for row in rows[1:]] == ["b", "a"]
    assert [float(cell) for cell in rows[1][1:]] == [outcomes[0].volumes_mm3[name] for name in NAMES]
    assert all(cell == repr(round(float(cell), 3)) for cell in rows[1][1:])


def test_tsv_is_tidy(tmp_path, segmenter):
    table = tmp_path / "volumes.tsv"
    run_scans(segmenter, [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "out", table=table)
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert rows[0] == ["subject", "value", "structure", "volume_mm3"]
    assert [row[1] for row in rows[1:]] == ["n/a", "2", "16", "17", "24", "41", "53"]
    assert [row[2] for row in rows[1:]] == NAMES


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_rows_of_earlier_runs_are_kept_and_repeated_ones_replaced(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    names = ["total", "x, y"]
    first = volume_table(path, names)
    first.add("s1", volume_cells({"total": 2, "x, y": 1.23456}))
    first.save()
    again = volume_table(path, names)
    assert again.rows == {"s1": ["2.0", "1.235"]}
    again.add("s2", volume_cells({"total": 4, "x, y": 0}))
    again.add("s1", volume_cells({"total": 3, "x, y": 5}))
    again.save()
    assert volume_table(path, names).rows == {"s1": ["3.0", "5.0"], "s2": ["4.0", "0.0"]}


def test_error_bars_follow_the_volumes_in_the_csv_and_stand_beside_them_in_the_tsv(tmp_path):
    names = ["total", "x, y"]
    volumes = {"total": 10.0, "x, y": 4.0}
    intervals = {"total": Interval(11.0, 8.5, 13.5, 1.0, 5), "x, y": Interval(4.0, 2.0, 6.0, 0.33333, 5)}
    for suffix in (".csv", ".tsv"):
        table = volume_table(tmp_path / f"v{suffix}", names, repeat=True)
        table.add("s", volume_cells(volumes, intervals))
        table.save()
        assert volume_table(table.path, names, repeat=True).rows == table.rows
        with pytest.raises(UsageError, match="existing table with other columns"):
            volume_table(table.path, names)
    rows = list(csv.DictReader((tmp_path / "v.csv").open(newline="")))
    assert list(rows[0])[:3] == ["subject", "total", "x, y"]
    assert rows[0] == {
        **{"subject": "s", "total": "10.0", "x, y": "4.0", "segmentations": "5"},
        **{"total mean": "11.0", "total sd": "1.0", "total low": "8.5", "total high": "13.5"},
        **{"x, y mean": "4.0", "x, y sd": "0.333", "x, y low": "2.0", "x, y high": "6.0"},
    }
    assert (tmp_path / "v.tsv").read_text().splitlines() == [
        "subject\tvalue\tstructure\tvolume_mm3\tmean_mm3\tsd_mm3\tlow_mm3\thigh_mm3\tn",
        "s\tn/a\ttotal\t10.0\t11.0\t1.0\t8.5\t13.5\t5",
        "s\t3\tx, y\t4.0\t4.0\t0.333\t2.0\t6.0\t5",
    ]


def test_the_quality_table_has_the_originals_columns_and_then_the_verdict(tmp_path):
    groups = ("general csf", "brainstem")
    for suffix in (".csv", ".tsv"):
        table = ScanTable(tmp_path / f"q{suffix}", quality_layout(groups))
        table.add("s", quality_cells(Quality({"general csf": 0.9, "brainstem": 0.64})))
        table.save()
        assert ScanTable(table.path, quality_layout(groups)).rows == table.rows
    raw = (tmp_path / "q.csv").read_bytes()
    assert raw == b"subject,general csf,brainstem,verdict\r\ns,0.9000,0.6400,fail\r\n"
    assert (tmp_path / "q.tsv").read_text().splitlines() == [
        "subject\tgroup\tpredicted_dice\tverdict",
        "s\tgeneral csf\t0.9000\tpass",
        "s\tbrainstem\t0.6400\tfail",
        "s\toverall\t0.6400\tfail",
    ]


@pytest.mark.parametrize("text", ["subject,other\r\na,1\r\n", "subject\tvalue\n", "\x00\x01"])
def test_a_table_of_something_else_is_not_overwritten(tmp_path, text):
    for suffix in (".csv", ".tsv"):
        path = tmp_path / f"v{suffix}"
        path.write_text(text)
        with pytest.raises(UsageError, match="existing table with other columns"):
            volume_table(path)
        assert path.read_text(encoding="utf-8") == text.replace("\r\n", "\n")
    with pytest.raises(UsageError, match=r"v.xlsx: found suffix '.xlsx'"):
        volume_table(tmp_path / "v.xlsx")


def test_without_csf_the_total_is_not_called_intracranial(tmp_path):
    rows = tuple(row for row in small_protocol().labels if row.value != 24)
    protocol = type(small_protocol())("no csf", "", rows)

    class SixBands(BandNetwork):
        def forward(self, image):
            return super().forward(image)[:, (0, 1, 2, 3, 5, 6)]

    model = Model.from_network(SixBands(), protocol, spacing_mm=2.0, multiple=4)
    table = tmp_path / "v.csv"
    result = run_scans(Segmenter(model, "fast"), [coarse_scan(tmp_path / "a.nii.gz")], tmp_path / "o", table=table)
    assert next(iter(result.outcomes[0].volumes_mm3)) == "total segmented"
    assert table.read_text().splitlines()[0].split(",")[:2] == ["subject", "left cerebral white matter"]


def rows_of(path):
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


def test_runs_that_take_turns_keep_each_others_rows(tmp_path):
    path = tmp_path / "v.csv"
    one, two = (volume_table(path) for _ in range(2))
    for subject, table in (("a", one), ("b", two), ("c", one), ("d", two), ("b", one)):
        table.add(subject, volume_cells({"total": ord(subject) + (table is one)}))
        table.save()
    assert rows_of(path) == [["a", "98.0"], ["b", "99.0"], ["c", "100.0"], ["d", "100.0"]]
    assert [file.name for file in tmp_path.iterdir()] == ["v.csv"]  # no lock is left


def test_runs_at_the_same_time_lose_no_row(tmp_path):
    path = tmp_path / "v.csv"

    def run(number):
        table = volume_table(path)
        for scan in range(8):
            table.add(f"{number}-{scan}", volume_cells({"total": scan}))
            table.save()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))
    assert sorted(row[0] for row in rows_of(path)) == [f"{n}-{scan}" for n in range(6) for scan in range(8)]


def test_a_lock_left_by_a_dead_run_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "STALE_S", 0.05)
    (tmp_path / ".v.csv.lock").touch()
    table = volume_table(tmp_path / "v.csv")
    table.add("a", volume_cells({"total": 1}))
    table.save()
    assert rows_of(tmp_path / "v.csv") == [["a", "1.0"]]
    assert [file.name for file in tmp_path.iterdir()] == ["v.csv"]


def test_the_table_is_not_written_again_for_every_scan(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SAVE_EVERY_S", 1e6)
    table = volume_table(tmp_path / "v.csv")
    for subject in "abc":
        table.add(subject, volume_cells({"total": 1}))
        table.save_if_due()
    assert [row[0] for row in rows_of(table.path)] == ["a"]
    table.save()
    assert [row[0] for row in rows_of(table.path)] == ["a", "b", "c"]
    before = table.path.stat().st_mtime_ns
    table.add("b", volume_cells({"total": 1}))  # as it is there already
    table.save()
    assert table.path.stat().st_mtime_ns == before


def test_a_table_that_becomes_another_one_meanwhile_is_told_and_the_scans_are_done(tmp_path, segmenter):
    scan, table = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "v.csv"

    def replaced(job):  # noqa: ARG001
        table.write_text("subject,heart\r\nx,1\r\n")

    result = run_scans(segmenter, [scan], tmp_path / "out", table=table, starting=replaced)
    assert [outcome.status for outcome in result.outcomes] == ["done"]
    assert "v.csv: found an existing table with other columns" in str(result.table_error)
    table.unlink()
    again = run_scans(segmenter, [scan], tmp_path / "out", table=table)
    assert [outcome.status for outcome in again.outcomes] == ["skipped"]
    assert again.table_error is None
    assert rows_of(table)[0][0] == "a"
