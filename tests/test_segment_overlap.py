"""Batches that read the next scan and write the last one while one is computed: the same results in the same order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from inference_helpers import BandNetwork, band_model, coarse_scan, run_scans, save_random_weights, small_protocol
from synthseg.cli.process import THREAD_VARIABLES
from synthseg.inference import Model, Outputs, Segmenter, batch
from synthseg.inference.record import ran_with


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(band_model(spacing_mm=2.0), "fast")


class Obeying(BandNetwork):
    """Calls a function at every forward pass."""

    def __init__(self, asked) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, image):
        self.asked()
        return super().forward(image)


def obeying(asked) -> Segmenter:
    return Segmenter(Model.from_network(Obeying(asked), small_protocol(), spacing_mm=2.0, multiple=4), "fast")


def scans_in(folder: Path, names: str = "abcd") -> list[Path]:
    return [coarse_scan(folder / f"{name}.nii.gz", scale=1 + index) for index, name in enumerate(names)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"}


def test_results_outcomes_and_tables_are_those_of_one_scan_after_another(tmp_path, segmenter):
    scans = scans_in(tmp_path / "in")
    scans[1].write_bytes(b"not a scan")
    scans.insert(3, tmp_path / "in" / "lost.nii")
    results = {}
    for overlap in (False, True):
        out = tmp_path / str(overlap)
        run_scans(segmenter, scans[-1:], out, Outputs(mask=True))  # finished before
        heard = []
        result = run_scans(
            segmenter, scans, out, Outputs(mask=True), table=out / "v.csv", progress=heard.append, overlap=overlap
        )
        assert tuple(heard) == result.outcomes
        assert [outcome.job.scan for outcome in heard] == scans
        told = [(outcome.status, outcome.message, outcome.notes, outcome.volumes_mm3) for outcome in heard]
        results[overlap] = told, contents(out)
        timings = json.loads((out / "a_synthseg.json").read_text())["timings_s"]
        assert {"read", "prepare", "predict", "write"} <= set(timings)
    assert results[True] == results[False]
    assert [status for status, *_ in results[True][0]] == ["done", "failed", "done", "failed", "skipped"]


def test_the_next_scan_is_read_and_the_last_written_during_a_computation(tmp_path, monkeypatch):
    """The second scan's network waits for both; without overlap it would wait forever."""
    scans, calls = scans_in(tmp_path / "in", "abc"), []
    read_c, write_a = threading.Event(), threading.Event()
    read, write = batch.read_volume, batch.write_outputs

    def asked() -> None:
        calls.append(threading.current_thread())
        if len(calls) == 2:
            assert read_c.wait(30)
            assert write_a.wait(30)

    def reading(path):
        if path == scans[2]:
            read_c.set()
        return read(path)

    def writing(*arguments):
        write_a.set()
        write(*arguments)

    monkeypatch.setattr(batch, "read_volume", reading)
    monkeypatch.setattr(batch, "write_outputs", writing)
    result = run_scans(obeying(asked), scans, tmp_path / "out", overlap=True)
    assert [outcome.status for outcome in result.outcomes] == ["done"] * 3
    assert set(calls) == {threading.current_thread()}  # the networks run in the caller's thread


