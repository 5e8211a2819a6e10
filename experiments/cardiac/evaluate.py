"""Held-out label maps as test scans, segmented and scored; real scans segmented beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from experiments.cardiac.phantom import CONTRASTS, draw_scan
from experiments.cardiac.prepare import on_spacing, read_heart

from synthseg.evaluation import summarise, write_scores
from synthseg.evaluation.scoring import EvaluationConfig, ScoreRow, score_volumes
from synthseg.files import atomic_file
from synthseg.inference import Segmenter
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.volumes import Volume, read_volume, strip_extension, write_volume


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is tested."""

    protocol: str
    spacing_mm: float = 1.5  # of the test scans
    contrasts: tuple[str, ...] = tuple(CONTRASTS)
    seed: int = 1
    pictures: bool = True


def evaluate(
    weights: Path, maps: Sequence[Path], out: Path, config: EvaluateConfig, *, threads: int | None = None
) -> tuple[ScoreRow, ...]:
    """Score weights on phantoms around held-out maps, one for each contrast.

    Writes the scans, the truths, the segmentations, ``scores.tsv`` and, on request, a picture of each.

    Args:
        weights: a safetensors file with a card.
        maps: held-out label maps with the protocol's values.
    Returns: one row a scan and structure.
    Raises: VolumeError, LabelError for maps that cannot be used; WeightsError for the weights.
    """
    protocol = load_protocol(config.protocol)
    segmenter = Segmenter(str(weights), protocol=None, threads=threads)
    scoring = EvaluationConfig(protocol=config.protocol, ignore_value=None)
    rows: list[ScoreRow] = []
    for number, path in enumerate(maps):
        truth = on_spacing(read_heart(path, protocol), config.spacing_mm, protocol)
        name = strip_extension(path)
        write_volume(truth, out / "truth" / f"{name}.nii.gz")
        for contrast in config.contrasts:
            rng = torch.Generator().manual_seed(config.seed + 1000 * number)
            scan = draw_scan(truth, protocol, contrast, rng=rng)
            labels = _segment(segmenter, scan, out, f"{name}_{contrast}", pictures=config.pictures)
            rows += score_volumes(labels, truth, scoring, scan=f"{name}_{contrast}").rows
    write_scores(rows, out / "scores.tsv")
    return tuple(rows)


def segment_real(weights: Path, scans: Sequence[Path], out: Path, *, threads: int | None = None) -> dict[str, float]:
    """Segment real scans without a truth, to be looked at: volume of all structures together by scan, in ml."""
    segmenter = Segmenter(str(weights), threads=threads)
    volumes = {}
    for path in scans:
        labels = _segment(segmenter, read_volume(path), out, strip_extension(path), pictures=True)
        voxel_ml = abs(float(np.linalg.det(labels.affine[:3, :3]))) / 1000
        volumes[strip_extension(path)] = float(np.count_nonzero(labels.data)) * voxel_ml
    return volumes


def _segment(segmenter: Segmenter, scan: Volume, out: Path, name: str, *, pictures: bool) -> Volume:
    found = segmenter.segment(scan)
    write_volume(replace(scan, path=None), out / "scans" / f"{name}.nii.gz")
    write_volume(found.labels, out / "segmentations" / f"{name}.nii.gz")
    if pictures:
        from synthseg.report.overlay import write_overlay

        write_overlay(scan, found.labels, found.structures, out / "pictures" / f"{name}.png")
    return found.labels


def write_report(rows: Sequence[ScoreRow], protocol: LabelProtocol, path: Path) -> str:
    """A table of mean Dice by contrast and structure, as Markdown; also written to ``path``."""
    names = [label.name for label in protocol.labels if label.value and label.target == label.value]
    lines = ["| scans | " + " | ".join(names) + " | mean |", "|:--|" + "--:|" * (len(names) + 1)]
    contrasts = dict.fromkeys(row.scan.rsplit("_", 1)[1] for row in rows)
    for contrast in contrasts:
        own = [row for row in rows if row.scan.endswith(f"_{contrast}")]
        by_name = {one.structure: one.dice for one in summarise(own).structures}
        cells = [f"{by_name[name]:.3f}" if name in by_name else "-" for name in names]
        lines.append(f"| {contrast} | " + " | ".join(cells) + f" | {summarise(own).dice:.3f} |")
    text = "\n".join(lines) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode())
    return text
