"""What there is to tell of a scan: read from the record that `synthseg segment` leaves beside every result."""

from __future__ import annotations

import colorsys
import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synthseg.errors import UsageError
from synthseg.inference.outputs import SUFFIX
from synthseg.inference.quality import Quality
from synthseg.inference.record import describe_input, read_record, recorded_quality, recorded_warnings
from synthseg.inference.scan_warnings import ScanWarning
from synthseg.inference.structures import Structure, unsided
from synthseg.labels import load_protocol
from synthseg.volumes import Volume, read_volume, strip_extension

FREESURFER = ("synthseg-2.0", "desikan-killiany", "freesurfer-dk")  # whose values mean one thing in all of them
FAILED, BIDS_LOGS = "_failed", "logs"
RECORDS, FAILURES = f"*{SUFFIX}.json", f"*{SUFFIX}{FAILED}.json"
COUNTED = "voxels of the label map"
SOFT = "sums of the network's posteriors"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One scan and what became of it.

    Attributes:
        scan: the path as it was given then; ``labels`` the label map, None for a scan that failed.
        sha256: of the scan's content, None where it is not known.
        volumes_mm3: by structure name, the total first; ``measured`` says how.
        quality: None unless it was predicted. ``error`` is why the scan failed.
        record: all of the record, for the provenance, and its file; empty without one.
        notes: what was noticed then, and by the report.
        warnings: what may be wrong with the scan or its result, as its record says.
    """

    scan: Path
    labels: Path | None = None
    sha256: str | None = None
    volumes_mm3: Mapping[str, float] = field(default_factory=dict)
    measured: str = SOFT
    quality: Quality | None = None
    error: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    record_path: Path | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[ScanWarning, ...] = ()

    @property
    def verdict(self) -> str:
        """ "failed", "fail", "warn", "pass", or "not scored"."""
        if self.error is not None:
            return "failed"
        return "not scored" if self.quality is None else self.quality.verdict


def find_results(out: Path) -> list[Finding]:
    """Every result and failure in a folder and its subfolders, in the order of their paths.

    Records lie beside the results, or in ``logs`` of a BIDS derivative. A scan that failed once and was done later
    counts as done.

    Raises: UsageError if there are none, or no such folder.
    """
    if not out.is_dir():
        found = "a single file" if out.is_file() else "no such folder"
        fix = "give the folder that `synthseg segment -o` wrote to, or a scan and then its label map"
        raise UsageError(out, found=found, fix=fix)
    records = sorted({*out.rglob(RECORDS), *(out / BIDS_LOGS).rglob("*.json")})
    failures = sorted({*out.rglob(FAILURES), *(out / BIDS_LOGS).rglob(f"*{FAILED}.json")})
    findings = [finding for path in records if (finding := _from_record(path)) is not None]
    done = {finding.record_path for finding in findings}
    for path in failures:
        finding = _from_failure(path)
        if finding is not None and path.with_name(f"{path.stem.removesuffix(FAILED)}.json") not in done:
            findings.append(finding)
    if not findings:
        fix = "give the folder that `synthseg segment -o` wrote to, or a scan and its label map"
        raise UsageError(out, found=f"no records of results ({RECORDS})", fix=fix)
    return findings


def finding_of(scan: Path, labels: Path, protocols: Sequence[str | Path] = ()) -> Finding:
    """A scan and a label map by any program. Volumes come from the record beside the label map, if that is of these two
    files; otherwise voxels are counted.

    Raises: VolumeError if the label map cannot be read, UsageError if the scan is missing.
    """
    if not scan.is_file():
        raise UsageError(scan, found="no such file", fix="give the scan, then its label map")
    described = describe_input(scan)
    recorded = _from_record(labels.with_name(f"{strip_extension(labels)}.json"))
    if recorded is not None and recorded.labels == labels and recorded.sha256 == described["sha256"]:
        return recorded
    volume = read_volume(labels, labels=True)
    structures = structures_of(np.unique(volume.data).tolist(), {}, protocols)
    notes = (f"volumes are {COUNTED}: there is no record by synthseg of these two files", *volume.notes)
    return Finding(
        scan=scan,
        labels=labels,
        sha256=described["sha256"],
        volumes_mm3=_counted(volume, structures),
        measured=COUNTED,
        notes=notes,
    )


def structures_of(
    values: Iterable[int], record: Mapping[str, Any], protocols: Sequence[str | Path] = ()
) -> tuple[Structure, ...]:
    """What the values of a label map mean, in ascending order, background left out.

    Protocols given come first, then those of the record's weights, else FreeSurfer's. A value that none of them has is
    called "label N". Where the record's volumes have sides merged, so have the names.
    """
    weights = table_in(table_in(record, "settings"), "weights")
    named = [str(table_in(weights, role).get("protocol")) for role in ("structures", "guided", "parcels")]
    known: dict[int, Structure] = {}
    for protocol in (*protocols, *(_loadable(named) or FREESURFER)):
        for label in load_protocol(protocol).labels:
            known.setdefault(label.value, Structure(label.value, label.name, label.color, label.side, label.partner))
    volumes = record.get("volumes_mm3", {})

    def named_as_recorded(structure: Structure) -> str:
        plain = unsided(structure.name)
        return plain if structure.name not in volumes and plain in volumes else structure.name

    found = []
    for value in sorted(set(values) - {0}):
        one = known.get(value, Structure(value, f"label {value}", _any_color(value)))
        found.append(Structure(value, named_as_recorded(one), one.color, one.side, one.partner))
    return tuple(found)


def table_in(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table within a table; empty where there is something else: records may be damaged or of another version."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _loadable(names: Iterable[str]) -> list[str]:
    """The protocols that come with the package; those of a user's own weights are given by ``--protocol``."""
    from synthseg.labels import builtin_protocols

    return [name for name in names if name in builtin_protocols()]