def test_what_goes_wrong_in_any_stage_is_told_of_its_own_scan(tmp_path, monkeypatch):
    scans, calls = scans_in(tmp_path / "in"), []
    write = batch.write_outputs

    def asked() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("computing b")

    def writing(segmentation, scan, *rest):
        if scan.path == scans[2]:
            raise MemoryError
        write(segmentation, scan, *rest)

    monkeypatch.setattr(batch, "write_outputs", writing)
    scans[3].write_bytes(b"")
    result = run_scans(obeying(asked), scans, tmp_path / "out", overlap=True)
    assert [outcome.status for outcome in result.outcomes] == ["done", "failed", "failed", "failed"]
    for outcome, said in zip(result.failed, ("computing b", "more memory needed", "an empty file"), strict=True):
        assert str(outcome.job.scan) in outcome.message
        assert said in outcome.message
        kept = json.loads((tmp_path / "out" / f"{outcome.job.subject}_synthseg_failed.json").read_text())
        assert kept["error"]["message"] == outcome.message


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("overlap", [False, True])
def test_ctrl_c_in_a_computation_finishes_what_is_being_written_and_leaves_the_rest(tmp_path, monkeypatch, overlap):
    scans, calls = scans_in(tmp_path / "in"), []
    write = batch.write_outputs

    def asked() -> None:
        calls.append(None)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    def slowly(*arguments):
        write(*arguments)
        time.sleep(0.2)  # so that b is still being written when c is interrupted

    monkeypatch.setattr(batch, "write_outputs", slowly)
    table = tmp_path / "v.csv"
    result = run_scans(obeying(asked), scans, tmp_path / "out", table=table, overlap=overlap)
    assert [outcome.job.subject for outcome in result.outcomes] == ["a", "b"]
    assert [job.subject for job in result.remaining] == ["c", "d"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{name}_synthseg{end}" for name in "ab" for end in (".nii.gz", ".json")}  # nothing half-written
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == ["a", "b"]
    again = run_scans(obeying(lambda: None), scans, tmp_path / "out", table=table, overlap=overlap)
    assert len(again.outcomes) == 4
    assert not again.interrupted


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_after_the_last_computation_leaves_nothing_to_do(tmp_path, monkeypatch, segmenter):
    scans = scans_in(tmp_path / "in", "ab")
    write = batch.write_outputs

    def interrupted(segmentation, scan, *rest):
        if scan.path == scans[1]:
            os.kill(os.getpid(), signal.SIGINT)  # to the thread that waits, while this one writes
            time.sleep(0.2)
        write(segmentation, scan, *rest)

    monkeypatch.setattr(batch, "write_outputs", interrupted)
    result = run_scans(segmenter, scans, tmp_path / "out", overlap=True)
    assert [outcome.status for outcome in result.outcomes] == ["done", "done"]
    assert result.remaining == ()


@pytest.mark.parametrize(
    ("threads", "scans", "outputs", "overlaps"),
    [
        (2, "ab", Outputs(), True),
        (1, "ab", Outputs(), False),
        (2, "a", Outputs(), False),
        (2, "ab", Outputs(posteriors=True), False),
    ],
)
def test_batches_overlap_where_there_are_threads_scans_and_memory_for_it(
    tmp_path, segmenter, threads, scans, outputs, overlaps
):
    heard, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run_scans(
            segmenter,
            scans_in(tmp_path, scans),
            tmp_path / "out",
            outputs,
            progress=lambda _: heard.append(threading.current_thread() is not threading.main_thread()),
        )
    finally:
        torch.set_num_threads(before)
    assert heard == [overlaps] * len(scans)


# -- what ran, and on how many threads


def test_the_record_says_what_ran_and_another_exact_backend_leaves_it_valid(tmp_path):
    weights = save_random_weights(tmp_path / "tiny.safetensors")
    scan, out = coarse_scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    plain = Segmenter(weights, "fast", backend="plain", device="cpu")
    assert run_scans(plain, [scan], out).outcomes[0].status == "done"
    record = json.loads((out / "a_synthseg.json").read_text())
    one = {"device": "cpu", "backend": "plain", "precision": "float32"}
    networks = dict.fromkeys(plain.models, one)
    ran = {**one, "threads": torch.get_num_threads(), "networks": networks}
    assert {key: record[key] for key in ran} == ran == ran_with(plain)
    lean = Segmenter(weights, "fast", backend="torch", device="cpu")
    assert run_scans(lean, [scan], out).outcomes[0].status == "skipped"
    rougher = Segmenter(weights, "fast", backend="torch", precision="bfloat16", device="cpu")
    assert run_scans(rougher, [scan], out).outcomes[0].status == "done"
    assert json.loads((out / "a_synthseg.json").read_text())["precision"] == "bfloat16"


def test_a_limit_of_memory_is_for_one_scan_at_a_time(tmp_path):
    heard, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_scans(
            Segmenter(band_model(spacing_mm=2.0), "fast", memory="40G"),
            scans_in(tmp_path, "ab"),
            tmp_path / "out",
            progress=lambda _: heard.append(threading.current_thread() is threading.main_thread()),
        )
    finally:
        torch.set_num_threads(before)
    assert heard == [True, True]


@pytest.mark.parametrize("overlap", [False, True])
def test_rows_of_scans_that_are_done_are_saved_when_whoever_hears_of_them_fails(tmp_path, segmenter, overlap):
    told = []

    def gone(outcome):
        told.append(outcome.job.subject)
        if len(told) == 2:
            raise BrokenPipeError

    scans, table = scans_in(tmp_path / "in"), tmp_path / "v.csv"
    with pytest.raises(BrokenPipeError):
        run_scans(segmenter, scans, tmp_path / "out", table=table, progress=gone, overlap=overlap)
    done = ["a", "b", "c"] if overlap else ["a", "b"]  # c was computed meanwhile
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == done == told
    assert {path.name.split("_")[0] for path in (tmp_path / "out").glob("*.nii.gz")} == set(done)


def test_with_one_thread_no_more_than_one_core_is_busy(tmp_path):
    weights = save_random_weights(tmp_path / "tiny.safetensors", features=8)
    scans = scans_in(tmp_path / "in", "abc")
    command = [sys.executable, "-c", "from synthseg.cli import main; main()", "segment", *map(str, scans)]
    options = ["-o", str(tmp_path / "out"), "--weights", str(weights), "--threads", "1", "--device", "cpu"]
    free = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
    start = time.perf_counter()
    process = subprocess.Popen([*command, *options], env=free, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    assert process.returncode == 0
    assert usage.ru_utime + usage.ru_stime < 1.1 * wall  # a busy machine only makes the left side smaller
    assert json.loads((tmp_path / "out" / "a_synthseg.json").read_text())["threads"] == 1


def test_threads_bind_the_libraries_under_numpy_too():
    code = (
        "import os\nfrom synthseg.cli.process import THREAD_VARIABLES, prepare_process\nprepare_process(1)\n"
        "assert all(os.environ[name] == '1' for name in THREAD_VARIABLES)\n"
        "import torch\nprint(torch.get_num_threads())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
