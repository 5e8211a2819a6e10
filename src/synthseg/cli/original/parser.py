"""The flags of ``mri_synthseg``: those of SynthSeg's and of FreeSurfer's command, and a few of our own.

Only argparse: ``mri_synthseg -h`` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthseg.errors import UsageError

PROGRAM = "mri_synthseg"
ALL_CORES = (0, -1)  # values of --threads, ours
PHOTO_SIDES = ("left", "right", "both")
LARGEST_STRICT_CROP = 512  # mm: the original pads smaller scans up to what was asked for


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for. Fields are the flags (reference 6.1); ``None`` and False are the defaults.

    ``threads`` is None for all cores, ``device`` follows from ``--device`` and ``--cpu``.
    """

    i: str
    o: str
    parc: bool = False
    robust: bool = False
    fast: bool = False
    ct: bool = False
    vol: str | None = None
    qc: str | None = None
    post: str | None = None
    resample: str | None = None
    crop: tuple[int, ...] | None = None
    autocrop: bool = False
    threads: int | None = 1
    v1: bool = False
    keepgeom: bool = False
    addctab: bool = False
    noaddctab: bool = False
    model: Path | None = None
    strict_original: bool = False
    model_dir: Path | None = None
    weights: str | None = None
    device: str = "auto"
    backend: str = "auto"
    memory: str | None = None
    debug: bool = False

    @property
    def family(self) -> str:
        """The original's networks that are meant."""
        return "synthseg-1.0" if self.v1 else "synthseg-2.0"

    @property
    def title(self) -> str:
        """What the original's banner would call this run (reference 6.1)."""
        if self.robust:
            return "SynthSeg-robust 2.0"
        return f"SynthSeg {'1.0' if self.v1 else '2.0'}{' (fast)' if self.fast else ''}"


def build_parser() -> argparse.ArgumentParser:
    """The parser. Flags may be shortened as far as they stay unique, as in the original."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Segment brain scans of any contrast and resolution: SynthSeg's command, carried out by the "
        "package synthseg.",
        epilog="Every flag, what it does here and how that differs from the original: docs/mri_synthseg.md",
    )
    add = parser.add_argument
    add("--i", metavar="I", help="image(s) to segment: a file, a folder, or a .txt list of files")
    add("--o", metavar="O", help="segmentation(s): a file or folder; a .txt list if --i is one")
    add("--parc", action="store_true", help="divide the cortex into parcels")
    add("--robust", action="store_true", help="the chain of networks for clinical scans (implies --fast)")
    add("--fast", action="store_true", help="no mirror averaging, no topology clean-up")
    add("--ct", action="store_true", help="clip Hounsfield units to [0, 80]")
    add("--vol", metavar="VOL", help="CSV with the volumes; a .txt list of CSVs if --i is a list")
    add("--qc", metavar="QC", help="CSV with the predicted quality; a list if --i is one")
    add("--post", metavar="POST", help="posteriors: same kind as --o")
    add("--resample", metavar="RESAMPLE", help="scan(s) at 1 mm, where they had to be resampled: same kind as --o")
    add("--crop", metavar="N", type=int, nargs="+", help="analyse only the middle: one or three sizes (default: all)")
    add("--autocrop", action="store_true", help="ignore background in the field of view (done anyway)")
    add("--threads", metavar="N", type=int, default=1, help="CPU threads (default 1; 0 or -1: all cores)")
    add("--cpu", action="store_true", help="leave the GPU alone")
    add("--v1", action="store_true", help="the networks of SynthSeg 1.0: no CSF, no intracranial volume")
    add("--keepgeom", action="store_true", help="labels on the grid of the input")
    add("--addctab", action="store_true", help="embed the colour table (.mgz: done anyway; others: a text file beside)")
    add("--noaddctab", action="store_true", help="no colour table")
    add("--photo", choices=PHOTO_SIDES, help="photographs of dissections: not here, refused")
    add("--model", metavar="FILE", type=Path, help="another network (.h5 or .safetensors) for the structures")
    ours = parser.add_argument_group("of our own")
    add = ours.add_argument
    add("--strict-original", action="store_true", help="the original's steps, one by one: its very numbers, bugs too")
    add("--model-dir", metavar="DIR", type=Path, help="where the original's .h5 files are")
    add("--weights", metavar="NAME", help="weights by name (synthseg weights list); default: the package's own")
    add("--device", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps")
    add("--backend", metavar="NAME", default="auto", help="auto (default), torch, openvino, compile or plain")
    add("--memory", metavar="SIZE", help="what the process may take in all, e.g. 4G")
    add("--version", action="store_true", help="print the version")
    add("--debug", action="store_true", help="show where an error came from")
    return parser


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line with at least ``--i`` and ``--o``.

    Raises: UsageError for flags that are missing or make no sense together; SystemExit after ``--help`` and
        ``--version`` (0) and for what argparse refuses (2).
    """
    given = build_parser().parse_args(arguments)
    if given.version:
        from importlib.metadata import version

        print(f"synthseg {version('synthseg')}")
        raise SystemExit(0)
    _check(given)
    values = vars(given)
    cpu = values.pop("cpu")
    for done in ("photo", "version"):
        values.pop(done)
    values["device"] = "cpu" if cpu else given.device or "auto"
    values["threads"] = None if given.threads in ALL_CORES else given.threads
    values["crop"] = None if given.crop is None else tuple(given.crop)
    return Options(**values)


