"""The record beside every result: what was run on what, with which settings, how long it took, what was noticed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from synthseg.inference.outputs import Outputs
from synthseg.inference.segmentation import Segmentation
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.tables import write_text

FORMAT = 1


def settings_of(segmenter: Segmenter, outputs: Outputs) -> dict[str, Any]:
    """All that decides what the files hold: equal settings and an equal scan give equal results."""
    model = segmenter.model
    weights = {"name": model.name, "sha256": model.sha256, "protocol": model.protocol, "spacing_mm": model.spacing_mm}
    chosen = {**asdict(outputs), "structures": list(outputs.structures)}
    return {"weights": weights, "inference": segmenter.config.to_dict(), "outputs": chosen}


def describe_input(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a scan's file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest}


def make_record(
    segmentation: Segmentation,
    segmenter: Segmenter,
    outputs: Outputs,
    described: dict[str, Any],
    files: dict[str, Path],
) -> dict[str, Any]:
    """The record of one scan, as JSON values.

    ``peak_memory_mib`` is the largest the process has been so far: for a batch, of all scans until this one.
    """
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": described,
        "settings": settings_of(segmenter, outputs),
        "device": str(segmenter.device),
        "versions": dict(versions()),
        "files": {kind: path.name for kind, path in files.items()},
        "volumes_mm3": {name: round(volume, 3) for name, volume in segmentation.volumes_by_name().items()},
        "timings_s": segmentation.timings_s,
        "peak_memory_mib": peak_memory_mib(),
        "notes": list(segmentation.notes),
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record. Raises: OutputError if it cannot be written."""
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """A record written earlier; None if there is none or it is not one of ours (then the scan is simply done again)."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


@lru_cache(maxsize=1)
def versions() -> tuple[tuple[str, str], ...]:
    """Name and version of Python and of every package that a result depends on."""
    packages = ("synthseg", "torch", "numpy", "scipy", "nibabel", "connected-components-3d")
    return (("python", platform.python_version()), *((name, importlib.metadata.version(name)) for name in packages))


def peak_memory_mib() -> int | None:
    """Largest resident size of this process so far, in MiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // 2**20 if sys.platform == "darwin" else peak // 2**10)
