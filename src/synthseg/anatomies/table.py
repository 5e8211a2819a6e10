"""What the sampler leaves behind: the weights that training reads, the features, and a summary for machines."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from synthseg.anatomies.sampler import MapWeights
from synthseg.configs import config_to_dict
from synthseg.files import atomic_file

WEIGHTS, FEATURES, SUMMARY, MEASURES = "weights.tsv", "features.tsv", "summary.json", "measures.json"
_TOP = 10


def write_tables(found: MapWeights, folder: Path) -> list[Path]:
    """Write ``weights.tsv``, ``features.tsv`` and ``summary.json``.

    ``weights.tsv`` (map, weight, dataset, group, cluster, draws_per_1000, flags) is what ``[data] map_weights`` of a
    recipe reads; ``features.tsv`` has the features in their own units and the principal components.
    Raises: OutputError.
    """
    weights = [
        [
            *(row.name, f"{row.weight:.10g}", row.dataset, row.family, _cluster(row.cluster)),
            *(f"{1000 * row.weight:.2f}", "; ".join(row.flags)),
        ]
        for row in found.rows
    ]
    header = ("map", "weight", "dataset", "group", "cluster", "draws_per_1000", "flags")
    files = [_write(folder / WEIGHTS, _tsv(header, weights))]
    axes = max(len(row.scores) for row in found.rows)
    titles = ["map", *found.columns, *(f"component {n + 1}" for n in range(axes))]
    lines = [
        [row.name, *map(_number, features), *map(_number, row.scores)]
        for row, features in zip(found.rows, found.features, strict=True)
    ]
    files.append(_write(folder / FEATURES, _tsv(titles, lines)))
    text = json.dumps(summary(found), indent=2, ensure_ascii=False)
    return [*files, _write(folder / SUMMARY, text + "\n")]


def summary(found: MapWeights) -> dict[str, Any]:
    """The same facts as plain values: data sets, clusters, effective number of maps, heaviest maps, flags, settings."""
    weights = found.weights
    top = sorted(found.rows, key=lambda row: (-row.weight, row.name))[:_TOP]
    drawn = weights[weights > 0]
    return {
        "maps": len(found.rows),
        "effective_maps": round(found.effective, 3),
        "effective_share": round(found.effective / len(found.rows), 4),
        "largest_over_smallest": round(float(drawn.max() / drawn.min()), 3),
        "parts": [
            {
                "name": part.name,
                "maps": part.maps,
                "anatomies": part.anatomies,
                "mass": part.mass,
                "explained_variance": [round(share, 4) for share in part.explained],
                "cluster_sizes": list(part.cluster_sizes),
                "central_map": part.central,
            }
            for part in found.parts
        ],
        "heaviest": [{"map": row.name, "weight": row.weight, "flags": list(row.flags)} for row in top],
        "flags": {row.name: list(row.flags) for row in found.rows if row.flags},
        "shapes": {group.name: list(group.values) for group in found.groups},
        "settings": config_to_dict(found.settings),
    }


def _cluster(number: int) -> str:
    return "" if number < 0 else str(number)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.10g}"


def _tsv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Without quotes; a tab or line end in a shape's or folder's name becomes a space (maps' names have none)."""
    return "".join("\t".join(re.sub(r"[\t\r\n]", " ", cell) for cell in row) + "\n" for row in (header, *rows))


def _write(path: Path, text: str) -> Path:
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "replace"))
    return path