def _check(given: argparse.Namespace) -> None:
    """Raise UsageError for what cannot be done, naming the flag."""
    for flag in ("i", "o"):
        if getattr(given, flag) is None:
            what = "the image(s) to segment" if flag == "i" else "where to put the segmentation(s)"
            raise UsageError(f"--{flag}", found="nothing", fix=f"say {what}: --{flag} PATH")
    if given.photo is not None:
        fix = "use FreeSurfer's own mri_synthseg --photo: it needs a network of its own, which is not here"
        raise UsageError("--photo", found="photographs of dissections", fix=fix)
    if given.threads < 1 and given.threads not in ALL_CORES:
        raise UsageError("--threads", found=str(given.threads), fix="give a number of at least 1, or 0 for all cores")
    if given.crop is not None and (len(given.crop) not in (1, 3) or min(given.crop) < 1):
        found = " ".join(map(str, given.crop))
        raise UsageError("--crop", found=found, fix="give one size in voxels of 1 mm, or three, each at least 1")
    if given.strict_original and given.crop is not None and max(given.crop) > LARGEST_STRICT_CROP:
        found = f"{max(given.crop)} together with --strict-original, which fills scans up with zeros to that size"
        raise UsageError("--crop", found=found, fix=f"give sizes up to {LARGEST_STRICT_CROP}, or leave --crop out")
    _check_pairs(given)


def _check_pairs(given: argparse.Namespace) -> None:
    """Raise UsageError for flags that exclude each other."""
    strict = given.strict_original
    other_device = given.device not in (None, "cpu")
    network = "--model" if given.model is not None else "--weights"
    excluded = (
        (given.robust and given.v1, "--robust", "--v1", "choose one: there is no robust SynthSeg 1.0"),
        (given.addctab and given.noaddctab, "--addctab", "--noaddctab", "choose one"),
        (given.cpu and other_device, "--cpu", f"--device {given.device}", "choose one"),
        (given.model is not None and given.weights is not None, "--model", "--weights", "choose one"),
        (
            given.v1 and (given.model is not None or given.weights is not None),
            "--v1",
            network,
            "leave --v1 out: the network itself says what its labels are",
        ),
        (strict and given.weights is not None, "--strict-original", "--weights", "give the original's with --model"),
        (strict and given.autocrop, "--strict-original", "--autocrop", "leave one out: the original has no --autocrop"),
        (
            strict and given.memory is not None,
            "--strict-original",
            "--memory",
            "leave one out: its steps take what they take",
        ),
    )
    for holds, first, second, fix in excluded:
        if holds:
            raise UsageError(first, found=f"together with {second}", fix=fix)


def notes_on(options: Options) -> list[str]:
    """What is accepted, but does something else than its name says, in sentences."""
    notes = []
    if options.autocrop:
        notes.append("--autocrop changes nothing: the networks are shown the surroundings of the brain in any case")
    if options.robust and options.fast:
        notes.append("--fast changes nothing beside --robust, which implies it")
    if options.strict_original and options.keepgeom:
        notes.append("--keepgeom is FreeSurfer's, not the original's: labels are taken to the input's grid afterwards")
    return notes
