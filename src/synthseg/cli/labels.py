"""``synthseg labels``: look at label tables, and make one for your own maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from synthseg.labels.inspect import Inspection, LabelMap
    from synthseg.labels.protocol import LabelProtocol

labels_app = typer.Typer(help="Label tables: what the values of a label map mean.", no_args_is_help=True)


@labels_app.command("inspect")
def inspect_command(
    folder: Annotated[Path, typer.Argument(help="Folder of label maps (or one label map).")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the proposed table here (.tsv).")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the table if it exists.")] = False,
) -> None:
    """List the values in your label maps and propose a table: sides, partners and classes, for you to correct."""
    from synthseg.errors import OutputError
    from synthseg.files import atomic_file
    from synthseg.labels.inspect import inspect_folder
    from synthseg.volumes import is_volume_path

    if out is not None and out.exists() and not overwrite:
        raise OutputError(out, found="an existing file", fix="choose another name, or add --overwrite")
    inspection = inspect_folder(folder, read=_read_label_map, accepts=is_volume_path)
    _print_inspection(inspection)
    if out is not None:
        with atomic_file(out) as file:
            file.write(inspection.to_table().encode("utf-8"))
        typer.echo(f"Wrote {out}: check every row, then use it as the protocol of your recipe.")


@labels_app.command("list")
def list_command() -> None:
    """List the label tables that come with the package."""
    from synthseg.labels import builtin_protocols, load_protocol

    table = _grid("Built-in label tables", ("labels", "targets"), ("name", "description"))
    for name in builtin_protocols():
        protocol = load_protocol(name)
        table.add_row(str(len(protocol)), str(len(protocol.target_values)), name, protocol.description)
    _console().print(table)


@labels_app.command("show")
def show_command(
    name: Annotated[
        str, typer.Argument(help="A built-in table's name, a .tsv, or the original's lists (a folder or a .npy).")
    ],
    plain: Annotated[bool, typer.Option("--plain", help="Print the table's text, to copy and edit.")] = False,
) -> None:
    """Print one label table."""
    from synthseg.labels import load_protocol

    protocol = load_protocol(name)
    if plain:
        typer.echo(protocol.to_table(), nl=False)
    else:
        _print_protocol(protocol)


@labels_app.command("from-original")
def from_original_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The table to write (.tsv).")],
    folder: Annotated[
        Path | None, typer.Argument(help="Folder with generation_labels.npy and the lists beside it, by their names.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="generation_labels.npy: neutral, left, right.")] = None,
    n_neutral: Annotated[
        int | None, typer.Option(min=1, help="Labels before the left ones. Default: by FreeSurfer's numbering.")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="generation_classes.npy.")] = None,
    contrast_classes: Annotated[
        Path | None, typer.Option(help="generation_classes_contrast_specific.npy. Default: --classes.")
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option(help="Segmentation labels, aligned. Without --labels: a table of a network's outputs."),
    ] = None,
    names: Annotated[Path | None, typer.Option(help="Names of the targets, aligned.")] = None,
    topology: Annotated[Path | None, typer.Option(help="Topological classes, aligned.")] = None,
    quality: Annotated[Path | None, typer.Option(help="Groups of the quality score, aligned.")] = None,
    tissue: Annotated[Path | None, typer.Option(help="Groups of S1 and the denoiser, aligned.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the table if it exists.")] = False,
) -> None:
    """Turn the original's .npy lists into one table: side, partner, classes and target become columns."""
    from synthseg.errors import OutputError
    from synthseg.files import atomic_file
    from synthseg.labels.freesurfer import doubts

    if out.exists() and not overwrite:
        raise OutputError(out, found="an existing file", fix="choose another name, or add --overwrite")
    lists: dict[str, Any] = {"names": names, "topology": topology, "quality": quality, "tissue": tissue}
    lists |= {"n_neutral": n_neutral, "targets": targets}
    protocol = _original_protocol(folder, labels, {"classes": classes, "contrast_classes": contrast_classes}, lists)
    found = doubts(protocol)
    for doubt in found[:3]:
        typer.echo(f"note: {doubt}", err=True)
    if len(found) > 3:
        typer.echo(f"note: and {len(found) - 3} more; is the number of neutral labels right?", err=True)
    with atomic_file(out) as file:
        file.write(protocol.to_table().encode("utf-8"))
    typer.echo(f"{out}: {len(protocol)} labels, {len(protocol.target_values)} targets")


def _original_protocol(
    folder: Path | None, labels: Path | None, classed: dict[str, Any], lists: dict[str, Any]
) -> LabelProtocol:
    from synthseg.errors import UsageError
    from synthseg.labels import load_protocol
    from synthseg.labels.original import outputs_from_npy, protocol_from_npy

    options = {"labels": labels, **classed, **lists}
    given = [f"--{key.replace('_', '-')}" for key, value in options.items() if value is not None]
    if folder is not None:
        if given:
            fix = "give the folder, or the files one by one"
            raise UsageError(given[0], found=f"beside the folder {folder}", fix=fix)
        return load_protocol(folder)
    if labels is not None:
        return protocol_from_npy(labels, **classed, **lists)
    if lists["targets"] is None or any(classed.values()):
        fix = "give a folder, --labels generation_labels.npy, or --targets alone for a table of outputs"
        raise UsageError("labels from-original", found=" ".join(given) or "no list", fix=fix)
    return outputs_from_npy(**lists)


def _read_label_map(path: Path) -> LabelMap:
    from synthseg.labels.inspect import LabelMap
    from synthseg.volumes import read_volume

    volume = read_volume(path, labels=True)
    for note in volume.notes:
        typer.echo(f"{path}: {note}", err=True)
    return LabelMap(str(path), volume.data, volume.spacing_mm, volume.affine)


def _console() -> Console:
    """A console that does not squeeze tables into 80 columns when the output goes into a file or pipe."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def _grid(title: str, numbers: Sequence[str], words: Sequence[str]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    for column in words:
        table.add_column(column)
    return table


def _print_inspection(inspection: Inspection) -> None:
    from rich.markup import escape

    numbers = ("value", "mean ml", "min ml", "max ml", "maps", "class", "partner")
    table = _grid(f"{len(inspection.maps)} label map(s)", numbers, ("side", "name", "why"))
    for label, facts, reason in zip(inspection.protocol.labels, inspection.facts, inspection.reasons, strict=True):
        sizes = [f"{ml:.2f}" if facts.maps else "-" for ml in (facts.mean_ml, facts.min_ml, facts.max_ml)]
        partner = "" if label.side == "neutral" else str(label.partner)
        cells = [*sizes, str(facts.maps), str(label.generation_class), partner, label.side, escape(label.name), reason]
        table.add_row(str(label.value), *cells)
    console = _console()
    console.print(table)
    for note in inspection.notes:
        console.print(f"Note: {note}", markup=False)


def _print_protocol(protocol: LabelProtocol) -> None:
    from rich.markup import escape
    from rich.text import Text

    numbers = ("value", "partner", "class", "contrast", "target", "topology", "quality", "tissue")
    table = _grid(f"{protocol.name}: {protocol.description}", numbers, ("side", "name", ""))
    for label in protocol.labels:
        classes = (label.partner, label.generation_class, label.contrast_class, label.target)
        cells = (label.value, *classes, label.topology, label.quality, label.tissue)
        swatch = Text("  ", style="on #{:02x}{:02x}{:02x}".format(*label.color))
        table.add_row(*map(str, cells), label.side, escape(label.name), swatch)
    _console().print(table)
