"""Ways to segment a scan, under one signature: networks, Bayesian segmentation, test-time adaptation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from synthseg.evaluation.parcels import without_parcels
from synthseg.evaluation.yardstick import settings_key
from synthseg.inference import Segmenter, Want
from synthseg.volumes import Volume


@dataclass(frozen=True)
class Labelled:
    """A label map, on any grid, and volumes."""

    labels: Volume
    volumes_mm3: dict[int, float]


class Method(Protocol):
    """Something that segments scans."""

    @property
    def key(self) -> str:
        """Names everything that results depend on besides the scan: a folder name."""

    def segment(self, scan: Volume, *, ct: bool | None, fine: bool) -> Labelled:
        """Segment a scan on its own grid, or at 1 mm (``fine``) where its slices are thick."""

    def facts(self) -> dict[str, Any]:
        """What a record says about it."""


class NetworkMethod:
    """Weights, as every user runs them."""

    def __init__(self, weights: str | Path, mode: str, *, device: str, threads: int | None) -> None:
        self.segmenter = Segmenter(weights, mode, device=device, threads=threads)

    @property
    def key(self) -> str:
        """The yardstick's key: weights and settings."""
        return settings_key(self.segmenter)

    def segment(self, scan: Volume, *, ct: bool | None, fine: bool) -> Labelled:
        """The usual pipeline."""
        return segmented(self.segmenter, scan, ct=ct, fine=fine)

    def facts(self) -> dict[str, Any]:
        """Weights and their hash."""
        model = self.segmenter.model
        return {"method": "network", "weights": model.name, "sha256": model.sha256}


def segmented(segmenter: Segmenter, scan: Volume, *, ct: bool | None, fine: bool) -> Labelled:
    """A scan by the package's pipeline, as :class:`Method` asks for it."""
    if ct != segmenter.config.ct:
        segmenter = segmenter.with_config(replace(segmenter.config, ct=ct))
    found = segmenter.segment(scan, Want(space="1mm" if fine else "native"))
    return Labelled(without_parcels(found.labels), found.volumes_mm3)


def key_of(name: str, settings: dict[str, Any]) -> str:
    """A folder name for a method with settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:12]}"
