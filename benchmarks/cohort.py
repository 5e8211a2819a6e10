"""What a cohort costs, and that none of its scans is lost: many small scans, workers killed at random.

    python -m benchmarks.cohort [--scans 200] [--workers 2] [--kills 8] [--only pool,dask] [--head HEAD.nii.gz]

Each way (the pool, a Dask cluster on this machine) does all scans with a small random network while workers are killed
with signal 9 at random moments. Told: scans, kills, how often a scan was lost with its worker, scans in the table (each
must be there once, done), and what the coordination costs: seconds a scan beside those that workers were at it. With a
head, one real scan is segmented several times over by one worker with the shipped weights: what a scan costs in a
cohort, networks loaded once.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
from benchmarks.inference.measure import machine, versions

from synthseg.cohort import Counts, Place, Settings, run
from synthseg.cohort.ledger import Ledger
from synthseg.cohort.naming import plan_cohort

SIDES = (36, 40, 32)  # voxels of 2 mm
REPEATS = 4  # of the head


def main() -> None:
    """Run what was asked for, and print a line of JSON for each."""
    given = _arguments()
    print(json.dumps({"machine": machine(), "versions": versions()}))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = _small_network(folder / "small.safetensors")
        scans = [_small_scan(folder / "in" / f"scan{i:04d}.nii.gz", seed=i) for i in range(given.scans)]
        for way in given.only.split(","):
            out = folder / way
            settings = Settings(weights=(str(weights),), mode="fast", device="cpu")
            jobs = plan_cohort([(scan, {}) for scan in scans], out, settings.outputs)
            dask = f"local:{given.workers}" if way == "dask" else None
            place = Place(out=out, workers=given.workers, threads=1, dask=dask)
            with _Killer(given.kills, out, seed=given.seed) as killer:
                counts = run(jobs, settings, place)
            print(json.dumps({"way": way, **_told(counts, out, killer.victims, given.workers)}), flush=True)
        if given.head:
            print(json.dumps({"way": "head", **_head(given.head, folder)}))


def _told(counts: Counts, out: Path, kills: int, workers: int) -> dict[str, object]:
    rows = list(csv.DictReader(counts.table.tsv.read_text().splitlines(), delimiter="\t"))
    with Ledger(out) as ledger:
        attempts = [one["status"] for row in ledger.rows() for one in ledger.history(row.job.subject)]
        working = sum(row.seconds or 0 for row in ledger.rows())
    return {
        "scans": len(rows),
        "different_scans": len({row["subject"] for row in rows}),
        "states": dict(Counter(row["state"] for row in rows)),
        "kills": kills,
        "attempts": dict(Counter(attempts)),
        "wall_s": round(counts.seconds, 1),
        "working_s": round(working, 1),
        "beside_work_s_a_scan": round((counts.seconds * workers - working) / max(1, len(rows)), 3),
    }


def _head(head: Path, folder: Path) -> dict[str, object]:
    """Seconds and memory of a real scan, by a worker that has its networks."""
    copies = [folder / "heads" / f"head{i}.nii.gz" for i in range(REPEATS)]
    copies[0].parent.mkdir()
    for copy in copies:
        copy.write_bytes(head.read_bytes())
    settings, out = Settings(device="cpu", quality=True), folder / "head"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(plan_cohort([(copy, {}) for copy in copies], out, settings.outputs), settings, Place(out=out, workers=1))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Ledger(out) as ledger:
        results = [(row.seconds, row.result) for row in ledger.rows("done")]
    files = sum(path.stat().st_size for path in out.glob("*_synthseg*"))
    return {
        "scans": len(results),
        "seconds": [seconds for seconds, _ in results],
        "cpu_s_a_scan": round((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / REPEATS, 2),
        "peak_memory_mib": max(result["peak_memory_mib"] for _, result in results),
        "mb_written_a_scan": round(files / REPEATS / 1e6, 2),
        "mb_of_ledger_a_scan": round((out / "cohort.sqlite").stat().st_size / REPEATS / 1e6, 4),
        "mb_read_a_scan": round(head.stat().st_size / 1e6, 2),
        "timings_s": results[-1][1]["timings_s"],
    }


class _Killer:
    """Kills a random worker now and then, as long as it is entered; a worker is any process of ours with scans.

    Attributes:
        victims: workers killed so far.
    """

    def __init__(self, kills: int, out: Path, *, seed: int) -> None:
        self.victims, self._kills, self._out = 0, kills, out
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def __enter__(self) -> _Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _kill(self) -> None:
        """Evenly over the work: whenever another share of the scans is done, after a random pause."""
        while not self._ended.wait(self._random.uniform(0.1, 1.0)) and self.victims < self._kills:
            try:
                with Ledger(self._out) as ledger:
                    counts, rows = ledger.counts(), [row.worker for row in ledger.rows("done")]
            except Exception:
                continue
            if counts["done"] * (self._kills + 1) < sum(counts.values()) * (self.victims + 1) or not rows:
                continue
            pid = int(rows[-1].rpartition(":")[2])
            if _end(pid):
                self.victims += 1


def _end(pid: int) -> bool:
    import os

    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # killed before, and replaced
        return False
    return True


def _small_network(path: Path) -> Path:
    """Weights of a small random network for seven labels."""
    import torch

    from synthseg.labels import load_protocol
    from synthseg.networks import UNet, UNetConfig
    from synthseg.weights import make_card, save_weights

    protocol = load_protocol("tissue-groups")
    channels = len({label.target for label in protocol.labels})
    config = UNetConfig(out_channels=channels, features=2, levels=2, convs_per_level=1)
    torch.manual_seed(0)
    return save_weights(path, UNet(config).state_dict(), make_card("small", config.to_dict(), protocol, spacing_mm=2.0))


def _small_scan(path: Path, *, seed: int) -> Path:
    """An ellipsoid with noise, 2 mm."""
    draw = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in SIDES), indexing="ij")
    head = sum(axis**2 for axis in axes) < 1
    image = (head * (600 + 100 * draw.standard_normal(SIDES))).clip(0).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="pool,dask")
    parser.add_argument("--head", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
