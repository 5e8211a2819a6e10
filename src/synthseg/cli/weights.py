"""`synthseg weights`: what weights there are, what they are, whether they are whole; other forms of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthseg.errors import UsageError
from synthseg.weights.places import use_model_dir

if TYPE_CHECKING:
    from rich.console import Console

weights_app = typer.Typer(help="List, describe, verify and import weights.", no_args_is_help=True)
ModelDir = Annotated[Path | None, typer.Option(help="Folder to look in first: the original's .h5 files, or ours.")]
Role = Annotated[str | None, typer.Option(help="which network, of a family or a file with several")]

LISTED = ("name", "role", "labels", "mm", "steps", "MB", "from")  # the licence is in `show`
_NOT_STATED = "not stated"


@weights_app.command("list")
def list_command(model_dir: ModelDir = None) -> None:
    """List the weights that a name leads to: of --model-dir, $SYNTHSEG_WEIGHTS_DIR, $FREESURFER_HOME, the package."""
    from rich.markup import escape
    from rich.table import Column, Table

    from synthseg.weights.store import list_weights

    use_model_dir(model_dir)
    entries = list_weights()
    table = Table(*(Column(key, no_wrap=key != "labels") for key in LISTED), box=None, padding=(0, 1, 0, 0))
    for entry in entries:
        # names come from files: brackets in them are no markup
        name = escape(f"{entry.name} ({entry.alias})" if entry.alias else entry.name)
        size = f"{entry.path.stat().st_size / 1e6:.1f}" if entry.path.exists() else ""
        if entry.card is None:
            table.add_row(name, "", f"[red]unusable: {escape(str(entry.problem))}[/red]", "", "", size, entry.source)
            continue
        card = entry.card
        facts = (escape(card["protocol"]["name"]), f"{card['spacing_mm']:g}", _number(card.get("steps")))
        table.add_row(name, entry.role, *facts, size, entry.source)
    console = _console()
    if entries:
        console.print(table)
    else:
        console.print("No weights are installed; set SYNTHSEG_WEIGHTS_DIR to a folder that holds some.")


@weights_app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="a name from `synthseg weights list`, or the path of a file")],
    as_json: Annotated[bool, typer.Option("--json", help="print the whole card as JSON")] = False,
    role: Role = None,
    model_dir: ModelDir = None,
) -> None:
    """Show the card of weights: their role, what they segment, how they were made, under which terms."""
    from synthseg.weights.store import card_of, locate

    use_model_dir(model_dir)
    located = locate(name, role)
    card, path = card_of(located), located.path
    if as_json:
        typer.echo(json.dumps(card, indent=2))
        return
    _print_card(card, path)


@weights_app.command("verify")
def verify_command(
    names: Annotated[list[str] | None, typer.Argument(help="names or paths; all known weights when left out")] = None,
    role: Role = None,
    model_dir: ModelDir = None,
) -> None:
    """Check weights: file, card, hash, labels and architecture. Exit code 1 when any of them fails."""
    from synthseg.errors import SynthsegError
    from synthseg.weights import list_weights, verify_weights

    use_model_dir(model_dir)
    asked: list[tuple[str | Path, str | None]] = [(name, role) for name in names or ()]
    if not asked:
        asked = [(entry.path, entry.role) for entry in list_weights()]
    if not asked:
        typer.echo("No weights are installed: nothing to verify.", err=True)
        raise typer.Exit(1)
    failed = False
    for name, of_role in asked:
        try:
            report = verify_weights(name, of_role)
        except SynthsegError as error:
            failed = True
            typer.echo(f"FAILED  {error}", err=True)
        else:
            typer.echo(f"ok  {report.name} ({report.path}): {'; '.join(report.checks)}")
    if failed:
        raise typer.Exit(1)


@weights_app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="a Keras .h5 file: of SynthSeg 1.0 or 2.0, or of your own training")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="*.safetensors, or a folder. Default: $SYNTHSEG_WEIGHTS_DIR, else here."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="what to call the weights; default: after the file")] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="labels of a network of your own: a name, a .tsv, or the original's lists (a folder or a .npy);"
            " one option for each network"
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="store half precision: half the size, 11 bits")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that are there")] = False,
) -> None:
    """Read the original's networks from Keras .h5, check every tensor, and write them as weights of synthseg."""
    from synthseg.weights.importing import import_keras

    done = import_keras(file, out, name=name, protocols=protocol or (), half=half, overwrite=overwrite)
    for one in done:
        count = f"{one.arrays} of {one.arrays} tensors of {one.prefix}"
        typer.echo(f"{count} -> {one.name} ({one.role}, {one.labels} labels of {one.protocol}): {one.path}")


@weights_app.command("export")
def export_command(
    name: Annotated[str, typer.Argument(help="a name from `synthseg weights list`, or the path of a file")],
    onnx: Annotated[Path | None, typer.Option(help="the file to write, *.onnx")] = None,
    openvino: Annotated[Path | None, typer.Option(help="the file to write, *.xml; weights go into *.bin")] = None,
    shape: Annotated[str | None, typer.Option(help="fix the input's sides, in voxels: X,Y,Z. Default: open.")] = None,
    role: Role = None,
    model_dir: ModelDir = None,
) -> None:
    """Write a whole network for ONNX or OpenVINO, image to posteriors, checked against torch."""
    from synthseg.engine.export import require_target
    from synthseg.weights.export import export_weights

    use_model_dir(model_dir)
    targets = [target for target in (onnx, openvino) if target is not None]
    if not targets:
        raise UsageError("synthseg weights export", found="no file to write", fix="give --onnx FILE or --openvino FILE")
    for target, suffix in ((onnx, ".onnx"), (openvino, ".xml")):
        if target is not None and target.suffix != suffix:
            raise UsageError(target, found=f"the suffix {target.suffix!r}", fix=f"name the file *{suffix}")
    sides = None if shape is None else _sides(shape)
    for target in targets:
        require_target(target)  # all of them before any is written
    for target in targets:
        exported, facts = export_weights(name, target, sides, role=role)
        by = " and ".join(exported.checked_by)
        typer.echo(f"wrote {target}: posteriors within {exported.largest_difference:.1e} of torch's by {by}")
    for key, value in facts.items():
        typer.echo(f"  {key}: {value}")