def _any_color(value: int) -> tuple[int, int, int]:
    """A colour for a value without one; neighbours differ (steps of the golden ratio around the colour circle)."""
    red, green, blue = colorsys.hsv_to_rgb(value * 0.618034 % 1, 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _counted(labels: Volume, structures: Sequence[Structure]) -> dict[str, float]:
    voxel = float(abs(np.linalg.det(labels.affine[:3, :3])))
    volumes = {s.name: float(np.count_nonzero(labels.data == s.value)) * voxel for s in structures}
    return {"total segmented": sum(volumes.values()), **volumes}


def _from_record(path: Path) -> Finding | None:
    record = read_record(path)
    if record is None or not isinstance(record["input"].get("path"), str):
        return None
    told, sha256 = record.get("notes"), record["input"].get("sha256")
    notes = [str(note) for note in told] if isinstance(told, list) else []
    try:
        quality = recorded_quality(record)
    except ValueError:
        quality = None
        notes.append("the predicted quality in its record cannot be read")
    try:
        warnings = recorded_warnings(record)
    except ValueError:
        warnings = ()
        notes.append("the warnings in its record cannot be read")
    try:
        volumes = {str(name): float(volume) for name, volume in record["volumes_mm3"].items()}
    except (TypeError, ValueError):
        return None
    files = table_in(record, "files")
    names = [str(files[kind]) for kind in ("labels", "labels_1mm") if kind in files]
    labels = _find_labels(path, [Path(name).name for name in names])
    if labels is None:
        notes.append("the label map is not where its record says")
    return Finding(
        scan=Path(record["input"]["path"]),
        labels=labels,
        sha256=sha256 if isinstance(sha256, str) else None,
        volumes_mm3=volumes,
        quality=quality,
        record=record,
        record_path=path,
        notes=tuple(notes),
        warnings=warnings,
    )


def _find_labels(record: Path, names: Iterable[str]) -> Path | None:
    """The first of these files beside the record; for a record in ``logs/sub-X``, anywhere in ``sub-X``."""
    for name in names:
        if (record.parent / name).is_file():
            return record.parent / name
        if record.parent.parent.name == BIDS_LOGS:
            found = next((record.parents[2] / record.parent.name).rglob(name), None)
            if found is not None:
                return found
    return None


def _from_failure(path: Path) -> Finding | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        scan, message = Path(told["input"]["path"]), str(told["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    sha256 = None
    with contextlib.suppress(OSError, ValueError):  # a scan that is not there has no sum; its id is then a number
        sha256 = describe_input(scan)["sha256"]
    return Finding(scan=scan, sha256=sha256, error=message, record=told, record_path=path)
