"""Small folders of results as `synthseg segment` leaves them, made without a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from synthseg.inference.record import FORMAT
from synthseg.volumes import Volume, write_volume

AFFINE = np.array([[-2.0, 0, 0, 20], [0, 0, 2.0, -22], [0, -2.0, 0, 24], [0, 0, 0, 1]])  # LIP: no axis as on the page
STRUCTURES = {
    2: "left cerebral white matter",
    3: "left cerebral cortex",
    17: "left hippocampus",
    41: "right cerebral white matter",
}
SHAPE = (20, 24, 22)


def make_labels() -> Volume:
    """Four blocks in the middle of the grid; the right one is at smaller first indices (the axis runs leftwards)."""
    data = np.zeros(SHAPE, dtype=np.int32)
    data[10:14, 8:16, 8:14] = 2
    data[14:15, 8:16, 8:14] = 3
    data[11:13, 10:12, 10:12] = 17
    data[6:10, 8:16, 8:14] = 41
    return Volume(data, AFFINE)


def make_scan(seed: int = 0) -> Volume:
    """Bright where there are labels, with noise; a bright voxel far away, which only a whole head shows."""
    noise = np.random.Generator(np.random.PCG64(seed)).normal(0, 4, SHAPE)
    data = 100 + 20 * (make_labels().data > 0) + noise
    data[0, 0, 0] = 900
    return Volume(data.astype(np.float32), AFFINE)


def write_result(
    folder: Path, stem: str, *, scans: Path | None = None, seed: int = 0, scale: float = 1.0, **more: Any
) -> Path:
    """A scan, its label map and their record in ``folder``; ``more`` goes into the record. Returns the record."""
    scan = write_volume(make_scan(seed), (scans or folder) / f"{stem}.nii.gz")
    write_volume(make_labels(), folder / f"{stem}_synthseg.nii.gz", dtype=np.int32)
    volumes = {name: 1000.0 * value * (1 + 0.01 * seed) for value, name in STRUCTURES.items()}
    volumes["left hippocampus"] *= scale
    record: dict[str, Any] = {
        "format": FORMAT,
        "created": "2026-01-02T03:04:05+00:00",
        "input": {
            "path": str(scan),
            "bytes": scan.stat().st_size,
            "sha256": hashlib.sha256(scan.read_bytes()).hexdigest(),
        },
        "settings": {
            "weights": {
                "structures": {"name": "tiny", "sha256": "ab" * 32, "protocol": "synthseg-2.0", "spacing_mm": 2.0}
            },
            "inference": {"flip": True, "percentiles": [1.0, 99.0], "ct": None},
        },
        "device": "cpu",
        "backend": "torch",
        "precision": "float32",
        "versions": {"synthseg": "0.1.0"},
        "files": {"labels": f"{stem}_synthseg.nii.gz", "record": f"{stem}_synthseg.json"},
        "volumes_mm3": {"total intracranial": sum(volumes.values()), **volumes},
        "timings_s": {"network": 1.25},
        "notes": [f"{scan.name}: the header said nothing of its units"],
        **more,
    }
    path = folder / f"{stem}_synthseg.json"
    path.write_text(json.dumps(record))
    return path


def quality(score: float) -> dict[str, Any]:
    """What a record says of quality: one group with this score, another that is fine."""
    return {"scores": {"cortex": score, "thalamus": 0.9}, "thresholds": {"fail_below": 0.65, "warn_below": 0.75}}


def write_failure(folder: Path, stem: str, message: str) -> Path:
    """What a scan that failed leaves behind; the scan itself is nowhere."""
    path = folder / f"{stem}_synthseg_failed.json"
    told = {
        "format": FORMAT,
        "status": "failed",
        "input": {"path": f"/clinic/{stem}.nii.gz"},
        "settings": {},
        "versions": {},
    }
    path.write_text(json.dumps({**told, "error": {"kind": "VolumeError", "message": message}}))
    return path


def element(page: str, name: str) -> str:
    """What a page holds under an id, as data."""
    found = re.search(rf'<script type="[^"]+" id="{name}">([^<]*)</script>', page)
    assert found is not None
    return found.group(1)


def embedded_volume(page: str, name: str) -> nib.Nifti1Image:
    """A volume out of a page."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(element(page, name))))


def text_of(page: str) -> str:
    """The page without what is coded in base64."""
    return re.sub(r"[A-Za-z0-9+/]{80,}={0,2}", "", page)
