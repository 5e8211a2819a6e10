"""The commands that the tests of faults disturb, on tiny input, and what of their results must be the same again."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fault_helpers import leftovers, visible
from inference_helpers import coarse_scan, save_random_weights, small_protocol
from keras_files import write_family
from shapes_helpers import fetal_brain
from synthseg.training.checkpoint import read_shards
from training_helpers import head, save_bank, tiny_protocol

# What differs between two undisturbed runs: times, numbers of processes, and hashes of texts that hold those.
VOLATILE = frozenset(("created", "hours", "seconds", "timings_s", "peak_memory_mib", "index_sha256"))
HISTORY = ("seconds", "attempts", "notes", "state", "error")  # of a scan in the cohort's table
LOG_TIMES = ("samples_per_s", "generation_share", "seconds")


@dataclass(frozen=True)
class Case:
    """A command to disturb.

    Attributes:
        make: writes its input into a folder; arguments: of the command, from that folder and the one for results.
        again: arguments of the run that follows a fault; None: the same.
        grows: endings of files that get their content line by line, or file by file.
        before: Python that runs in the process first.
    """

    name: str
    make: Callable[[Path], object]
    arguments: Callable[[Path, Path], Sequence[object]]
    again: Callable[[Path, Path], Sequence[object]] | None = None
    grows: tuple[str, ...] = ()
    before: str = ""


def read(name: str, content: bytes) -> Any:
    """A file's content without what differs between two runs; raises what reading a file that is not whole raises."""
    if name.endswith(".json") and content[:1] == b"{":
        return _steady(json.loads(content))
    if name.endswith(".safetensors"):
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        facts = {key: json.loads(text) for key, text in header.pop("__metadata__", {}).items() if text[:1] in "{["}
        return _steady(facts), header, content[8 + length :]
    if name.endswith("log.csv"):
        lines = [line.split(",") for line in content.decode().splitlines()]
        kept = [i for i, column in enumerate(lines[0]) if column not in LOG_TIMES]
        return [[line[i] for i in kept] for line in lines]
    if name.endswith(("cohort.tsv", "cohort.parquet")):
        columns = _parquet(content) if name.endswith("parquet") else _columns(content.decode())
        return sorted(zip(*(cells for column, cells in columns.items() if column not in HISTORY), strict=True))
    if name.endswith((".csv", ".tsv")):
        return sorted(content.decode().splitlines())
    if name.endswith(".sqlite"):
        return ledger_rows(content)
    if name.endswith(".nii.gz") and content[:2] == b"\x1f\x8b":
        image: Any = nib.Nifti1Image.from_bytes(gzip.decompress(content))
        np.asarray(image.dataobj)
    return content


def _columns(text: str) -> dict[str, list[str]]:
    header, *lines = [line.split("\t") for line in text.splitlines()]
    return {column: [line[i] for line in lines] for i, column in enumerate(header)}


def _parquet(content: bytes) -> dict[str, list[str]]:
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(content)).to_pydict()
    return {column: [str(cell) for cell in cells] for column, cells in table.items()}


def ledger_rows(content: bytes) -> list[Any]:
    """What a ledger says of its scans; the file must be sound."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "cohort.sqlite")
        copy.write_bytes(content)
        with sqlite3.connect(copy) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return db.execute("SELECT subject, state, error, sha256, result IS NULL FROM scan").fetchall()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if key not in VOLATILE}
    return [_steady(item) for item in value] if isinstance(value, list) else value


def assert_nothing_half_written(out: Path, wanted: dict[str, bytes], case: Case) -> None:
    """Every file under a final name is the undisturbed run's, or a part of one that grows; and it is whole."""
    for name, content in visible(out).items():
        if name.endswith(".sqlite"):
            assert_sound_ledger(out / name)
        elif name.endswith(case.grows or ("/",)):
            if name.endswith("log.csv"):  # its last line may be torn: it is cut off later
                content = content[: content.rfind(b"\n") + 1]
            rows, all_rows = read(name, content), read(name, wanted[name])
            assert [row for row in rows if row not in all_rows] == [], name
        elif name.startswith("checkpoints/") and name not in wanted:  # an undisturbed run has removed it since
            read_shards((out / name).parent, format_name="synthseg-checkpoint-1")
        elif name.endswith("_failed.json") and name not in wanted:  # why a scan failed, written down whole
            assert json.loads(content)["error"]["message"]
        else:
            assert read(name, content) == read(name, wanted[name]), name


def assert_sound_ledger(path: Path) -> None:
    """A copy of it, with the journal that a killed run has left, is sound; an empty file is one that just begins."""
    with tempfile.TemporaryDirectory() as folder:
        for file in path.parent.glob(f"{path.name}*"):
            shutil.copy(file, folder)
        with sqlite3.connect(Path(folder, path.name)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def assert_same_results(out: Path, wanted: dict[str, bytes]) -> None:
    """All files are there and say the same, and nothing of what is no result is left but halves of files."""
    found = visible(out)
    assert found.keys() == wanted.keys()
    for name, content in found.items():
        assert read(name, content) == read(name, wanted[name]), name
    assert [name for name in leftovers(out) if not name.endswith(".part")] == []


def _label_maps(folder: Path) -> None:
    for name, size in (("a", (20, 24, 22)), ("b", (22, 20, 24))):
        (folder / "maps").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(head(size), np.eye(4)), folder / "maps" / f"{name}.nii.gz")
    (folder / "tiny.tsv").write_text(tiny_protocol().to_table(), encoding="utf-8")


