"""The record beside every result: what was run on what, with which settings, how long it took, what was noticed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from synthseg.errors import SynthsegError
from synthseg.inference.ensemble import members_of
from synthseg.inference.outputs import Outputs
from synthseg.inference.quality import FAIL_BELOW, WARN_BELOW, Limits, Quality, own_limits
from synthseg.inference.scan_warnings import RESEARCH_USE, SEVERITIES, ScanWarning
from synthseg.inference.segmentation import Interval, Segmentation
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.tables import write_text
from synthseg.reading import JSON_BYTES, read_text

FORMAT = 2  # since weights are listed by role


def settings_of(segmenter: Segmenter, outputs: Outputs) -> dict[str, Any]:
    """All that decides what the files hold: equal settings and an equal scan give equal results.

    ``weights`` are those of every network of the run, by role, with their temperatures where several are averaged;
    ``quality`` has the thresholds of the verdicts.
    """
    weights: dict[str, dict[str, Any]] = {
        role: {"name": model.name, "sha256": model.sha256, "protocol": model.protocol, "spacing_mm": model.spacing_mm}
        for role, model in segmenter.models.items()
    }
    if segmenter.config.merge == "mean" and len(members := members_of(segmenter.models)) > 1:
        for role, model in members.items():  # not part of the tensors' hash, and decides what the mean is
            weights[role]["temperature"] = 1.0 if model.temperature is None else model.temperature
    settings = {
        "weights": weights,
        "inference": segmenter.config.to_dict(),
        "outputs": {**asdict(outputs), "structures": list(outputs.structures)},
    }
    if segmenter.quality_groups:
        own = own_limits(segmenter.models["quality"].typical)
        settings["quality"] = _thresholds(FAIL_BELOW, WARN_BELOW, own)
    return settings


def describe_input(path: Path) -> dict[str, Any]:
    """Name, size, time of last change (ns) and SHA-256 of a scan's file."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())  # first: a change while we read must show
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "bytes": before.st_size, "mtime_ns": before.st_mtime_ns, "sha256": digest}


def still_holds(record: dict[str, Any], settings: dict[str, Any], scan: Path) -> bool:
    """Whether a record (:func:`read_record`) tells of these settings, this synthseg and the scan as it is now."""
    if record["settings"] != settings or record["versions"].get("synthseg") != dict(versions())["synthseg"]:
        return False
    described = record["input"]
    try:
        now = scan.stat()
        if described.get("bytes") != now.st_size:
            return False
        # Reading a thousand scans only to skip them takes minutes; a copy, which has another time, is worth it.
        return described.get("mtime_ns") == now.st_mtime_ns or described.get("sha256") == describe_input(scan)["sha256"]
    except OSError:
        return False


def ran_with(segmenter: Segmenter, segmentation: Segmentation | None = None) -> dict[str, Any]:
    """What the networks ran on: device, backend and precision of the one that gives the structures, and CPU threads.

    ``networks`` says the same of each by role. Without a segmentation it is what was planned. No part of the settings
    but the precision, which :func:`settings_of` has: backends and devices give the same answer, so a scan that is done
    stays done on another machine.
    """
    networks = segmenter.placement.ran if segmentation is None else segmentation.ran
    main = networks[segmenter.model.role]
    return {
        "device": main.device,
        "backend": main.backend,
        "precision": main.precision,
        "threads": torch.get_num_threads(),
        "networks": {role: asdict(one) for role, one in networks.items()},
    }


def make_record(
    segmentation: Segmentation,
    settings: dict[str, Any],
    described: dict[str, Any],
    files: dict[str, Path],
    ran: dict[str, Any],
) -> dict[str, Any]:
    """The record of one scan, as JSON values.

    ``settings`` are :func:`settings_of`, ``described`` is :func:`describe_input`, ``ran`` is :func:`ran_with` when it
    was computed. ``peak_memory_mib`` is the largest the process has been so far: for a batch, of all scans until this
    one. ``intervals_mm3`` and ``quality`` are there when they were asked for; ``warnings`` is a list, often empty.
    """
    record = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": described,
        "settings": settings,
        **ran,
        "versions": {**dict(versions()), **_backend_versions(ran)},
        "files": {kind: path.name for kind, path in files.items()},
        "volumes_mm3": {name: round(volume, 3) for name, volume in segmentation.volumes_by_name().items()},
        "timings_s": segmentation.timings_s,
        "peak_memory_mib": peak_memory_mib(),
        "notes": list(segmentation.notes),
        "warnings": [asdict(warning) for warning in segmentation.warnings],
        "use": RESEARCH_USE,
    }
    intervals = intervals_by_name(segmentation)
    if intervals is not None:
        record["intervals_mm3"] = {name: _interval_values(interval) for name, interval in intervals.items()}
    if segmentation.quality is not None:
        record["quality"] = _quality_values(segmentation.quality)
    return record


