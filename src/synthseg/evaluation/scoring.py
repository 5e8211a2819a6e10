"""Scoring one prediction against one truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synthseg.errors import ConfigError, LabelError
from synthseg.evaluation.mapping import LabelMapping
from synthseg.labels import LabelProtocol, load_protocol
from synthseg.metrics import METRICS, SURFACE_METRICS, measure
from synthseg.metrics.measures import check_metrics
from synthseg.metrics.surface import check_tolerance
from synthseg.volumes.read import read_volume
from synthseg.volumes.resample import reslice
from synthseg.volumes.volume import Volume, strip_extension
from synthseg.volumes.window import bounding_box

_SAME_GRID_MM = 1e-2  # corners closer than this: headers written by different tools, one grid
_PERPENDICULAR = 1e-4  # cosine: what single precision makes of turned perpendicular axes is below
_ALWAYS = ("dice", "volume_predicted", "volume_truth")  # the wide table's, which take no time
_SHOWN = 8  # values listed in a note


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is compared, and how."""

    protocol: str = "synthseg-2.0"  # names the structures and says which values are scored
    values: tuple[int, ...] | None = None  # score exactly these; None: the protocol's foreground present in the truth
    ignore_value: int | None = 255  # voxels where the truth has this value are left out of both maps
    surface: bool = True  # look at surfaces, most of the time spent
    metrics: tuple[str, ...] | None = None  # of synthseg.metrics.METRICS; None: all that ``surface`` allows
    tolerance_mm: float = 1.0  # of surface_dice
    mapping: LabelMapping | None = None  # converts the truth first

    def __post_init__(self) -> None:
        if self.values is not None and (not self.values or len(set(self.values)) != len(self.values)):
            raise ConfigError("evaluation values", found=str(list(self.values)), fix="list distinct label values")
        if self.values is not None and self.ignore_value in self.values:
            fix = "score other values, or ignore another one (or none)"
            raise ConfigError("evaluation values", found=f"{self.ignore_value}, which is to be ignored", fix=fix)
        check_tolerance(self.tolerance_mm)
        if self.metrics is not None:
            check_metrics(self.metrics)
            unseen = [name for name in self.metrics if name in SURFACE_METRICS and not self.surface]
            if unseen:
                fix = "leave them out, or look at the surfaces"
                raise ConfigError("metrics", found=f"{', '.join(unseen)} without surfaces", fix=fix)

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics asked for, in the order of ``METRICS``."""
        wanted = METRICS if self.metrics is None else self.metrics
        return tuple(name for name in METRICS if name in wanted and (self.surface or name not in SURFACE_METRICS))


@dataclass(frozen=True)
class ScoreRow:
    """One structure of one scan. Volumes are on the truth's grid, ignored voxels left out."""

    scan: str
    label: int
    structure: str
    dice: float  # NaN when absent from both, 0 when absent from one
    sd95_mm: float  # NaN when absent from both or not computed, infinite when absent from one
    volume_predicted_mm3: float
    volume_truth_mm3: float


@dataclass(frozen=True)
class MetricValue:
    """One metric of one structure."""

    label: int
    structure: str
    metric: str
    value: float
    unit: str  # "" for a ratio; surface_dice names its tolerance here


@dataclass(frozen=True)
class PairScores:
    """The scores of one pair and what was noticed on the way, in sentences."""

    scan: str
    rows: tuple[ScoreRow, ...]
    notes: tuple[str, ...]
    values: tuple[MetricValue, ...] = ()  # the metrics asked for, structure by structure
    method: str = ""  # whose prediction it is, where that is known


def evaluate_pair(
    predicted: str | Path, truth: str | Path, config: EvaluationConfig | None = None, *, scan: str | None = None
) -> PairScores:
    """Compare a label map with its truth, label by label.

    The truth's grid is the one compared on: a prediction on another grid is brought there through both affines, voxel
    by voxel with its nearest label, and a note says so.

    Scored are ``config.values`` if given, otherwise the protocol's foreground labels that the truth has. A label that
    only the prediction has is then not scored (a truth without value 24 simply does not label CSF), and noted.

    Args:
        predicted, truth: label map files.
        scan: the name in the rows; the prediction's file name without extension when None.
    Raises: VolumeError for unreadable files; LabelError when there is nothing to score or the mapping does not fit.
    """
    theirs, ours = read_volume(truth, labels=True), read_volume(predicted, labels=True)
    return score_volumes(ours, theirs, config, scan=scan if scan is not None else strip_extension(predicted))


