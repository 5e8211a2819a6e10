"""No command asks the network for anything: every one is run with sockets denied, its children and workers too."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from dicom_files import make_series, noise
from fetal_helpers import fetal_head, save_map
from inference_helpers import coarse_scan, save_random_weights, save_scan
from keras_helpers import tiny as tiny_keras
from security_helpers import traced, uses_of_the_network, watched
from synthseg.cli import build_app
from synthseg.errors import UsageError
from training_helpers import head, tiny_protocol

# Commands in order, each as its words; {x} is a file of `given`. All must end well: one that is refused proves little.
COMMANDS = """
doctor --weights {weights} {scans}/s0.nii.gz
segment {scans} -o seg --weights {weights} --volumes seg/v.csv --device cpu --report
segment {scans}/s0.nii.gz -o ov --weights {weights} --backend openvino --fast
segment {visit} -o dicom --weights {weights} --dicom-seg --fast --series all
demo -o demo --weights {weights} --fast
report seg -o pages
cohort run {scans} -o c --weights {weights} --workers 1
cohort status c
cohort retry c
cohort table c
cohort slurm-script c
cohort part c --part 0 --of 1
cohort collect c
bids {dataset} derivative participant --weights {weights}
bids {dataset} derivative group
evaluate seg seg --labels 2,17 --jobs 2 --long long.tsv
plot long.tsv -o plot.png
compare {scores} --resamples 100
effect {volumes} {people} --group diagnosis --cases AD --controls CN --resamples 100
bank {maps} -o bank.safetensors --protocol {table}
generate bank.safetensors -o pairs -n 1 --recipe {recipe} --device cpu
train {recipe} -o run --device cpu --threads 1
sampler {maps} -o weights --protocol {table}
sublabels {maps} -o split --protocol {table} --background 2
shapes {fetal}/a_feta.nii.gz -o shapes --edit size=0.9
fetal prepare {fetal} -o prepared --versions 1
priors estimate {images} {maps} -o priors --protocol {table}
priors acquisition {images} -o acquisition.toml
priors show priors/priors.tsv --protocol {table}
labels inspect {maps}
labels list
labels show synthseg-2.0
labels from-original {lists} -o lists.tsv
weights list
weights show {weights}
weights verify {weights}
weights import {keras} -o imported.safetensors --protocol {kerastable}
weights export {weights} --onnx tiny.onnx
weights calibrate run/toy.safetensors --bank bank.safetensors -o calibrated.safetensors -n 1
"""
DRIVER = """
import json, sys, time
from synthseg.cli import main
ended = []
for words in json.load(open(sys.argv[1])):
    try:
        main(words)
        ended.append(0)
    except SystemExit as exit:
        ended.append(exit.code or 0)