def _scans(folder: Path) -> None:
    for name, scale in (("a", 1.0), ("b", 1.5)):
        coarse_scan(folder / "in" / f"{name}.nii.gz", scale)
    save_random_weights(folder / "w.safetensors")


def _evaluated(folder: Path) -> None:
    rng = np.random.default_rng(0)
    values = np.array([label.value for label in small_protocol().labels], dtype=np.int16)
    (folder / "small.tsv").write_text(small_protocol().to_table(), encoding="utf-8")
    for kind in ("truth", "predicted"):
        (folder / kind).mkdir()
        for name in "ab":
            data = values[rng.integers(0, len(values), (6, 7, 8))]
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / kind / f"{name}.nii.gz")


def _shapes(folder: Path) -> None:
    (folder / "maps").mkdir()
    for name in "ab":
        nib.save(
            nib.Nifti1Image(fetal_brain().astype(np.int16), np.diag([1.6, 1.6, 1.6, 1])),
            folder / "maps" / f"{name}.nii.gz",
        )


RECIPE = """
[data]
bank = "bank.safetensors"
[generation.grid]
shape = [16, 16, 16]
[network]
features = 4
levels = 2
out_channels = 4
[optimizer]
steps = 3
learning_rate = 0.01
loss = "dice_ce"
absent = "skip"
seed = 5
[output]
name = "small"
checkpoint_minutes = 0.0
keep = 2
log_every = 1
"""


def _recipe(folder: Path) -> None:
    save_bank(folder)
    (folder / "small.toml").write_text(RECIPE, encoding="utf-8")


def _train(folder: Path, out: Path) -> Sequence[object]:
    return ("train", folder / "small.toml", "-o", out, "--device", "cpu", "--threads", 1)


# A cohort whose workers are the coordinator itself, so that each of its runs takes a fraction of a second; a killed
# run's lease is taken over at once.
COHORT = """
from pathlib import Path
import cohort_run_helpers as helpers
from synthseg.cohort import coordinate, lease
from synthseg.cohort.crew import lost
from synthseg.cohort.work import Described, Report
from synthseg.files import atomic_file
from synthseg.inference.record import describe_input
lease.Lease.__init__.__kwdefaults__.update(dead_after_s=0.05)
coordinate.load_segmenter = lambda *_, **__: None
coordinate.describe = lambda *_: Described({}, "d")

class Crew(helpers.Script):
    def reports(self, timeout_s):
        job = self.hand.pop(0)
        if (self.fates.get(job.subject) or [None]).pop(0):
            return [lost(job, "died")]
        for path in job.files.values():
            with atomic_file(path) as file:
                file.write(job.subject.encode())
        record = {"input": describe_input(job.source), "volumes_mm3": dict(helpers.VOLUMES), "notes": []}
        return [Report(subject=job.subject, status="done", record=record, worker="here")]

coordinate._crew = lambda *_: Crew({"s1": ["lost"]}, workers=1)
"""


def _cohort(folder: Path) -> None:
    (folder / "in").mkdir()
    for index in range(2):
        (folder / "in" / f"s{index}.nii.gz").write_bytes(b"scan %d" % index)


SEGMENT = Case(
    "segment",
    _scans,
    lambda given, out: (
        *("segment", given / "in", "-o", out, "--weights", given / "w.safetensors", "--device", "cpu", "--threads", 1),
        *("--volumes", out / "volumes.csv", "--color-table", "--posteriors"),
    ),
    grows=("volumes.csv", "volumes_warnings.csv"),
)
COHORT_RUN = Case(
    "cohort run",
    _cohort,
    lambda given, out: ("cohort", "run", given / "in", "-o", out, "--quiet"),
    grows=("cohort.tsv", "cohort.parquet"),
    before=COHORT,
)
TRAIN = Case(
    "train",
    _recipe,
    _train,
    again=lambda given, out: (*_train(given, out), "--resume"),
    grows=("log.csv",),
)
BANK = Case(
    "bank",
    _label_maps,
    lambda given, out: ("bank", given / "maps", "-o", out / "bank.safetensors", "--protocol", given / "tiny.tsv"),
)
EVALUATE = Case(
    "evaluate",
    _evaluated,
    lambda given, out: (
        *("evaluate", given / "predicted", given / "truth", "-o", out / "scores.tsv", "--long", out / "long.tsv"),
        *("--protocol", given / "small.tsv", "--no-surface"),
    ),
)
SHAPES = Case(
    "shapes",
    _shapes,
    lambda given, out: ("shapes", given / "maps", "-o", out, "--edit", "size=1.1", "--originals"),
    grows=("shapes.tsv",),
)
IMPORT = Case(
    "weights import",
    lambda folder: write_family(folder, features=1, levels=2),
    lambda given, out: ("weights", "import", given / "synthseg_robust_2.0.h5", "-o", out),
)
CASES = (SEGMENT, COHORT_RUN, TRAIN, BANK, EVALUATE, SHAPES, IMPORT)
