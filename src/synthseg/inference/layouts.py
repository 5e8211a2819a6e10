"""What the tables of volumes and of quality hold, and how a scan's results become their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from synthseg.inference.tables import Cells, TableLayout

if TYPE_CHECKING:
    from synthseg.inference.quality import Quality
    from synthseg.inference.repeat import Interval
    from synthseg.inference.scan_warnings import ScanWarning

VOLUME = "volume_mm3"
SPREAD = ("mean_mm3", "sd_mm3", "low_mm3", "high_mm3")  # what --repeat adds, in the TSV's words
DICE, VERDICT = "predicted_dice", "verdict"
WARNED, CODES, SENTENCES = "warned", "warnings", "sentences"
OVERALL = "overall"  # the quality table's last item: the lowest score and the worst verdict


def volume_layout(
    names: Sequence[str], values: Mapping[str, int], *, total: bool = True, repeat: bool = False
) -> TableLayout:
    """The table of volumes.

    CSV (reference 6.9): the total, then the structures in ascending order of value, parcels last. With ``repeat`` the
    same columns, which hold what they hold without it (the volumes of the labels that are written), then for each of
    them ``NAME mean``, ``NAME sd``, ``NAME low``, ``NAME high``, and ``segmentations`` (how many these are from) last:
    who reads columns by their header or position finds the volumes where they always are.
    TSV: value, structure, volume_mm3, and with ``repeat`` mean_mm3, sd_mm3, low_mm3, high_mm3, n. The total's value is
    ``n/a``.

    Args:
        names: items of every scan, total first: what ``Segmentation.volumes_by_name`` lists.
        values: label value of each structure, by name.
        total: False leaves the total out, as in the original's 1.0 tables: without CSF it is not intracranial.
    """
    names = list(names) if total else list(names[1:])
    columns = {name: (name, VOLUME) for name in names}
    if repeat:
        columns |= {f"{name} {measure.removesuffix('_mm3')}": (name, measure) for name in names for measure in SPREAD}
        columns["segmentations"] = (names[0], "n")
    return TableLayout(
        what="volume table",
        columns=columns,
        keys=("value", "structure"),
        items={name: (str(values.get(name, "n/a")), name) for name in names},
        measures=(VOLUME, *SPREAD, "n") if repeat else (VOLUME,),
    )


def volume_cells(volumes_mm3: Mapping[str, float], intervals: Mapping[str, Interval] | None = None) -> Cells:
    """Cells of one scan: numbers as Python prints them after rounding to 3 decimals (reference 6.9)."""
    cells = {(name, VOLUME): _number(volume) for name, volume in volumes_mm3.items()}
    for name, interval in (intervals or {}).items():
        cells[name, "n"] = str(interval.n)
        numbers = (interval.mean, interval.sd, interval.low, interval.high)
        cells |= {(name, measure): _number(number) for measure, number in zip(SPREAD, numbers, strict=True)}
    return cells


def quality_layout(groups: Sequence[str]) -> TableLayout:
    """The table of predicted quality.

    CSV: the original's columns, one score a group, four decimals (reference 6.9), then ``verdict``, the worst of all
    groups'. TSV: group, predicted_dice, verdict; the last line of a scan, ``overall``, has the lowest score and the
    worst verdict.
    """
    return TableLayout(
        what="quality table",
        columns={**{group: (group, DICE) for group in groups}, VERDICT: (OVERALL, VERDICT)},
        keys=("group",),
        items={name: (name,) for name in (*groups, OVERALL)},
        measures=(DICE, VERDICT),
    )


def quality_cells(quality: Quality) -> Cells:
    """Cells of one scan: scores with four decimals (reference 6.9)."""
    cells: dict[tuple[str, str], str] = {(OVERALL, VERDICT): quality.verdict}
    cells[OVERALL, DICE] = f"{min(quality.scores.values()):.4f}"
    for group, score in quality.scores.items():
        cells[group, DICE], cells[group, VERDICT] = f"{score:.4f}", quality.verdicts[group]
    return cells


def warnings_layout() -> TableLayout:
    """The table of warnings, one row a scan in CSV and TSV alike.

    ``warned``: none, caution or serious (the worst of them); ``warnings``: their codes, separated by spaces;
    ``sentences``: what was found, separated by `` | ``. A scan without warnings has a row, too: it was checked.
    """
    measures = (WARNED, CODES, SENTENCES)
    return TableLayout(
        what="warnings table",
        columns={measure: (OVERALL, measure) for measure in measures},
        keys=(),
        items={OVERALL: ()},
        measures=measures,
    )


def warnings_cells(warnings: Sequence[ScanWarning]) -> Cells:
    """Cells of one scan."""
    severities = {warning.severity for warning in warnings}
    worst = "serious" if "serious" in severities else "caution" if severities else "none"
    return {
        (OVERALL, WARNED): worst,
        (OVERALL, CODES): " ".join(warning.code for warning in warnings),
        (OVERALL, SENTENCES): " | ".join(warning.message for warning in warnings),
    }


def _number(value: float) -> str:
    return repr(round(float(value), 3))
