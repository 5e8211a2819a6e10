"""``synthseg priors``: intensity priors of a contrast, from images and their label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from synthseg.generation.prior_files import Dataset, Estimate

priors_app = typer.Typer(
    help="Intensity priors: training for one contrast or resolution (SynthSeg-R, -RC).", no_args_is_help=True
)


@priors_app.command("estimate")
def estimate(
    images: Annotated[Path, typer.Argument(help="Images of one contrast: a folder, or one file.")],
    labels: Annotated[Path, typer.Argument(help="Their label maps, paired by name: a folder, or one file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for arrays, tables and recipe lines.")],
    also_images: Annotated[
        list[Path] | None,
        typer.Option(help="A further dataset, with --also-labels: rows of its own; each draw takes one dataset's."),
    ] = None,
    also_labels: Annotated[list[Path] | None, typer.Option(help="Its label maps.")] = None,
    protocol: Annotated[
        str, typer.Option(help="Label protocol of the maps: a name, a .tsv, or the original's lists.")
    ] = "synthseg-generation",
    classes: Annotated[
        str, typer.Option(help="Which labels share a Gaussian: contrast, random, or a .npy list of classes.")
    ] = "contrast",
    rescale: Annotated[
        bool, typer.Option("--rescale/--no-rescale", help="Stretch the 2nd to 98th percentile to 0 to 255 first.")
    ] = True,
    rescale_over: Annotated[
        str | None, typer.Option(help="Upper percentile of signal (the default: voxels other than 0), or of all.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, max=16, help="Channels of each image (fourth axis).")] = 1,
    percentiles: Annotated[str | None, typer.Option(help="Of the scale's ends. Default: 2,98.")] = None,
    mad_scale: Annotated[
        str | None, typer.Option(help="normal (the default): x 1.4826, a Gaussian's standard deviation; or raw.")
    ] = None,
    interior: Annotated[bool, typer.Option(help="Leave out voxels at the labels' borders (partial volume).")] = False,
    original: Annotated[
        bool,
        typer.Option(help="The original's rules to the digit: raw deviations, absent classes as 0, no resampling."),
    ] = False,
    image_pattern: Annotated[str, typer.Option(help="Only images of such names, e.g. '*_t1.nii.gz'.")] = "*",
    label_pattern: Annotated[str, typer.Option(help="Only label maps of such names, e.g. '*_aseg.nii.gz'.")] = "*",
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
) -> None:
    """Measure each tissue's intensities: means and standard deviations over images, for contrast-specific training."""
    from synthseg.configs import config_from_dict
    from synthseg.errors import UsageError
    from synthseg.generation.estimation import EstimationRules, original_rules
    from synthseg.generation.prior_files import ClassColumn, estimate_priors, require_free, write_estimate
    from synthseg.labels import load_protocol

    if original and (interior or mad_scale or rescale_over or percentiles):
        fix = "leave out --interior, --mad-scale, --rescale-over and --percentiles: --original has rules of its own"
        raise UsageError("--original", found="other rules beside it", fix=fix)
    rules = original_rules(rescale=rescale)
    if not original:
        chosen: dict[str, Any] = {
            "rescale": rescale,
            "interior": interior,
            "mad_scale": mad_scale,
            "rescale_over": rescale_over,
        }
        chosen["percentiles"] = _numbers(percentiles)
        given = {key: value for key, value in chosen.items() if value is not None}
        rules = config_from_dict(EstimationRules, given, where="priors")
    more = (also_images or [], also_labels or [])
    if len(more[0]) != len(more[1]):
        found_there = f"{len(more[0])} beside {len(more[1])} --also-labels"
        raise UsageError("--also-images", found=found_there, fix="give both for each further dataset")
    places = [(images, labels), *zip(*more, strict=True)]
    require_free(out, overwrite=overwrite)
    datasets = [_dataset(*place, image_pattern, label_pattern) for place in places]
    table = load_protocol(protocol)
    found = estimate_priors(
        datasets,
        table,
        ClassColumn.of(table, classes),
        rules,
        channels=channels,
        resample=not original,
        on_pair=_tell,
    )
    files = write_estimate(found, out, overwrite=overwrite)
    _print_estimate(found)
    for note in _remarks(found, absent_is_zero=original):
        typer.echo(f"note: {note}", err=True)
    typer.echo("\n".join(str(path) for path in files))