@weights_app.command("calibrate")
def calibrate_command(
    name: Annotated[str, typer.Argument(help="a name from `synthseg weights list`, or the path of a file")],
    bank: Annotated[Path, typer.Option(help="packed label maps (`synthseg bank`) to make synthetic scans of")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the weights file to write, *.safetensors")],
    images: Annotated[
        int | None, typer.Option("-n", "--images", min=1, help="synthetic scans to look at; default 8, --quality 40")
    ] = None,
    seed: Annotated[int, typer.Option(help="same seed, same scans")] = 0,
    recipe: Annotated[
        Path | None, typer.Option(help="recipe of the weights' training, where their card lacks it")
    ] = None,
    temperature: Annotated[
        bool,
        typer.Option(
            "--temperature",
            help="Fit how sure the network may be, by likelihood, for the mean of several networks; not int8's ranges.",
        ),
    ] = False,
    quality: Annotated[
        bool,
        typer.Option(
            "--quality",
            help="Of a network that predicts quality: what it predicts for clear images, from which the limits of "
            "its verdicts follow. Needs the --recipe of its training.",
        ),
    ] = False,
    role: Role = None,
    model_dir: ModelDir = None,
) -> None:
    """Add to weights what int8 needs, the ranges of values inside the network; a temperature; or limits of quality.

    Tensors stay.
    """
    from synthseg.training.calibration import calibrate

    use_model_dir(model_dir)
    if temperature and quality:
        raise UsageError("--quality", found="--temperature as well", fix="give one of them")
    if quality:
        _calibrate_quality(name, bank, out, images=images or 40, seed=seed, recipe=recipe, role=role)
        return
    if temperature:
        _calibrate_temperature(name, bank, out, images=images or 8, seed=seed, recipe=recipe, role=role)
        return
    card = calibrate(name, bank, out, images=images or 8, seed=seed, recipe=recipe, role=role)
    typer.echo(f"wrote {out}: {len(card['int8']['ranges'])} convolutions of {card['name']} can run in int8")


def _calibrate_quality(
    name: str, bank: Path, out: Path, *, images: int, seed: int, recipe: Path | None, role: str | None
) -> None:
    from synthseg.training.typical import calibrate_quality

    if role not in (None, "quality"):
        raise UsageError("--role", found=f"{role} with --quality", fix="leave it out")
    if recipe is None:
        fix = "give the recipe of the network's training, e.g. recipes/plus/quality.toml"
        raise UsageError("--recipe", found="none with --quality", fix=fix)

    def told(done: int, count: int) -> None:
        typer.echo(f"\r{done} of {count} images", nl=done == count, err=True)

    card = calibrate_quality(name, bank, out, images=images, seed=seed, recipe=recipe, told=told)
    typer.echo(f"wrote {out}: {card['name']} predicts for clear images")
    for group, value in card["typical_quality"]["scores"].items():
        typer.echo(f"  {group}: {value:.3f} (true {card['typical_quality']['true'][group]:.3f})")


def _calibrate_temperature(name: str, bank: Path, out: Path, **options: Any) -> None:
    from synthseg.training.temperature import calibrate_temperature

    card = calibrate_temperature(name, bank, out, **options)
    (nll, then), (error, less) = card["calibration"]["nll"], card["calibration"]["calibration_error"]
    typer.echo(f"wrote {out}: temperature {card['temperature']:.3f} of {card['name']}")
    typer.echo(f"  -log likelihood {nll:.4f} -> {then:.4f}, calibration error {error:.4f} -> {less:.4f}")


def _sides(text: str) -> tuple[int, int, int]:
    """Raises: UsageError unless the text is three whole numbers."""
    try:
        x, y, z = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError("--shape", found=repr(text), fix="give three whole numbers: --shape 160,192,160") from error
    return x, y, z


def _print_card(card: dict[str, Any], path: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from synthseg.weights.card import role_of

    table = Table(show_header=False, box=None)
    architecture = ", ".join(f"{key} {value}" for key, value in card["architecture"].items() if key != "kind")
    rows = card["protocol"]["rows"]
    facts = {
        "name": card["name"],
        "role": role_of(card),
        "file": f"{path} ({path.stat().st_size / 1e6:.1f} MB)",
        "labels": f"{card['protocol']['name']}: {card['protocol'].get('description', '')} ({len(rows)} rows)",
        "spacing": f"{card['spacing_mm']:g} mm",
        "architecture": f"{card['architecture']['kind']} ({architecture})",
        "steps": _number(card.get("steps")),
        "created": card["created"],
        "licence": card.get("licence"),
        "sha256": card["sha256"],
    }
    shown = {*facts, "architecture", "protocol", "spacing_mm", "format"}
    for key, value in {**facts, **{key: value for key, value in card.items() if key not in shown}}.items():
        table.add_row(escape(key), escape(_readable(value)))
    _console().print(table)
    names = Table("value", "structure", title="Labels")
    for row in rows:
        names.add_row(str(row.get("value")), escape(str(row.get("name"))))
    _console().print(names)


def _readable(value: Any) -> str:
    if value is None or value == "":
        return _NOT_STATED
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_readable(item).replace(chr(10), ', ')}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_readable(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _NOT_STATED


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
