"""What plots share: colours everyone can tell apart, a printed column's sizes, files that are the same each time."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synthseg.errors import UsageError
from synthseg.files import atomic_file

# Okabe and Ito's palette (2008), which stays apart under the common colour vision deficiencies. A dark brown stands in
# for its yellow, too pale for lines on white. Markers and line styles say the same once more.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5B3A1E", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
COLUMN_MM = 85.0  # a column of most journals; two and the gap between them are about 180 mm
SUFFIXES = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
METRIC_NAMES = {
    "dice": "Dice",
    "sd95": "SD95",
    "mean_distance": "Mean surface distance",
    "hausdorff": "Hausdorff distance",
    "surface_dice": "Surface Dice",
    "volume_similarity": "Volume similarity",
    "volume_predicted": "Predicted volume",
    "volume_truth": "True volume",
}
_STYLE: Any = {
    "font.size": 7.0,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same letters on every machine
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "grid.linewidth": 0.4,
    "grid.color": "#d9d9d9",
    "svg.hashsalt": "synthseg",  # element names that do not change from run to run
    "pdf.fonttype": 42,  # text stays text
    "text.parse_math": False,  # a method's name may hold dollar signs
}


def check_figure_path(path: str | Path) -> Path:
    """The path of a figure to write.

    Raises: UsageError unless it ends in .png, .svg or .pdf, or without matplotlib: to be asked before the work.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(path, found=f"the suffix {path.suffix!r}", fix="name the figure *.png, *.svg or *.pdf")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("the figure", found="no matplotlib", fix='install it with: pip install "synthseg[report]"')
    return path


@contextmanager
def figure_at(path: str | Path, width_mm: float, height_mm: float) -> Iterator[Any]:
    """A matplotlib Figure of that size, written when the block ends; the same drawing gives the same bytes.

    Raises: as :func:`check_figure_path`; OutputError if it cannot be written.
    """
    path = check_figure_path(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width_mm / 25.4, height_mm / 25.4), layout="constrained")
        yield figure
        kind = SUFFIXES[path.suffix.lower()]
        # Dates and program versions would make equal drawings different files.
        metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
        image = io.BytesIO()
        figure.savefig(image, format=kind, dpi=300, metadata=metadata)
    with atomic_file(path) as file:
        file.write(image.getvalue())


def require_few(names: Sequence[str], what: str) -> None:
    """Raise UsageError when there are more ``names`` than colours."""
    if len(names) > len(COLORS):
        found = f"{len(names)} {what}, of which {len(COLORS)} can be told apart"
        raise UsageError("the figure", found=found, fix="choose some with --where, or draw several figures")


def axis_name(metric: str, unit: str) -> str:
    """``SD95 (mm)``."""
    name = METRIC_NAMES.get(metric, metric.replace("_", " "))
    return f"{name} ({unit})" if unit else name
