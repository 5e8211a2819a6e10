"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.inference.bars import ORIGINAL, Bar, bars_of
from benchmarks.inference.results import Results
from benchmarks.inference.tasks import PLAIN

from synthseg.errors import UsageError

NOT_MEASURED = "not measured"
BEGIN, END = "<!-- inference: begin (written by benchmarks/inference) -->", "<!-- inference: end -->"


def write_page(results: Results, facts: dict[str, Any]) -> str:
    """The whole page: bars first, then every table that has something in it."""
    side = int(facts["side"])
    parts = [
        _head(facts),
        _bars(bars_of(results, side)),
        *(_forward(results, each) for each in dict.fromkeys((side, int(facts["small"]))) if each),
        *(_scans(results, scan, which) for scan in ("head", "conformed") for which in ("paper", "shipped", "compact")),
        _peers(results),
        _accuracy(results),
        _many(results),
        _failures(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def into(document: str, page: str, subject: object) -> str:
    """A document with the page where its marks are. Raises: UsageError if they are not there, once and in order."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise UsageError(str(subject), found="no place for the results", fix=f"put the lines {BEGIN} and {END} there")
    return f"{before}{BEGIN}\n\n{page.strip()}\n\n{END}{after}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _head(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rounds = ", ".join(f"{group} {count}" for group, count in facts["rounds"].items())
    return (
        f"Measured on {facts['date']} by `{facts['command']}`.\n\n"
        f"{facts['machine']}; {facts['threads']} threads; load before and after {facts['load']}; {versions}; "
        f"state of the code {facts['code']}. Network of the paper's size: {facts['paper']}.\n\n"
        f"Every figure is a process of its own, contenders in turn; medians, rounds by group: {rounds}. *CPU s*: user "
        "and system seconds of all threads; *peak*: largest resident memory of the process; *wall*: seconds waited, "
        "which depend on what else the machine does."
    )


def _bars(bars: list[Bar]) -> str:
    rows = [(bar.what, bar.wanted, bar.shown or NOT_MEASURED, bar.verdict) for bar in bars]
    return "### Bars\n\n" + table(("bar", "wanted", "measured", "held or missed"), rows)


def _forward(results: Results, side: int) -> str:
    prefix = f"forward/{side}/"
    names = [name.removeprefix(prefix) for name in results.runs if name.startswith(prefix) and "answer of" not in name]
    if not names:
        return ""
    rows = [_forward_row(results, prefix, name) for name in names]
    columns = (
        "",
        "forward, CPU s",
        "of plain's",
        "wall s",
        "warm, CPU s",
        "prepare, CPU s",
        "process, CPU s",
        "peak GB",
    )
    text = (
        f"### One forward pass of the paper's network at {side}^3\n\nCold: the first pass of a fresh process, from the "
        "image to the posteriors of every voxel. *Prepare*: loading the weights and making the backend ready; what is "
        "compiled for the shape belongs to the cold pass. int8 was calibrated on random pictures, as times do not "
        "depend on it.\n\n"
    )
    return text + table((*columns, "largest difference", "same label", "not background"), rows)


def _forward_row(results: Results, prefix: str, name: str) -> list[str]:
    own = prefix + name
    answer = f"{prefix}answer of {name}"
    ratio = results.ratio(own, prefix + PLAIN, "forward_cpu_s")
    return [
        name,
        _with_spread(results, own, "forward_cpu_s"),
        _number(ratio, ".2f"),
        _median(results, own, "forward_wall_s", ".1f"),
        _median(results, own, "again.forward_cpu_s", ".1f"),
        _median(results, own, "prepare_cpu_s", ".1f"),
        _median(results, own, "process_cpu_s", ".1f"),
        _median(results, own, "peak_gb", ".2f"),
        _median(results, answer, "largest_difference", ".1e"),
        _median(results, answer, "argmax_agreement", ".5f"),
        _median(results, answer, "foreground", ".2f"),
    ]


def _scans(results: Results, scan: str, which: str) -> str:
    """Both modes of one scan and network."""
    prefix = f"scan/{scan}/{which}/"
    names = [name for name in results.runs if name.startswith(prefix)]
    if not names:
        return ""
    rows = []
    for name in names:
        mode, _, contender = name.removeprefix(prefix).partition("/")
        base = f"{prefix}{mode}/{PLAIN}"
        rows.append(
            [
                mode,
                contender,
                _with_spread(results, name, "cpu_s"),
                _number(results.ratio(name, base), ".2f"),
                _median(results, name, "wall_s", ".1f"),
                _median(results, name, "peak_gb", ".2f"),
                _median(results, name, "as_plain.same", ".5f"),
                _number(_share(results, name, mode, "cpu_s", 0), ".2f"),
                _number(_share(results, name, mode, "peak_gb", 1), ".2f"),
            ]
        )
    size = {"head": "182 x 218 x 182 voxels of 1 mm", "conformed": "256^3 voxels of 1 mm"}[scan]
    network = {"paper": "the paper's size, 1 mm", "shipped": "shipped weights", "compact": "`compact`"}[which]
    columns = ("mode", "", "CPU s", "of plain's", "wall s", "peak GB", "labels as plain's")
    title = f"### A scan end to end: {size}, {network}\n\n"
    return title + table((*columns, "of the original's CPU s", "of its memory"), rows)


def _share(results: Results, name: str, mode: str, key: str, position: int) -> float | None:
    value = results.median(name, key)
    return None if value is None else value / ORIGINAL[mode][position]


def _peers(results: Results) -> str:
    names = [name for name in results.runs if name.startswith("peers/")]
    if not names:
        return ""
    rows = []
    for name in names:
        shape = " x ".join(map(str, results.runs[name][0]["said"].get("shape", ())))
        rows.append(
            [
                name.removeprefix("peers/"),
                shape,
                _with_spread(results, name, "forward_cpu_s"),
                _with_spread(results, name, "cpu_s"),
                _median(results, name, "wall_s", ".1f"),
                _median(results, name, "peak_gb", ".2f"),
                *(_number(_ours_of(results, name, key), ".2f") for key in ("cpu_s", "peak_gb")),
            ]
        )
    text = (
        "### The same network in other software, on this machine\n\nKeras: the original's network, once (`fast`) or "
        "twice (`default`) over the padded head, and nothing else, so that reading, resampling, smoothing and clean-up "
        "would come on top: less than what the original costs. Ours beside it is the whole process, file to file, best "
        "backend.\n\n"
    )
    columns = ("", "voxels", "forward, CPU s", "process, CPU s", "wall s", "peak GB", "ours / it, CPU s", "memory")
    return text + table(columns, rows)


def _ours_of(results: Results, name: str, key: str) -> float | None:
    """Our whole process in the same mode, of the contender that took least, over the peer's."""
    mode = name.rpartition("/")[2]
    prefix = f"scan/head/paper/{mode}/"
    ours = [own for own in results.runs if own.startswith(prefix) and PLAIN not in own]
    ours.sort(key=lambda own: results.median(own, "cpu_s") or 0.0)
    return results.ratio(ours[0], name, key) if ours else None


def _accuracy(results: Results) -> str:
    names = [name for name in results.runs if name.startswith("accuracy/")]
    rows = []
    for name in names:
        precision = name.removeprefix("accuracy/")
        cells = [_median(results, name, key, ".4f") for key in ("dice", "agreement", "worst_agreement")]
        rows.append([precision, *cells, str(results.runs[name][0]["said"].get("backend", ""))])
    if not rows:
        return ""
    columns = ("precision", "mean Dice", "labels as float32's, mean", "worst brain", "backend")
    brains = len(results.runs[names[0]][0]["said"].get("brains", {}))
    title = f"### Precision on {brains} labelled brains, shipped weights\n\nAgreement is over float32's brain voxels; "
    return title + "Dice with the truth, without CSF.\n\n" + table(columns, rows)


def _many(results: Results) -> str:
    names = [name for name in results.runs if name.startswith("many/")]
    rows = [
        [
            name.removeprefix("many/"),
            _median(results, name, "wall_s", ".1f"),
            _median(results, name, "cpu_s", ".1f"),
            _median(results, name, "peak_gb", ".2f"),
        ]
        for name in names
    ]
    return "### Many scans\n\n" + table(("", "wall s", "CPU s", "peak GB"), rows) if rows else ""


def _failures(results: Results) -> str:
    lines = [f"- {name}: {reason}" for name, reason in results.failed.items()]
    return "\n".join(["### Not measured", "", *lines]) if lines else ""


def _median(results: Results, name: str, key: str, form: str) -> str:
    return _number(results.median(name, key), form)


def _with_spread(results: Results, name: str, key: str) -> str:
    middle, ends = results.median(name, key), results.spread(name, key)
    if middle is None or ends is None:
        return ""
    wide = len(results.runs[name]) > 1
    return f"{middle:.1f} ({ends[0]:.1f} to {ends[1]:.1f})" if wide else f"{middle:.1f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
