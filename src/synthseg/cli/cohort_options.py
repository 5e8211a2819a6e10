"""Options of ``synthseg cohort``: what is segmented as in ``synthseg segment``, who works, what is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from synthseg.cohort.coordinate import Place
    from synthseg.cohort.work import Settings

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder that `cohort run -o` wrote to.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder of results, ledger and table.")]
Scans = Annotated[
    list[str],
    typer.Argument(help="Scans, folders, patterns ('*'), .txt lists, BIDS datasets, DICOM folders and zips."),
]

Mode = Annotated[str, typer.Option(help="default, fast, robust or robust-fast: see synthseg segment --help.")]
ModeOrNone = Annotated[
    str | None, typer.Option("--mode", help="default, fast, robust or robust-fast: see synthseg segment --help.")
]
Fast = Annotated[bool, typer.Option("--fast", help="Short for --mode fast.")]
Robust = Annotated[bool, typer.Option("--robust", help="Short for --mode robust; with --fast, robust-fast.")]
Series = Annotated[
    str | None,
    typer.Option(help="Of DICOM studies: a series' number, part of its description, or all. Default: the best."),
]
DicomSeg = Annotated[
    bool, typer.Option("--dicom-seg", help="Write a DICOM SEG on the source series, of scans that are DICOM.")
]
Report = Annotated[bool, typer.Option("--report", help="Write HTML pages of all results into OUT/report at the end.")]
Parc = Annotated[bool, typer.Option("--parc", help="Divide the cortex into parcels.")]
Ct = Annotated[bool | None, typer.Option("--ct/--no-ct", help="Scans are CT, or are not. Default: recognise it.")]
WeightsName = Annotated[str, typer.Option(help="Name (see synthseg weights list) or path.")]
WeightsNames = Annotated[
    list[str] | None,
    typer.Option(
        help="Name (see synthseg weights list) or path. Given several times: networks merged into one result."
    ),
]
Merge = Annotated[
    str | None, typer.Option(help="How several --weights become one result: see synthseg segment --help.")
]
ModelDir = Annotated[Path | None, typer.Option(help="Folder to look in first for weights.")]
Protocol = Annotated[str | None, typer.Option(help="Refuse weights of another label protocol than this.")]
Qc = Annotated[
    bool | None,
    typer.Option(
        "--qc/--no-qc",
        help="Predict how good each segmentation is: columns of the table. Default: where there is a network for it.",
    ),
]
Space = Annotated[str, typer.Option(help="Grid of the labels: native (the scan's own), 1mm or both.")]
Structures = Annotated[str, typer.Option(help="Keep only these, by name or value: hippocampus,left thalamus,16")]
MergeSides = Annotated[bool, typer.Option("--merge-sides", help="Left and right as one label.")]
Posteriors = Annotated[bool, typer.Option("--posteriors", help="Write the probabilities of all labels (4D).")]
Resampled = Annotated[bool, typer.Option("--resampled", help="Write the scans at 1 mm.")]
Mask = Annotated[bool, typer.Option("--mask", help="Write brain masks (all labels, CSF included).")]
TissueMaps = Annotated[bool, typer.Option("--tissue-maps", help="Write probabilities of grey, white matter and CSF.")]
ColorTable = Annotated[bool, typer.Option("--color-table", help="Write the labels' colours for viewers.")]
Overlay = Annotated[bool, typer.Option("--overlay", help="Write pictures of the labels over the scans.")]
Repeat = Annotated[int, typer.Option(metavar="N", min=0, help="Error bars of the volumes from N copies (at least 2).")]
Percentiles = Annotated[tuple[float, float] | None, typer.Option(help="Intensities that become 0 and 1.")]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda (all of them), cuda:N or mps.")]
Backend = Annotated[str, typer.Option(help="What carries the networks out: see synthseg segment --help.")]
Precision = Annotated[str | None, typer.Option(help="float32, bfloat16 or int8; default: the mode's.")]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="What each worker may take, e.g. 4G.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes, or jobs of a queueing system. Default: one a CUDA device; on the CPU one for every 4 cores.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each worker. Default: cores / workers.")]
Dask = Annotated[
    str | None,
    typer.Option(metavar="WHERE", help="Work on a cluster: local:N, a scheduler's address, slurm, pbs, sge or lsf."),
]
DaskOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Of the jobs of slurm, pbs, sge, lsf: queue=long, memory=8GB, ..."),
]
DaskWait = Annotated[
    float | None,
    typer.Option(
        metavar="MINUTES",
        min=0.01,
        help="Give up when there is no worker for so long. Default: 10; with slurm, pbs, sge, lsf a day.",
    ),
]
Limit = Annotated[
    float | None, typer.Option(metavar="MINUTES", min=0.01, help="Give up a scan that takes longer (not with --dask).")
]

Participants = Annotated[
    Path | None, typer.Option(help="A BIDS participants.tsv, whose covariates become columns of the table.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only failures and the last sentence.")]
LogJson = Annotated[
    bool, typer.Option("--log-json", help="Tell everything as JSON, one object a line, on standard output.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Do finished scans again.")]
PlanOnly = Annotated[
    bool, typer.Option("--plan-only", help="Only write down what is to be done: for `cohort slurm-script`.")
]

_OUTPUTS = (
    "space",
    "posteriors",
    "resampled",
    "mask",
    "tissue_maps",
    "color_table",
    "overlay",
    "merge_sides",
    "repeat",
)
_SAME = ("mode", "protocol", "ct", "percentiles", "device", "backend", "precision", "memory")


def settings_from(given: Mapping[str, Any]) -> Settings:
    """The settings that a command's arguments, by name, stand for.

    Raises: UsageError for outputs that cannot be, pictures without matplotlib, a merging of fewer than two networks.
    """
    from synthseg.cohort.work import Settings
    from synthseg.errors import UsageError
    from synthseg.inference.outputs import Outputs

    named = given["weights"] or ()
    weights = (named,) if isinstance(named, str) else tuple(named)
    merge = given.get("merge")
    if merge is not None and len(weights) < 2:
        raise UsageError("--merge", found="fewer than two networks", fix="give --weights once for each of them")
    writer = None
    if given["overlay"]:
        from synthseg.report.overlay import require_matplotlib

        require_matplotlib()
        writer = "synthseg.report.overlay:write_overlay"
    structures = tuple(entry.strip() for entry in given["structures"].split(",") if entry.strip())
    return Settings(
        weights=tuple(_from_anywhere(name) for name in weights),
        merge=merge,
        parcels=given["parc"],
        quality=given["qc"],
        model_dir=str(Path(given["model_dir"]).absolute()) if given["model_dir"] else None,
        outputs=Outputs(structures=structures, **{name: given[name] for name in _OUTPUTS}),
        overlay_writer=writer,
        **{name: given[name] for name in _SAME},
    )


def one_mode(mode: str | None, *, fast: bool, robust: bool) -> str:
    """The mode that ``--mode`` or its short forms ask for. Raises: UsageError if they say different things."""
    from synthseg.errors import UsageError

    short = "-".join(name for name, wanted in (("robust", robust), ("fast", fast)) if wanted)
    if short and mode not in (None, short):
        raise UsageError(f"--mode {mode}", found=f"together with the short form of {short}", fix="give only one")
    return short or mode or "default"


def with_dicom_seg(settings: Settings) -> Settings:
    """Settings with a DICOM SEG after each scan. Raises: UsageError without the packages that write it."""
    from synthseg.cohort.dicom_seg import require_highdicom

    require_highdicom()
    return replace(settings, after="synthseg.cohort.dicom_seg:write_for")


def place_from(given: Mapping[str, Any]) -> Place:
    """Where and on what a command's arguments, by name, let the work be done.

    Raises: UsageError for options that do not go together: none is left out of account silently.
    """
    from synthseg.cohort.coordinate import Place
    from synthseg.cohort.dask_run import QUEUES
    from synthseg.errors import UsageError

    options, dask = {}, given["dask"]
    for pair in given["dask_option"] or []:
        key, separator, value = pair.partition("=")
        if not (key and separator):
            raise UsageError("--dask-option", found=repr(pair), fix="write it as key=value")
        options[key] = value
    if options and dask not in QUEUES:
        found = f"together with --dask {dask}" if dask else "without --dask"
        raise UsageError("--dask-option", found=found, fix="add --dask slurm, or pbs, sge, lsf")
    if given["dask_wait"] and not dask:
        raise UsageError("--dask-wait", found="without --dask", fix="leave it out, or add --dask")
    if dask and dask not in QUEUES and dask.partition(":")[0] != "local" and given["workers"]:
        fix = "leave it out: a scheduler's workers are those that connect to it"
        raise UsageError("--workers", found=f"together with --dask {dask}", fix=fix)
    return Place(
        out=given["out"],
        workers=given["workers"],
        threads=given["threads"],
        dask=dask,
        dask_options=options,
        patience_s=given["dask_wait"] * 60 if given["dask_wait"] else None,
        limit_s=given["limit"] * 60 if given["limit"] else None,
        overwrite=given.get("overwrite", False),
        participants=given["participants"],
    )


def _from_anywhere(weights: str) -> str:
    """A path that leads there from other working directories and other machines, too; names stay names."""
    path = Path(weights).expanduser()
    return str(path.absolute()) if path.is_file() else weights
