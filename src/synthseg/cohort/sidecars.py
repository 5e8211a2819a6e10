"""What stands beside a scan's images in a BIDS derivative: metadata, lookup tables, volumes, predicted quality.

All of it is made from the scan's record and colour table alone, once its images are there, so that it can be made again
at any time, by whichever worker.

Source: Brain Imaging Data Structure 1.10, "Derivatives: Imaging data types: Segmentations" and "The inheritance
principle".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthseg.cohort.derivatives import RAW, TISSUE_LABELS
from synthseg.cohort.texts import read_json, read_text, to_json, tsv, write_json, write_once, write_text
from synthseg.cohort.work import Job
from synthseg.errors import SynthsegError
from synthseg.inference.scan_warnings import RESEARCH_USE


def complete(job: Job) -> None:
    """Write everything that stands beside a finished scan's images; for ``Settings.after``.

    Raises: OutputError; SynthsegError where the record or the colour table of the scan is gone or damaged.
    """
    try:
        _complete(job, read_json(job.files["record"], any_name=True))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        found = f"something else than the record of a scan ({type(error).__name__}: {error})"
        raise SynthsegError(job.files["record"], found=found, fix="segment the scan again (--overwrite)") from error


def _complete(job: Job, record: Mapping[str, Any]) -> None:
    rows = color_rows(job.files["color_table"], list(record["volumes_mm3"]))
    if "posteriors_names" in job.files:
        channels = [c["name"] for c in read_json(job.files["posteriors_names"])["channels"]]
    else:
        channels = []
    out = _root_of(job)
    source = _source_of(job)
    for kind, path in job.files.items():
        if path.name.endswith(".nii.gz"):
            sidecar = _sidecar(kind, path, source, record, channels)
            write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar)
    labels = job.files["labels"] if "labels" in job.files else job.files["labels_1mm"]
    stem = labels.name.removesuffix("_dseg.nii.gz").replace("_res-1mm", "")
    desc = stem.rpartition("_")[2]
    write_once(out / f"{desc}_dseg.json", to_json({"Description": "Anatomical structures, by synthseg"}))
    _write_lookup(out / f"{desc}_dseg.tsv", [f for k, f in job.files.items() if k in ("labels", "labels_1mm")], rows)
    write_text(labels.with_name(f"{stem}_volumes.tsv"), _volume_table(record, rows))
    write_once(out / f"{desc}_volumes.json", to_json(_volume_columns()))
    if "quality" in record:
        write_text(labels.with_name(f"{stem}_qc.tsv"), _quality_table(record["quality"]))
        write_once(out / f"{desc}_qc.json", to_json(_quality_columns(record["quality"])))


@dataclass(frozen=True)
class Row:
    """A label: its value, its name, its colour as #rrggbb."""

    value: int
    name: str
    color: str


def _root_of(job: Job) -> Path:
    """The derivative's folder: records lie in ``logs/sub-*`` of it."""
    return job.files["record"].parents[2]


def _source_of(job: Job) -> str:
    """The scan as a BIDS URI: from the subject's folder on."""
    parts = job.source.parts
    first = max(i for i, part in enumerate(parts) if part == f"sub-{job.entities['sub']}")
    return f"bids:{RAW}:{'/'.join(parts[first:])}"


def _sidecar(kind: str, path: Path, source: str, record: Mapping[str, Any], channels: list[str]) -> dict[str, Any]:
    """Metadata of one image, as the standard names it; ours under names that begin with SynthSeg."""
    weights = record["settings"]["weights"]
    about = {
        "labels": "Labels of anatomical structures, on the grid of the scan",
        "labels_1mm": "Labels of anatomical structures, on a 1 mm grid",
        "posteriors": "Probabilities of the structures, one volume each in the order of LabelMap",
        "mask": "Brain mask: every structure, cerebrospinal fluid included, holes filled",
        "resampled": "The scan itself, resampled to 1 mm",
    }.get(kind, "Probability of a tissue")
    said: dict[str, Any] = {
        "Description": f"{about}. Made by synthseg.",
        "Sources": [source],
        "SpatialReference": source,
    }
    if "_res-1mm_" in path.name:
        said["Resolution"] = "1 mm isotropic, covering the field of view of the scan"
    if kind in ("labels", "labels_1mm", "posteriors", *TISSUE_LABELS):
        said["Manual"] = False
    if kind == "mask":
        said["Type"] = "Brain"
    if kind == "posteriors":
        said["LabelMap"] = channels
    if kind == "resampled":
        said["SkullStripped"] = False
    return said | {
        "SynthSegVersions": record["versions"],
        "SynthSegWeights": {role: {k: w[k] for k in ("name", "sha256", "protocol")} for role, w in weights.items()},
        "SynthSegSettings": record["settings"]["inference"],
        "SynthSegInputSha256": record["input"]["sha256"],
        "SynthSegNotes": record["notes"],
        "SynthSegWarnings": record.get("warnings", []),
        "SynthSegUse": record.get("use", RESEARCH_USE),
    }


