"""`synthseg doctor`: what it says of the machine, the weights and scans, and when it ends with 1."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from inference_helpers import band_model, coarse_scan, phantom, save_random_weights, save_scan
from synthseg.cli import main
from synthseg.engine import machine
from synthseg.engine.choose import BACKENDS
from synthseg.engine.memory import thinnest
from synthseg.errors import SynthsegError
from synthseg.inference import Segmenter, forecast, placement


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_random_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", features=4)


@pytest.fixture
def doctor(weights, capsys):
    """Run `synthseg doctor ARGUMENTS`: (exit code, standard output, standard error)."""

    def run(*arguments: object, weights: object = weights) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            main(["doctor", *map(str, arguments), "--weights", str(weights), "--device", "cpu"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_a_machine_that_works_is_exit_code_0_with_what_it_has_and_uses(doctor, tmp_path):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    code, said, _ = doctor(scan, "--json")
    report = json.loads(said)
    assert code == 0
    assert report["problems"] == []
    assert report["versions"]["torch"] == version("torch")
    assert report["versions"]["synthseg"] == version("synthseg")
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert report["machine"]["cores"] >= 1
    assert [state["name"] for state in report["backends"]] == list(BACKENDS)
    assert report["why"].startswith("torch in float32 on cpu: ")
    shipped = {entry["name"]: entry for entry in report["weights"]}
    assert {entry["problem"] for entry in shipped.values()} == {None}
    assert "synthseg-2mm" in shipped
    [told] = report["scans"]
    assert (told["shape"], told["spacing_mm"], told["notes"]) == ([36, 40, 32], [2.0, 2.0, 2.0], [])
    assert (told["window"], told["fine"]) == ([36, 40, 32], [72, 80, 64])
    assert told["memory_bytes"] > 2**26
    assert told["seconds"] > told["network_seconds"] > 0
    assert not list(tmp_path.glob("*synthseg*"))  # nothing is written


def test_the_same_for_people(doctor, tmp_path):
    scan = coarse_scan(tmp_path / "a.nii.gz")
    code, said, _ = doctor(scan, "--threads", "1", "--backend", "plain")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert code == 0
    assert lines[0].startswith("versions python 3.")
    assert any(line.startswith("processor") and "1 thread(s)" in line for line in lines)
    assert "will use plain in float32 on cpu: asked for" in lines
    assert any(line.removeprefix("weights ").startswith("synthseg-2mm: verified, ") for line in lines)
    assert f"scan {scan}" in lines
    assert "36 x 40 x 32 voxels of 2 x 2 x 2 mm" in lines
    assert any(line.startswith("estimates: peak memory not known; about ") for line in lines)  # of plain it is not


def test_a_damaged_scan_is_exit_code_1_and_the_others_are_told_of(doctor, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"not a scan")
    good = coarse_scan(tmp_path / "good.nii.gz")
    code, said, err = doctor(bad, good, "--json")
    assert code == 1
    assert f"problem: {bad}: found a file that is not gzip-compressed" in err
    assert [scan["path"] for scan in json.loads(said)["scans"]] == [str(good)]


def test_weights_that_are_needed_and_damaged_are_exit_code_1(doctor, weights, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    code, said, err = doctor(weights=cut)
    assert code == 1
    assert "cut.safetensors: found" in err
    assert "will use   nothing: see the problems below" in said
    assert "processor" in said  # the rest is said all the same


def test_weights_that_are_damaged_and_not_needed_are_told_of(doctor, weights, tmp_path, monkeypatch):
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-100])
    monkeypatch.setenv("SYNTHSEG_WEIGHTS_DIR", str(tmp_path))
    code, said, _ = doctor("--json")
    problems = {entry["name"]: entry["problem"] for entry in json.loads(said)["weights"]}
    assert code == 0
    assert problems.pop("cut")
    assert set(problems.values()) == {None}


def test_a_package_that_is_missing_is_exit_code_1_with_how_to_install_it(doctor, monkeypatch):
    monkeypatch.setitem(sys.modules, "cc3d", None)
    code, said, err = doctor()
    assert code == 1
    assert "problem: package connected-components-3d: found no way to load it" in err
    assert "Fix: pip install connected-components-3d" in err
    assert said.startswith("versions")


def test_a_backend_that_breaks_in_the_trial_run_is_exit_code_1(doctor, monkeypatch):
    def broken(_):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr("synthseg.inference.checkup.measure_speed", broken)
    code, _, err = doctor()
    assert code == 1
    assert "problem: trial run: found RuntimeError: illegal instruction" in err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "found more memory needed than there is"),
        (torch.OutOfMemoryError("CUDA out of memory"), "found more memory needed than there is"),
        (ValueError("odd"), "found ValueError: odd"),
    ],
)
def test_a_scan_that_cannot_be_looked_at_is_a_problem_that_is_told(doctor, tmp_path, monkeypatch, error, said):
    def failing(*_):
        raise error

    monkeypatch.setattr("synthseg.inference.checkup.forecast", failing)
    scan = coarse_scan(tmp_path / "a.nii.gz")
    code, _, err = doctor(scan)
    assert code == 1
    assert f"problem: {scan}: {said}" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "tf"], "backend 'tf': found an unknown name"),
        (["--precision", "fp16"], "fp16"),
        (["--memory", "plenty"], "memory: found 'plenty'"),
        (["--mode", "robustt"], "mode: found 'robustt'"),
    ],
)
def test_wrong_usage_is_exit_code_2(doctor, arguments, said):
    code, _, err = doctor(*arguments)
    assert code == 2
    assert said in err


# -- forecasts


def test_a_memory_limit_makes_slabs_thinner_and_one_too_low_is_a_problem(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(placement, "resident_bytes", lambda: 0)
    monkeypatch.setattr(forecast, "resident_bytes", lambda: 0)
    scan = save_scan(tmp_path / "a.nii.gz", phantom((160, 96, 80)), np.diag([1.0, 1, 1, 1]))
    free = Segmenter(weights, "fast", device="cpu")
    speed = {"structures": 1e-7}
    first = forecast.forecast(free, scan, speed)
    assert first.slab is None
    least = thinnest(free.model.network.config, first.window, passes=1).bytes
    around = placement.BYTES_A_VOXEL * np.prod(first.window)
    tight = Segmenter(weights, "fast", device="cpu", memory=int(least + around))
    cut = forecast.forecast(tight, scan, speed)
    assert cut.slab is not None
    assert cut.slab < first.window[0]
    assert cut.memory_bytes < first.memory_bytes
    low = Segmenter(weights, "fast", device="cpu", memory=int(least + around) - 2**10)
    with pytest.raises(SynthsegError, match=r"a.nii.gz: found a limit of"):
        forecast.forecast(low, scan, speed)


def test_results_that_will_be_written_count_in_the_forecast(doctor, tmp_path):
    scan = save_scan(tmp_path / "a.nii.gz", phantom((160, 160, 160)), np.eye(4))

    def peak(*options: str) -> int:
        code, said, _ = doctor(scan, "--mode", "fast", "--json", *options)
        assert code == 0
        return json.loads(said)["scans"][0]["memory_bytes"]

    assert peak("--posteriors", "--tissue-maps") > peak("--posteriors") > peak() + 20 * 2**20


def test_the_forecast_counts_the_window_that_is_segmented_and_every_pass_over_it(tmp_path):
    scan = save_scan(tmp_path / "a.nii.gz", phantom())
    model = replace(band_model(spacing_mm=2.0), field_of_view_mm=(64.0, 72.0, 56.0))
    for mode, passes in (("fast", 1), ("default", 2)):
        segmenter = Segmenter(model, mode, device="cpu")
        seen = []
        segment = segmenter.model.network.register_forward_hook(lambda _, x, __, seen=seen: seen.append(x[0].shape[2:]))
        told = forecast.forecast(segmenter, scan, {"structures": 1.0})
        seen.clear()
        segmenter.segment(scan)
        segment.remove()
        assert told.whole == (36, 40, 32)
        assert [tuple(shape) for shape in seen[-passes:]] == [told.window] * passes
        assert told.network_seconds == passes * np.prod(told.window)


@pytest.mark.slow
def test_estimates_of_memory_are_near_the_truth(shared, tmp_path):
    import subprocess

    scan = shared / "data" / "validation" / "mni" / "mni152nlin6_1mm_t1_head.nii.gz"
    run = [sys.executable, "-c", "from synthseg.cli import main; main()"]
    done = subprocess.run([*run, "doctor", scan, "--json"], capture_output=True, text=True, check=True)
    subprocess.run([*run, "segment", scan, "-o", tmp_path], check=True, stdout=subprocess.DEVNULL)
    estimated = json.loads(done.stdout)["scans"][0]["memory_bytes"]
    record = json.loads((tmp_path / "mni152nlin6_1mm_t1_head_synthseg.json").read_text())
    assert 0.7 < estimated / (record["peak_memory_mib"] * 2**20) < 1.5


# -- the machine


def test_instruction_sets_are_read_from_the_first_processor():
    text = (
        "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512_vnni amx_tile\n\nprocessor\t: 1\nflags\t: x\n"
    )
    facts = machine.read_cpuinfo(text)
    assert facts["model name"] == "A CPU"
    assert facts["flags"].split() == ["fpu", "avx2", "avx512_vnni", "amx_tile"]
    assert machine.read_cpuinfo("") == {}


def test_what_the_system_says_is_what_is_told(monkeypatch, tmp_path):
    text = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512_vnni\n"
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    told = machine.describe_machine()
    assert told.processor == "A CPU"
    assert told.instructions == ("AVX2", "AVX-512 VNNI (int8)")
    assert told.memory_bytes is None or told.memory_bytes >= told.available_bytes > 0
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "nothing")  # another system
    assert machine.describe_machine().instructions == ()
