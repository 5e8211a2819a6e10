"""``synthseg generate``: look at what training sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthseg.errors import UsageError

if TYPE_CHECKING:
    from synthseg.generation.config import GenerationConfig

COUNT, PRESET = 10, "paper"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("generate")(generate)


def generate(
    labels: Annotated[Path, typer.Argument(help="Label maps (a folder or a file), or a packed bank.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the pairs.")],
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, help=f"How many pairs. Default: {COUNT}.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Training recipe whose [generation] is used.")] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Without a recipe: {PRESET} (the default), original or another preset.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Label protocol of the maps: a name, a .tsv, or the original's lists (a folder or a .npy)."
            " Default: synthseg-generation, or the bank's."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed and kind of device, same pairs. Default: 0.")] = None,
    replay: Annotated[list[Path] | None, typer.Option(help="Make the pairs of these recorded draws instead.")] = None,
    figure: Annotated[bool, typer.Option("--figure/--no-figure", help="Also draw the pairs as pairs.png.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Generate image and target pairs, a record of each draw, and a figure of them."""
    if replay and (count is not None or seed is not None):
        fix = "leave out -n and --seed: each recorded draw gives its one pair"
        raise UsageError("--replay", found="a number of pairs or a seed beside it", fix=fix)
    config = _config(recipe, preset)
    from synthseg.generation.write import generate_pairs, open_bank
    from synthseg.inference.predict import pick_device
    from synthseg.labels.protocol import load_protocol
    from synthseg.report.pairs import MAX_ROWS, require_matplotlib, write_pairs_figure

    if figure:
        require_matplotlib()
    place = pick_device(device)
    table = load_protocol(protocol) if protocol is not None else None
    bank = open_bank(labels, table, on_map=lambda name: typer.echo(f"read {name}", err=True)).to(place)
    shown, made = [], 0
    wanted = COUNT if count is None else count
    for pair in generate_pairs(bank, config, out, count=wanted, seed=seed or 0, replay=replay or ()):
        typer.echo(f"{pair.image} (from {pair.map_name})")
        if pair.note:
            typer.echo(f"note: {pair.note}", err=True)
        made += 1
        if figure and made <= MAX_ROWS:  # the others are on disk only: a hundred pairs would fill the memory
            shown.append(pair)
    if figure:
        path = write_pairs_figure(shown, bank.protocol, out / "pairs.png")
        typer.echo(path if made == len(shown) else f"{path} (the first {len(shown)} of {made} pairs)")


def _config(recipe: Path | None, preset: str | None) -> GenerationConfig:
    if recipe is not None and preset is not None:
        fix = "leave out --preset, or write it into the recipe: [generation] preset = ..."
        raise UsageError("--preset", found=f"{preset!r} beside --recipe {recipe}", fix=fix)
    from synthseg.training.recipe import generation_config, load_recipe

    if recipe is not None:
        return load_recipe(recipe).generation
    return generation_config({"preset": PRESET if preset is None else preset})
