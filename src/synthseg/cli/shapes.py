"""``synthseg shapes``: label maps with ventricles, callosum, cerebellum, cortex and fluid as no map shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("shapes")(shapes)


def shapes(
    labels: Annotated[Path, typer.Argument(help="Label maps: a folder, or one file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the versions and their shapes.tsv.")],
    per_map: Annotated[int, typer.Option(min=1, max=99, help="Random versions of each map.")] = 1,
    protocol: Annotated[
        str, typer.Option(help="Label protocol of the maps: a name, a .tsv, or the original's lists.")
    ] = "feta",
    recipe: Annotated[
        Path | None, typer.Option(help="A TOML file with ranges of severity; see docs/shapes.md.")
    ] = None,
    kinds: Annotated[str, typer.Option(help="Only these kinds of change, separated by commas; empty: all.")] = "",
    edit: Annotated[
        str, typer.Option(help="One change by name instead, KIND=FACTOR, e.g. ventricles=2.5; one version a map.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Same seed, file name and number, same version.")] = 0,
    originals: Annotated[bool, typer.Option(help="Put the maps themselves beside their versions.")] = False,
    label_pattern: Annotated[str, typer.Option(help="Only label maps of such names, e.g. '*_feta.nii.gz'.")] = "*",
    overwrite: Annotated[bool, typer.Option(help="Make versions anew that exist.")] = False,
) -> None:
    """Deform and edit label maps into shapes that no map shows, for training on rare anatomy.

    A severity is the factor on a structure's volume. Run again, the command goes on where it was.
    """
    from synthseg.anatomies.shapes import ShapeSpec, load_spec, spec_with
    from synthseg.anatomies.shapes.files import TABLE, ShapeJob, shape_files
    from synthseg.cli.places import volumes_in
    from synthseg.labels import load_protocol

    spec = ShapeSpec() if recipe is None else load_spec(recipe)
    names = tuple(word.strip() for word in kinds.split(",") if word.strip())
    job = ShapeJob(
        protocol=load_protocol(protocol),
        spec=spec_with(names, spec) if names else spec,
        per_map=per_map,
        change=_change(edit),
        seed=seed,
        keep_original=originals,
    )
    files = volumes_in(labels, label_pattern, what="label map")
    for made in shape_files(files, out, job, overwrite=overwrite):
        what = ", ".join(f"{e.kind} x {e.reached:.2f}" for e in made.edits) or "as it was"
        typer.echo(f"{made.path}: {what}{' (there already)' if made.resumed else ''}")
        for e in made.edits:
            if abs(e.reached - e.severity) > 0.1 * max(e.severity, 0.5):
                typer.echo(f"note: {made.path.name}: {e.kind} had room for x {e.reached:.2f} only", err=True)
    typer.echo(out / TABLE)


def _change(text: str) -> tuple[str, float] | None:
    """KIND=FACTOR. Raises: UsageError."""
    from synthseg.anatomies.shapes.kinds import KINDS, kind_of
    from synthseg.errors import UsageError

    if not text:
        return None
    name, _, factor = text.partition("=")
    try:
        return kind_of(name.strip()).name, float(factor)
    except ValueError:
        fix = f"write KIND=FACTOR, e.g. ventricles=2.5; kinds: {', '.join(KINDS)}"
        raise UsageError("--edit", found=repr(text), fix=fix) from None