def score_volumes(predicted: Volume, truth: Volume, config: EvaluationConfig | None = None, *, scan: str) -> PairScores:
    """:func:`evaluate_pair` for label maps in memory; what else is said there holds here.

    Args:
        scan: the name in the rows.
    Raises: LabelError when there is nothing to score or the mapping does not fit.
    """
    config = config or EvaluationConfig()
    protocol = load_protocol(config.protocol)
    notes = [f"{kind}: {note}" for kind, v in (("prediction", predicted), ("truth", truth)) for note in v.notes]
    if config.mapping is not None:
        converted = config.mapping.apply(truth.data, truth.spacing_mm, subject=truth.subject)
        truth = replace(truth, data=converted)
    notes += _ignored(truth.data, config.ignore_value)
    on_grid, moved = onto_grid(predicted, truth)
    ours, theirs = _cropped(on_grid, truth.data, config)
    values, chosen = _choose_values(ours, theirs, protocol, config, truth.subject)
    table = measure(
        ours,
        theirs,
        values,
        _spacing(truth),
        metrics={*_ALWAYS, *config.measured},
        tolerance_mm=config.tolerance_mm,
        ignore_value=config.ignore_value,
    )
    names = dict(zip(protocol.values.tolist(), protocol.names, strict=True))
    structures = [(value, names.get(value, f"label {value}")) for value in values]
    rows = tuple(_row(scan, *structure, table, i) for i, structure in enumerate(structures))
    units = METRICS | {"surface_dice": f"within {config.tolerance_mm:g} mm"}
    long = tuple(
        MetricValue(*structure, metric, float(table[metric][i]), units[metric])
        for i, structure in enumerate(structures)
        for metric in config.measured
    )
    return PairScores(scan, rows, (*notes, *moved, *chosen), long)


def _cropped(ours: np.ndarray, theirs: np.ndarray, config: EvaluationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to what is not background: a brain fills a tenth of a typical field of view."""
    if config.values is not None and 0 in config.values:
        return ours, theirs
    box = bounding_box((ours != 0) | (theirs != 0))
    return box.crop(ours), box.crop(theirs)


def _row(scan: str, label: int, structure: str, table: dict[str, np.ndarray], i: int) -> ScoreRow:
    return ScoreRow(
        scan=scan,
        label=label,
        structure=structure,
        dice=float(table["dice"][i]),
        sd95_mm=float(table["sd95"][i]) if "sd95" in table else math.nan,
        volume_predicted_mm3=float(table["volume_predicted"][i]),
        volume_truth_mm3=float(table["volume_truth"][i]),
    )


def _spacing(volume: Volume) -> np.ndarray:
    """Voxel sizes where the axes are perpendicular, however they are turned; the steps along them where not."""
    steps, sizes = volume.affine[:3, :3], volume.spacing_mm
    angles = steps.T @ steps / np.outer(sizes, sizes) - np.eye(3)
    return np.asarray(sizes if np.abs(angles).max() < _PERPENDICULAR else steps)


def _ignored(truth: np.ndarray, value: int | None) -> list[str]:
    count = 0 if value is None else int(np.count_nonzero(truth == value))
    if not count:
        return []
    share = 100 * count / truth.size
    return [f"{count} voxels ({share:.2g} %) have the value {value} in the truth: not scored, in neither map"]


def onto_grid(ours: Volume, theirs: Volume) -> tuple[np.ndarray, list[str]]:
    """The prediction's labels on the truth's grid (nearest; 0 from outside), and a note when they had to be moved."""
    shape = theirs.shape
    if (
        ours.data.shape == shape
        and np.abs(_corners(ours.affine, shape) - _corners(theirs.affine, shape)).max() < _SAME_GRID_MM
    ):
        return ours.data, []
    resliced = reslice(ours.data, ours.affine, shape, theirs.affine, order=0)
    notes = [f"the prediction {_grid(ours)} was brought on the truth's grid {_grid(theirs)}, nearest label"]
    if not (resliced > 0).any() and (ours.data > 0).any():
        notes.append("none of the prediction's labels lies inside the truth's grid: are both in the same space?")
    return resliced.astype(ours.data.dtype, copy=False), notes


def _choose_values(
    predicted: np.ndarray, truth: np.ndarray, protocol: LabelProtocol, config: EvaluationConfig, path: str | Path
) -> tuple[list[int], list[str]]:
    if config.values is not None:
        absent = {v for v in config.values if not ((predicted == v).any() or (truth == v).any())}
        return list(config.values), [f"in neither map, so without a score: {_listed(absent)}"] if absent else []
    known = set(protocol.target_values.tolist()) - {0}
    in_truth = set(np.unique(truth).tolist()) - {0, config.ignore_value}
    in_predicted = set(np.unique(predicted).tolist()) - {0}
    values = sorted(known & in_truth)
    if not values:
        raise LabelError(
            path,
            found=f"no label of {protocol.name} in the truth, only {_listed(in_truth)}",
            fix="choose another protocol, name the labels to score, or convert the truth with a mapping",
        )
    notes = []
    if in_truth - known:
        found = (
            f"the truth has values that {protocol.name} does not: {_listed(in_truth - known)}; counted as background"
        )
        notes.append(f"{found} (is it of another convention? then give a mapping)")
    if (in_predicted & known) - in_truth:
        notes.append(f"not scored, because the truth does not have them: {_listed((in_predicted & known) - in_truth)}")
    return values, notes


def _corners(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(corners @ affine[:3, :3].T + affine[:3, 3])


def _grid(volume: Volume) -> str:
    sides = "x".join(str(n) for n in volume.data.shape)
    return f"({sides} voxels of {'x'.join(f'{s:.3g}' for s in volume.spacing_mm)} mm)"


def _listed(values: set[int]) -> str:
    listed = [str(value) for value in sorted(values)]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) + more) or "background"