time.sleep(0.5)  # for threads that would still send something
json.dump(ended, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny file or folder of each kind that a command reads."""
    root = tmp_path_factory.mktemp("given")
    for n in range(2):
        coarse_scan(root / "scans" / f"s{n}.nii.gz", 1 + n)
        labels = np.pad(head((20, 24 + 2 * n, 22)), 4).astype(np.int16)
        save_scan(root / "maps" / f"m{n}.nii.gz", labels, np.diag([2.0, 2, 2, 1]))
        image = labels % 97 + np.random.default_rng(n).normal(0, 2, labels.shape)
        save_scan(root / "images" / f"m{n}.nii.gz", image.astype(np.float32), np.diag([2.0, 2, 2, 1]))
    coarse_scan(root / "dataset" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    (root / "dataset" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    make_series(root / "visit", noise(14, 64, 64))
    save_random_weights(root / "weights.safetensors")
    (root / "table.tsv").write_text(tiny_protocol().to_table())
    save_map(root / "fetal" / "a_feta.nii.gz", fetal_head())
    (root / "recipe.toml").write_text(
        '[data]\nbank = "work/bank.safetensors"\n[generation.grid]\nshape = [16, 16, 16]\n'
        "[network]\nfeatures = 4\nlevels = 2\nout_channels = 4\n"
        '[optimizer]\nsteps = 2\nloss = "dice_ce"\nabsent = "skip"\n[output]\nname = "toy"\n'
    )
    lines = ["scan\tmethod\tlabel\tstructure\tmetric\tvalue\tunit"]
    lines += [f"s{i}\t{m}\t17\thippocampus\tdice\t{0.8 + i / 100 + (m == 'b') / 50}\t" for i in range(8) for m in "ab"]
    (root / "scores.tsv").write_text("\n".join(lines) + "\n")
    volumes = ["subject,left hippocampus"] + [f"sub-{i},{4000 + 10 * i - 300 * (i % 2)}" for i in range(12)]
    (root / "volumes.csv").write_text("\n".join(volumes) + "\n")
    people = ["participant_id\tdiagnosis"] + [f"sub-{i}\t{('CN', 'AD')[i % 2]}" for i in range(12)]
    (root / "people.tsv").write_text("\n".join(people) + "\n")
    (root / "lists").mkdir()
    np.save(root / "lists" / "generation_labels.npy", np.array([0, 16, 2, 41]))
    np.save(root / "lists" / "segmentation_labels.npy", np.array([0, 16, 2, 41]))
    tiny_keras(root / "keras.h5")
    (root / "kerastable.tsv").write_text(tiny_protocol().to_table())
    return {path.name.partition(".")[0]: path for path in root.iterdir()}


def every_command(command: Any, before: tuple[str, ...] = ()) -> Iterator[str]:
    """The words of every command of the application."""
    for name, one in getattr(command, "commands", {}).items():
        yield from every_command(one, (*before, name)) if hasattr(one, "commands") else [" ".join((*before, name))]


def words_of(given: dict[str, Path]) -> list[list[str]]:
    return [[word.format(**given) for word in line.split()] for line in COMMANDS.strip().splitlines()]


def test_every_command_there_is_is_run_here() -> None:
    lines = COMMANDS.strip().splitlines()
    missing = [
        name
        for name in every_command(typer.main.get_command(build_app()))
        if not any(f"{x} ".startswith(f"{name} ") for x in lines)
    ]
    assert missing == []


@pytest.mark.slow
def test_no_command_uses_the_network(tmp_path: Path, given: dict[str, Path]) -> None:
    work = given["scans"].parent / "work"
    work.mkdir()
    words = words_of(given)
    (tmp_path / "commands.json").write_text(json.dumps(words))
    arguments = [sys.executable, "-c", DRIVER, str(tmp_path / "commands.json"), str(tmp_path / "ended.json")]
    told = subprocess.run(
        traced(arguments, tmp_path), env=watched(tmp_path), cwd=work, capture_output=True, text=True, check=False
    )
    assert uses_of_the_network(tmp_path) == []
    codes = json.loads((tmp_path / "ended.json").read_text())
    failed = {" ".join(line[:3]): code for line, code in zip(words, codes, strict=True) if code}
    assert failed == {}, told.stderr[-4000:]
    started = set((tmp_path / "net.log.started").read_text().split())
    assert len(started) >= 4  # the driver, two local workers and those of `evaluate` were watched
    at_home = {path.relative_to(tmp_path / "home") for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert {path.parts[:2] for path in at_home} <= {(".cache", "matplotlib")}  # the list of its fonts


@pytest.mark.slow
def test_a_local_dask_cluster_listens_to_this_machine_only(tmp_path: Path, given: dict[str, Path]) -> None:
    words = ["cohort", "run", str(given["scans"]), "-o", str(tmp_path / "out"), "--weights", str(given["weights"])]
    (tmp_path / "commands.json").write_text(json.dumps([[*words, "--fast", "--dask", "local:1"]]))
    driver = "if __name__ == '__main__':\n" + textwrap.indent(DRIVER, "    ")  # Dask's workers read this file again
    (tmp_path / "driver.py").write_text(driver)
    arguments = [
        sys.executable,
        str(tmp_path / "driver.py"),
        str(tmp_path / "commands.json"),
        str(tmp_path / "ended.json"),
    ]
    environment = watched(tmp_path, loopback=True)
    told = subprocess.run(traced(arguments, tmp_path), env=environment, capture_output=True, text=True, check=False)
    assert json.loads((tmp_path / "ended.json").read_text()) == [0], told.stderr[-3000:]
    assert uses_of_the_network(tmp_path, loopback=True) == []


def test_a_local_dask_cluster_asks_for_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other users of the same machine reach 127.0.0.1, too, and who reaches a scheduler can have it run anything."""
    distributed = pytest.importorskip("distributed")
    from synthseg.cohort import dask_run

    made: list[dict[str, Any]] = []

    def cluster(**options: Any) -> object:
        made.append(options)
        raise OSError("enough")

    monkeypatch.setattr(distributed, "LocalCluster", cluster)
    with pytest.raises(UsageError, match="enough"):
        dask_run.start_cluster("local:1", {}, workers=1)
    (options,) = made
    assert (options["host"], options["dashboard_address"]) == ("127.0.0.1", None)
    security = options["security"]
    assert security.require_encryption
    assert security.tls_scheduler_cert
    monkeypatch.undo()
    with distributed.LocalCluster(host="127.0.0.1", security=security, n_workers=0, dashboard_address=None) as running:
        address = running.scheduler_address
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises(OSError, match=r"[Tt]imed out|closed|connect"):
            distributed.Client(address.replace("tls://", "tcp://"), timeout=3)