def intervals_by_name(segmentation: Segmentation) -> dict[str, Interval] | None:
    """The spread of the volumes by structure name, the total first."""
    if segmentation.intervals is None:
        return None
    names = {0: segmentation.total_name, **{s.value: s.name for s in segmentation.structures if s.value != 0}}
    return {names[value]: interval for value, interval in segmentation.intervals.items()}


def recorded_intervals(record: dict[str, Any]) -> dict[str, Interval] | None:
    """What :func:`intervals_by_name` said when the record was made. Raises: ValueError if it says something else."""
    try:
        given = record.get("intervals_mm3")
        return None if given is None else {name: Interval(**values) for name, values in given.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError("intervals_mm3") from error


def recorded_quality(record: dict[str, Any]) -> Quality | None:
    """The quality that a record tells of. Raises: ValueError if it is not one."""
    try:
        given = record.get("quality")
        if given is None:
            return None
        thresholds = {name: float(given["thresholds"][name]) for name in ("fail_below", "warn_below")}
        own = {str(n): (float(fail), float(warn)) for n, (fail, warn) in given["thresholds"].get("groups", {}).items()}
        return Quality({name: float(score) for name, score in given["scores"].items()}, **thresholds, own=own)
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError("quality") from error


def recorded_warnings(record: dict[str, Any]) -> tuple[ScanWarning, ...]:
    """The warnings that a record tells of; none in one from before there were any.

    Raises: ValueError if it says something else.
    """
    try:
        told = [(str(w["code"]), w["severity"], str(w["message"])) for w in record.get("warnings", [])]
    except (TypeError, KeyError) as error:
        raise ValueError("warnings") from error
    if any(severity not in SEVERITIES for _, severity, _ in told):
        raise ValueError("warnings")
    return tuple(ScanWarning(*one) for one in told)


def _interval_values(interval: Interval) -> dict[str, float]:
    return {name: round(value, 3) for name, value in asdict(interval).items()}


def _thresholds(fail_below: float, warn_below: float, own: Mapping[str, Limits]) -> dict[str, Any]:
    both = {"fail_below": fail_below, "warn_below": warn_below}
    return {**both, "groups": {name: list(limits) for name, limits in own.items()}} if own else both


def _quality_values(quality: Quality) -> dict[str, Any]:
    return {
        "verdict": quality.verdict,
        "sentence": quality.sentence,
        "thresholds": _thresholds(quality.fail_below, quality.warn_below, quality.own),
        "scores": {name: float(score) for name, score in quality.scores.items()},  # unrounded: verdicts hang on them
        "verdicts": dict(quality.verdicts),
    }


def failure_file(record: Path) -> Path:
    """Where it is written that a scan failed, beside the place of its record."""
    return record.with_name(f"{record.stem}_failed.json")


def make_failure(
    scan: Path, error: BaseException, message: str, settings: dict[str, Any], ran: dict[str, Any]
) -> dict[str, Any]:
    """What is left of a scan that failed, as JSON values. ``message`` names the scan, what was found and the fix."""
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "failed",
        "input": {"path": str(scan)},
        "error": {"kind": type(error).__name__, "message": message},
        "settings": settings,
        **ran,
        "versions": {**dict(versions()), **_backend_versions(ran)},
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record. Raises: OutputError if it cannot be written."""
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """A record written earlier; None if there is none or it is not one of ours (then the scan is simply done again).

    What comes back has the parts that :func:`still_holds` and the tables read, each of them a table of its own.
    """
    try:
        # Not `read_json`: what of a damaged record makes sense is still told of in reports.
        record = json.loads(read_text(path, error=SynthsegError, fix="segment the scan again", most=JSON_BYTES))
    except (SynthsegError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    parts = (record.get(name) for name in ("input", "settings", "versions", "volumes_mm3"))
    return record if all(isinstance(part, dict) for part in parts) else None


@lru_cache(maxsize=1)
def versions() -> tuple[tuple[str, str], ...]:
    """Name and version of Python and of every package that a result depends on."""
    packages = ("synthseg", "torch", "numpy", "scipy", "nibabel", "connected-components-3d")
    return (("python", platform.python_version()), *((name, importlib.metadata.version(name)) for name in packages))


def _backend_versions(ran: dict[str, Any]) -> dict[str, str]:
    """Name and version of the packages that backends are, where that is not torch."""
    used = {one["backend"] for one in ran["networks"].values()}
    return {backend: importlib.metadata.version(backend) for backend in sorted(used & {"openvino"})}


def peak_memory_mib() -> int | None:
    """Largest resident size of this process so far, in MiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // 2**20 if sys.platform == "darwin" else peak // 2**10)
