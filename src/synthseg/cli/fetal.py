"""``synthseg fetal``: label maps of fetal brains made ready for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROTOCOLS = ("feta", "dhcp")

fetal_app = typer.Typer(no_args_is_help=True, help="Prepare label maps of fetal brains for training.")


@fetal_app.command("prepare")
def prepare(
    labels: Annotated[Path, typer.Argument(help="Label maps of FeTA's seven tissues: a folder, or one file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the prepared maps.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Images of the maps, paired by name: surroundings from these. Maps without: drawn."),
    ] = None,
    versions: Annotated[int, typer.Option(min=1, max=100, help="Drawn surroundings of each map without image.")] = 6,
    protocol: Annotated[str, typer.Option(help="Of the maps: feta, or dhcp, which is merged to FeTA.")] = "feta",
    seed: Annotated[int, typer.Option(help="Same seed and file name, same surroundings.")] = 0,
    image_pattern: Annotated[str, typer.Option(help="Only images of such names, e.g. '*_T2w.nii.gz'.")] = "*",
    label_pattern: Annotated[str, typer.Option(help="Only label maps of such names, e.g. '*_dseg.nii.gz'.")] = "*",
    cube: Annotated[
        int | None, typer.Option(min=1, help="Centre each map in a cube of so many voxels; the reference's is 256.")
    ] = None,
    reference_box: Annotated[
        bool, typer.Option("--reference-box", help="With --cube: lose the last slab on each axis, as the reference.")
    ] = False,
    cut: Annotated[bool, typer.Option("--cut", help="With --cube: cut larger maps instead of refusing them.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Make maps anew that exist.")] = False,
) -> None:
    """Surround fetal brains with labels that are drawn in training and never predicted (10 to 13).

    From a map's own image, or without one by geometry: fluid, skull, scalp, womb, and what a mask leaves of them. Pack
    the results with: synthseg bank OUT -o bank.safetensors --protocol feta-generation. Run again, the command goes on
    where it was.
    """
    from synthseg.anatomies.prepared import TABLE, PrepareConfig, prepare_maps
    from synthseg.cli.places import images_of, volumes_in
    from synthseg.errors import UsageError

    if protocol not in PROTOCOLS:
        raise UsageError("--protocol", found=repr(protocol), fix=f"give one of {', '.join(PROTOCOLS)}")

    files = volumes_in(labels, label_pattern, what="label map")
    found = {} if images is None else images_of(files, images, image_pattern)
    config = PrepareConfig(
        versions=versions, dhcp=protocol == "dhcp", cube=cube, drop_last_slab=reference_box, cut=cut, seed=seed
    )
    for result in prepare_maps(files, out, config, images=found, overwrite=overwrite):
        typer.echo(f"{result.path}: {result.how}{' (there already)' if result.resumed else ''}")
    typer.echo(out / TABLE)
