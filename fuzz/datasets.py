"""Targets: DICOM, zipped series, BIDS datasets, cohort folders."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import sqlite3
import tempfile
from pathlib import Path

from fuzz.dicom import (
    dicom_seeds,
    folder_seeds,
    hostile_dicom,
    hostile_zip,
    read_dicom,
    read_series,
    read_zip,
    zip_seeds,
)
from fuzz.harness import Target
from fuzz.hostile import hostile_text
from fuzz.mutate import any_bytes
from synthseg.cohort.bids import Choice, find_scans
from synthseg.cohort.bids_app import check_dataset, kept, participants_table
from synthseg.cohort.derivatives import plan, start_dataset
from synthseg.cohort.dicom import dicom_files
from synthseg.cohort.inputs import gather
from synthseg.cohort.lease import LEASE_NAME, holder_of
from synthseg.cohort.ledger import LEDGER_NAME, Ledger
from synthseg.cohort.naming import plan_cohort
from synthseg.cohort.status import failures_of, state_of
from synthseg.cohort.tables import read_participants, tabulate
from synthseg.cohort.work import Described, Job, Report, Settings
from synthseg.errors import SynthsegError, UsageError
from synthseg.evaluation.bids import pair_datasets
from synthseg.inference.outputs import Outputs, output_files


def _bids_seeds(folder: Path) -> list[Path]:
    root = folder / "bids"
    about: dict[str, object] = {"Name": "toy", "BIDSVersion": "1.8.0", "Authors": ["A"], "DatasetDOI": "doi:10.1/x"}
    about["GeneratedBy"] = [{"Name": "x"}]
    files = {
        "dataset_description.json": json.dumps(
            {
                "Name": "toy",
                "BIDSVersion": "1.8.0",
                "Authors": ["A"],
                "DatasetDOI": "doi:10.1/x",
                "GeneratedBy": [{"Name": "x"}],
            }
        ),
        "participants.tsv": "participant_id\tage\nsub-01\t31\nsub-02\tn/a\n",
        **{f"sub-01/anat/sub-01_{kind}.nii.gz": "" for kind in ("T1w", "FLAIR", "dseg")},
        **{f"sub-02/ses-a/anat/sub-02_ses-a_acq-hi_run-{n}_T1w.nii.gz": "" for n in ("01", "2")},
        "sub-02/ses-a/anat/sub-02_ses-a_desc-x_dseg.nii.gz": "",
    }
    for relative, content in files.items():
        place = root / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    return [root]


def _bids(folder: Path) -> object:
    check_dataset(folder)
    found = find_scans(folder, Choice(suffixes=("all",)))
    table = participants_table(folder)
    people = read_participants(table) if table else {}
    with tempfile.TemporaryDirectory() as place:
        start_dataset(Path(place, "out"), folder)
        start_dataset(Path(place, "out"), folder)
        jobs = plan(found.scans, Path(place, "out"), Outputs(color_table=True))
    return people, jobs, pair_datasets(folder, folder)


def hostile_description(rng: random.Random, content: bytes) -> bytes:
    """The files of a dataset with text in them are changed as text, empty ones are left to the other changes."""
    return hostile_text(rng, content) if content else any_bytes(rng, content)


def _cohort_seeds(folder: Path) -> list[Path]:
    out = folder / "cohort"
    out.mkdir()
    described = Described({"synthseg": "1", "weights": {}}, "0123456789abcdef")
    record = {
        "volumes_mm3": {"left hippocampus": 4.25},
        "notes": ["x"],
        "quality": {"verdict": "pass", "scores": {"a": 0.9}},
    }
    with Ledger(out, create=True) as ledger:
        jobs = [
            Job(Path(f"/s{n}.nii.gz"), f"sub-0{n}", output_files(out, f"s{n}", Outputs()), {"sub": f"0{n}"})
            for n in range(4)
        ]
        ledger.enlist([(job, "waiting", "new") for job in jobs], Settings(), described)
        for job in jobs[:2]:
            ledger.hand_out(job.subject)
            report = Report(subject=job.subject, status="done", record=record, worker="w:1", seconds=1.0)
            ledger.settle(report, "done", described, {"bytes": 1, "mtime_ns": 2, "sha256": "ab"})
        ledger.write_note("x", 1)
    with sqlite3.connect(out / LEDGER_NAME) as db:
        db.execute("PRAGMA page_size = 1024")
        db.execute("VACUUM")
    (out / LEASE_NAME).write_text('{"host": "here", "pid": 1}')
    (out / "logs").mkdir()
    (out / "logs" / "plan.json").write_text(
        json.dumps({"settings": {}, "suffixes": ["T1w"], "queries": [{"run": ["1"]}]})
    )
    return [out]


def _cohort(folder: Path) -> object:
    kept(folder)
    said = state_of(folder).sentence, failures_of(folder), holder_of(folder)
    with Ledger(folder) as ledger:
        rows = list(ledger.rows())
        settings = ledger.settings()
        history = [ledger.history(row.job.subject) for row in rows]
        content = [ledger.described(row.settings) for row in rows]
    return (
        said,
        tabulate(rows, {}),
        settings,
        history,
        content,
        plan_cohort([(folder / "a.nii.gz", {})], folder, Outputs()),
    )


def _list_seeds(folder: Path) -> list[Path]:
    place = folder / "in"
    place.mkdir()
    for n in range(2):
        (place / f"s{n}.nii.gz").write_bytes(gzip.compress(b"no scan"))
    lines = ["../seeds/in", "../seeds/in/s0.nii.gz", "../seeds/in/*.nii.gz", "../seeds/**/*.gz", "", "~/gone.nii", ""]
    (folder / "list.txt").write_text("\n".join(lines))
    return [folder / "list.txt"]


def _listed(path: Path) -> object:
    """Paths in lists are taken from the working directory: with other ones, mutants would search the whole disk."""
    os.chdir(path.parent)
    if path.is_file() and re.search(rb"(?m)^\s*[/~]|\.\./\.\.", path.read_bytes()):
        return None
    try:
        return _gathered(path)
    except SynthsegError as error:  # of a file in the list, which it names
        raise UsageError(path, found=str(error)[:400], fix=error.fix[:400]) from error


def _gathered(path: Path) -> object:
    with tempfile.TemporaryDirectory() as place:
        scans = gather([path], Path(place, "work")).scans
        return plan_cohort([(scan.path, scan.entities) for scan in scans], Path(place, "out"), Outputs())


TARGETS = (
    Target("dicom", dicom_seeds, read_dicom, hostile_dicom),
    Target("dicom-folder", folder_seeds, lambda folder: read_series(list(dicom_files(folder))), hostile_dicom),
    Target("dicom-convert", folder_seeds, _gathered, hostile_dicom),
    Target("zipped-series", zip_seeds, read_zip, hostile_zip),
    Target("bids", _bids_seeds, _bids, hostile_description),
    Target("cohort", _cohort_seeds, _cohort, None),
    Target("scan-list", _list_seeds, _listed, hostile_text),
)
