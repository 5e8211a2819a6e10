"""``synthseg sublabels``: split labels into parts with Gaussians of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("sublabels")(sublabels)


def sublabels(
    labels: Annotated[Path, typer.Argument(help="Label maps: a folder, or one file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the new label maps and their protocol.tsv.")],
    protocol: Annotated[
        str, typer.Option(help="Label protocol of the maps: a name, a .tsv, or the original's lists.")
    ] = "synthseg-generation",
    images: Annotated[
        Path | None,
        typer.Option(help="Images of the maps, paired by name: split by intensity. Maps without: by geometry."),
    ] = None,
    foreground: Annotated[int, typer.Option(min=1, help="Parts of each label; 1 leaves them whole.")] = 2,
    background: Annotated[str, typer.Option(help="Parts of the background: N, or LOW-HIGH for a random N.")] = "3-10",
    keep: Annotated[str, typer.Option(help="Labels that stay whole: values, separated by commas.")] = "",
    versions: Annotated[int, typer.Option(min=1, max=100, help="Of each map, each with another N.")] = 1,
    smooth: Annotated[int, typer.Option(min=0, max=10, help="Passes of a majority vote against specks.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed and file name, same parts.")] = 0,
    image_pattern: Annotated[str, typer.Option(help="Only images of such names, e.g. '*_t1.nii.gz'.")] = "*",
    label_pattern: Annotated[str, typer.Option(help="Only label maps of such names, e.g. '*_seg.nii.gz'.")] = "*",
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
) -> None:
    """Split each label into parts that get intensities of their own, and stay one label in the target.

    For label maps that leave tissue unmodelled, such as hearts without a chest (Billot et al. 2023, section 5.4). Train
    on the results with the protocol.tsv beside them.
    """
    from synthseg.cli.places import images_of, volumes_in
    from synthseg.generation.sublabel_files import split_files
    from synthseg.generation.sublabels import SubLabelSpec
    from synthseg.labels import load_protocol

    spec = SubLabelSpec(
        protocol=load_protocol(protocol),
        foreground=foreground,
        background=_range(background),
        keep=_values(keep),
        smooth=smooth,
    )
    files = volumes_in(labels, label_pattern, what="label map")
    found = {} if images is None else images_of(files, images, image_pattern)
    for result in split_files(files, out, spec, images=found, versions=versions, seed=seed, overwrite=overwrite):
        how = "geometry" if result.image is None else result.image.name
        typer.echo(f"{result.path}: background in {result.background}, by {how}")
        for note in result.notes:
            typer.echo(f"note: {note}", err=True)
    typer.echo(out / "protocol.tsv")


def _range(text: str) -> tuple[int, int]:
    from synthseg.errors import UsageError

    low, dash, high = text.partition("-")
    if not low.strip().isdecimal() or (dash and not high.strip().isdecimal()):
        raise UsageError("--background", found=repr(text), fix="give a number of parts, or two such as 3-10")
    return int(low), int(high) if dash else int(low)


def _values(text: str) -> tuple[int, ...]:
    from synthseg.errors import UsageError

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise UsageError("--keep", found=repr(text), fix="give label values such as 1,64,71")
    return tuple(int(word) for word in words)