def color_rows(path: Path, names: Sequence[str]) -> list[Row]:
    """Labels of a colour table (``inference/outputs.py``); the names get back the spaces that it has none of."""
    spelled = {name.replace(" ", "-"): name for name in names}
    rows = []
    for line in read_text(path).splitlines():
        if line and not line.startswith("#"):
            rows.append(_color_row(line, spelled, path))
    return rows


def _color_row(line: str, spelled: Mapping[str, str], path: Path) -> Row:
    try:
        value, name, *color = line.split()
        red, green, blue = (int(c) for c in color[:3])
        if not all(0 <= c <= 255 for c in (red, green, blue)):
            raise ValueError(line)
        return Row(int(value), spelled.get(name, name), f"#{red:02x}{green:02x}{blue:02x}")
    except ValueError as error:
        found = f"{line[:80]!r}, no line of a colour table"
        raise SynthsegError(path, found=found, fix="segment the scan again (--overwrite)") from error


def _write_lookup(shared: Path, images: Iterable[Path], rows: Sequence[Row]) -> None:
    """The labels' table at the dataset's top, where it holds for all scans (inheritance principle).

    A scan with other labels than those (segmented with other weights or structures) gets a table of its own.
    """
    text = tsv([("index", "name", "color"), *((row.value, row.name, row.color) for row in rows)])
    same = write_once(shared, text)
    for image in images:
        own = image.with_name(image.name.removesuffix(".nii.gz") + ".tsv")
        if same:
            own.unlink(missing_ok=True)
        else:
            write_text(own, text)


def _volume_table(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    values = {row.name: row.value for row in rows}
    spread = record.get("intervals_mm3") or {}
    header = ["index", "name", "volume_mm3"] + (["sd_mm3", "low_mm3", "high_mm3"] if spread else [])
    lines: list[Sequence[object]] = [header]
    for name, volume in record["volumes_mm3"].items():
        about = spread.get(name, {})
        bars = [about.get(key, "n/a") for key in ("sd", "low", "high")] if spread else []
        lines.append([values.get(name, "n/a"), name, volume, *bars])
    return tsv(lines)


def _volume_columns() -> dict[str, Any]:
    """What the columns mean, those of ``--repeat`` included: the file is shared by all scans."""
    copies = "over slightly changed copies of the scan (with --repeat)"
    return {
        "index": {"Description": "Value of the structure in the segmentation; n/a for sums of structures"},
        "name": {"Description": "Name of the structure"},
        "volume_mm3": {"Description": "Volume: sum of the structure's probabilities at 1 mm", "Units": "mm^3"},
        "sd_mm3": {"Description": f"Standard deviation of the volume {copies}", "Units": "mm^3"},
        "low_mm3": {"Description": f"Lower end of the volume's 95 % interval {copies}", "Units": "mm^3"},
        "high_mm3": {"Description": f"Upper end of the volume's 95 % interval {copies}", "Units": "mm^3"},
    }


def _quality_table(quality: Mapping[str, Any]) -> str:
    verdicts = quality["verdicts"]
    rows = [(name, f"{score:.4f}", verdicts.get(name, "n/a")) for name, score in quality["scores"].items()]
    return tsv([("name", "predicted_dice", "verdict"), *rows, ("overall", "n/a", quality["verdict"])])


def _below(limits: Mapping[str, Any], name: str, place: int) -> str:
    own = "".join(f"; {group}: {pair[place]:g}" for group, pair in limits.get("groups", {}).items())
    return f"below {limits[name]}{own}"


def _quality_columns(quality: Mapping[str, Any]) -> dict[str, Any]:
    limits = quality["thresholds"]
    return {
        "name": {"Description": "Group of structures; overall: of the scan"},
        "predicted_dice": {"Description": "Dice overlap with a manual segmentation that is to be expected"},
        "verdict": {
            "Description": "What follows from it",
            "Levels": {
                "fail": _below(limits, "fail_below", 0),
                "warn": _below(limits, "warn_below", 1),
                "pass": "otherwise",
            },
        },
    }
