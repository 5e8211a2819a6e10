"""What inference must reach, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.inference.results import Results
from benchmarks.inference.tasks import PLAIN

# The original's published code, whole process, on another machine (2 virtual cores of an Intel Cascade Lake with
# AVX-512 and VNNI at 2.5 GHz, random weights, 181 x 217 x 181 voxels): CPU seconds and GB by mode.
ORIGINAL = {"fast": (62.8, 9.9), "default": (116.7, 13.6)}
FLOAT32 = ("torch float32", "openvino float32")
INT8 = ("openvino int8",)
AGREEMENT, DICE_LOSS = 0.995, 0.003
PEAK_GB = 2.2


@dataclass(frozen=True)
class Bar:
    """One bar; ``held`` is None where nothing was measured, or nothing was asked for (``wanted`` is empty)."""

    what: str
    wanted: str
    shown: str
    held: bool | None

    @property
    def verdict(self) -> str:
        if self.held is None:
            return "" if self.shown and not self.wanted else "not measured"
        return "held" if self.held else "**missed**"


def bars_of(results: Results, side: int, *, gpu: bool = False) -> list[Bar]:
    """All of them, in the order in which they are asked for."""
    bars = [*_forward(results, side), *_scans(results), *_original(results), *_conformed(results)]
    bars += [*_accuracy(results), *_start(results)]
    if not gpu:
        bars.append(Bar("on a GPU: forward at 192^3 in bfloat16; a scan; its memory", "< 60 ms; < 1 s; 6 GB", "", None))
    return bars


def best(results: Results, prefix: str, names: Sequence[str], key: str = "cpu_s") -> str | None:
    """The contender that took least; None if none was measured."""
    found = {name: value for name in names if (value := results.median(f"{prefix}/{name}", key)) is not None}
    return min(found, key=lambda name: found[name]) if found else None


def _forward(results: Results, side: int) -> Iterator[Bar]:
    """Time and memory of one and the same contender: the fastest of those that keep to the memory, else the fastest."""
    prefix, what = f"forward/{side}", f"one forward pass at {side}^3 against torch eager"
    for kind, names, least in (("float32", FLOAT32, 2.0), ("int8", INT8, 4.5)):
        lean = [name for name in names if (results.median(f"{prefix}/{name}", "peak_gb") or PEAK_GB) < PEAK_GB]
        name = best(results, prefix, lean or names, "forward_cpu_s")
        ratio = None if name is None else results.ratio(f"{prefix}/{name}", f"{prefix}/{PLAIN}", "forward_cpu_s")
        times = None if not ratio else 1 / ratio
        yield _at_least(f"{what}, {kind}, times faster", least, times, name)
        peak = None if name is None else results.median(f"{prefix}/{name}", "peak_gb")
        yield _at_most(f"its peak memory, {kind}, GB (stretch 1.5)", PEAK_GB, peak, name, strict=True)
    for name in (*FLOAT32, "compile float32"):
        difference = results.median(f"{prefix}/answer of {name}", "largest_difference")
        if difference is not None or name in FLOAT32:
            yield _at_most(f"largest posterior difference to it, {name}", 1e-4, difference, strict=True, form=".1e")


def _scans(results: Results) -> Iterator[Bar]:
    for which, words in (("paper", "the paper's size at 1 mm"), ("shipped", "shipped weights")):
        for mode in ("default", "fast"):
            prefix = f"scan/head/{which}/{mode}"
            for kind, names, most in (("float32", (*FLOAT32, "as it comes"), 0.35), ("int8", INT8, 0.15)):
                name = best(results, prefix, names)
                ratio = None if name is None else results.ratio(f"{prefix}/{name}", f"{prefix}/{PLAIN}")
                yield _at_most(f"head of 1 mm, {words}, `{mode}`, {kind}: share of plain's CPU s", most, ratio, name)


def _original(results: Results) -> Iterator[Bar]:
    for which, words in (("paper", "the paper's size at 1 mm"), ("shipped", "shipped weights")):
        for mode in ("default", "fast"):
            prefix = f"scan/head/{which}/{mode}"
            name = best(results, prefix, (*FLOAT32, *INT8, "as it comes"))
            for key, limit, position, unit in (("cpu_s", 0.25, 0, "CPU s"), ("peak_gb", 0.2, 1, "memory")):
                value = None if name is None else results.median(f"{prefix}/{name}", key)
                share = None if value is None else value / ORIGINAL[mode][position]
                what = f"head of 1 mm, {words}, `{mode}`: share of the original's {unit} (another machine)"
                yield _at_most(what, limit, share, name)


def _conformed(results: Results) -> Iterator[Bar]:
    prefix = "scan/conformed/paper/default"
    for kind, names in (("float32", FLOAT32), ("int8", INT8)):
        name = best(results, prefix, names)
        peak = None if name is None else results.median(f"{prefix}/{name}", "peak_gb")
        yield _at_most(f"256^3, the paper's size at 1 mm, {kind}: peak GB", 3.0, peak, name, strict=True)
    for which, limit in (("shipped", 3.0), ("compact", 2.0)):
        peak = results.median(f"scan/conformed/{which}/default/as it comes", "peak_gb")
        yield _at_most(f"256^3, {which} weights: peak GB", limit, peak, strict=True)
    compact = "scan/conformed/compact/default/as it comes"
    name = best(results, prefix, FLOAT32)
    for whose, other in (("plain's", PLAIN), ("our own, same precision", name)):
        share = None if other is None else results.ratio(compact, f"{prefix}/{other}")
        yield _at_most(f"256^3, `compact`: share of the CPU s of the paper's size, {whose}", 0.125, share)


def _accuracy(results: Results) -> Iterator[Bar]:
    truth = results.median("accuracy/float32", "dice")
    for precision in ("int8", "bfloat16"):
        agreement, dice = (results.median(f"accuracy/{precision}", key) for key in ("agreement", "dice"))
        yield _at_least(f"{precision}, labelled brains: labels as float32's", AGREEMENT, agreement, form=".4f")
        loss = None if dice is None or truth is None else truth - dice
        yield _at_most(f"{precision}, labelled brains: loss of mean Dice", DICE_LOSS, loss, form=".4f")


def _start(results: Results) -> Iterator[Bar]:
    yield _at_most("`synthseg --help`, s", 0.3, results.median("start/synthseg --help", "wall_s"), strict=True)


def _at_least(what: str, limit: float, value: float | None, who: str | None = None, *, form: str = ".2f") -> Bar:
    if value is None:
        return Bar(what, f">= {limit:g}", "", None)
    return Bar(what, f">= {limit:g}", _shown(value, who, form), value >= limit)


def _at_most(
    what: str, limit: float, value: float | None, who: str | None = None, *, form: str = ".2f", strict: bool = False
) -> Bar:
    wanted = f"{'<' if strict else '<='} {limit:g}"
    if value is None:
        return Bar(what, wanted, "", None)
    return Bar(what, wanted, _shown(value, who, form), value < limit if strict else value <= limit)


def _shown(value: float, who: str | None, form: str) -> str:
    return f"{value:{form}}" + (f" ({who})" if who else "")
