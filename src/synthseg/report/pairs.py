"""A figure of generated pairs: what training sees."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synthseg.errors import UsageError
from synthseg.files import atomic_file
from synthseg.generation.write import WrittenPair
from synthseg.labels.protocol import LabelProtocol

MAX_ROWS = 12  # of the figure; more pairs are written but not drawn


def require_matplotlib() -> None:
    """Raise UsageError if figures cannot be drawn: to be asked before the work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        fix = 'install it with: pip install "synthseg[report]", or add --no-figure'
        raise UsageError("the figure of pairs", found="no matplotlib", fix=fix)


def write_pairs_figure(pairs: Sequence[WrittenPair], protocol: LabelProtocol, path: Path) -> Path:
    """One row a pair: sagittal, coronal and axial middle slices of the image, then of its target.

    Args:
        pairs: at least one; the first :data:`MAX_ROWS` are drawn.
        protocol: colours of the target values.
    Raises: UsageError for no pairs or without matplotlib; OutputError if the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    if not pairs:
        raise UsageError("the figure of pairs", found="no pairs", fix="give at least one")
    shown = list(pairs)[:MAX_ROWS]
    figure = Figure(figsize=(12, 2.15 * len(shown)), layout="constrained", facecolor="black")
    cells = figure.subplots(len(shown), 6, squeeze=False)
    for row, pair in zip(cells, shown, strict=True):
        colored = colors_of(pair.label_data, protocol)
        for axis in range(3):
            middle = pair.image_data.shape[axis] // 2
            row[axis].imshow(pair.image_data.take(middle, axis=axis).T, cmap="gray", vmin=0, vmax=1, origin="lower")
            row[axis + 3].imshow(colored.take(middle, axis=axis).transpose(1, 0, 2), origin="lower")
        row[0].set_title(pair.map_name, color="white", fontsize=8)
        for cell in row:
            cell.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80, facecolor="black", metadata={"Software": None})
    with atomic_file(path) as file:
        file.write(buffer.getvalue())
    return path


def colors_of(values: np.ndarray, protocol: LabelProtocol) -> np.ndarray:
    """[..., 3] uint8 colours of label values; values the protocol does not know are white."""
    table = np.full((max(int(values.max()), int(protocol.values.max())) + 1, 3), 255, dtype=np.uint8)
    table[protocol.values] = protocol.colors
    colored: np.ndarray = table[values]
    return colored