@priors_app.command("acquisition")
def acquisition(
    images: Annotated[Path, typer.Argument(help="Images: a folder, or one file.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the lines here (.toml).")] = None,
    image_pattern: Annotated[str, typer.Option(help="Only images of such names, e.g. '*_t1.nii.gz'.")] = "*",
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Read the images' voxel sizes: recipe lines for resolution-specific training."""
    from synthseg.cli.places import volumes_in
    from synthseg.errors import OutputError
    from synthseg.files import atomic_file
    from synthseg.generation.prior_files import acquisition_lines
    from synthseg.volumes import read_volume, to_ras

    if out is not None and out.exists() and not overwrite:
        raise OutputError(out, found="an existing file", fix="choose another name, or add --overwrite")
    sizes = []
    for path in volumes_in(images, image_pattern, what="image"):
        x, y, z = (float(s) for s in to_ras(read_volume(path))[0].spacing_mm)
        sizes.append((x, y, z))
    text = acquisition_lines(sizes)
    if out is not None:
        with atomic_file(out) as file:
            file.write(text.encode())
    typer.echo(text, nl=False)


@priors_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="t1, or a table that `synthseg priors estimate` wrote (.tsv).")],
    protocol: Annotated[str, typer.Option(help="Label protocol whose classes these are.")] = "synthseg-generation",
) -> None:
    """Print a table of priors, class by class."""
    from synthseg.generation.prior_files import shortened
    from synthseg.generation.priors import load_priors
    from synthseg.labels import load_protocol

    means, stds = load_priors(name)
    members: list[list[str]] = [[] for _ in means]
    for label in load_protocol(protocol).labels:
        if label.contrast_class < len(members):
            members[label.contrast_class].append(label.name)
    rows = [(str(k), *_two(means[k]), *_two(stds[k]), shortened(members[k])) for k in range(len(means))]
    _print_rows(rows, "labels (contrast class)")


def _numbers(text: str | None) -> tuple[float, ...] | None:
    from synthseg.errors import UsageError

    try:
        return None if text is None else tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError("--percentiles", found=repr(text), fix="give two numbers such as 2,98") from error


def _two(pair: tuple[float, float]) -> tuple[str, str]:
    return f"{pair[0]:.1f}", f"{pair[1]:.1f}"


def _dataset(images: Path, labels: Path, image_pattern: str, label_pattern: str) -> Dataset:
    """Images and the label maps that belong to them by name (the rule of ``evaluation/pairing.py``)."""
    from synthseg.cli.places import volumes_in
    from synthseg.evaluation.pairing import pair_files
    from synthseg.generation.paired import match_files
    from synthseg.generation.prior_files import Dataset

    files = volumes_in(images, image_pattern, what="image")
    if len(files) == 1 and labels.is_file():
        return Dataset(images.name, ((files[0], labels),))
    found = [
        (pair.predicted, pair.truth)
        for path in files
        for pair in pair_files(path, labels, truth_pattern=label_pattern).pairs
    ]
    pairs = match_files(files, found, shared=labels.is_file())
    return Dataset(images.name, tuple(pairs))


def _tell(name: str, notes: tuple[str, ...]) -> None:
    typer.echo(f"read {name}", err=True)
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _remarks(found: Estimate, *, absent_is_zero: bool) -> list[str]:
    remarks = []
    if found.unseen():
        become = "0, as in the original" if absent_is_zero else "any intensity (the paper's uniform ranges)"
        numbers = ", ".join(map(str, found.unseen()))
        remarks.append(f"classes that no image of some dataset shows, and that become {become}: {numbers}")
    for k, share in found.clipped().items():
        remarks.append(
            f"class {k}: {100 * share:.0f} % of its voxels lie at 255, where the original's scale ends: its numbers say"
            " little; leave --original out, whose scale goes on"
        )
    for block in found.blocks:
        if len(block.images) == 1:
            remarks.append(f"{block.name}: one image says nothing about differences between images, which become 0")
    return remarks


def _print_estimate(found: Estimate) -> None:
    names = found.class_names()
    for block in found.blocks:
        typer.echo(f"{block.name}: {len(block.images)} images")
        columns = zip(*block.priors.means, *block.priors.stds, strict=True)
        rows = [(str(k), *(f"{v:.1f}" for v in row), names[k]) for k, row in enumerate(columns)]
        _print_rows(rows, "labels")


def _print_rows(rows: Sequence[tuple[str, ...]], last: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("class", "mean", "+-", "std", "+-"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(last)
    for row in rows:
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
