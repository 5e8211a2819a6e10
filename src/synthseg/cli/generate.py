"""``synthseg generate``: look at what training sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("generate")(generate)


def generate(
    labels: Annotated[Path, typer.Argument(help="Label maps (a folder or a file), or a packed bank.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the pairs.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many pairs.")] = 10,
    recipe: Annotated[Path | None, typer.Option(help="Training recipe whose [generation] is used.")] = None,
    preset: Annotated[str, typer.Option(help="Without a recipe: paper, original or another preset.")] = "paper",
    protocol: Annotated[
        str, typer.Option(help="Label protocol of the maps: a name or a .tsv.")
    ] = "synthseg-generation",
    seed: Annotated[int, typer.Option(help="Same seed, same pairs.")] = 0,
    replay: Annotated[list[Path] | None, typer.Option(help="Make the pairs of these recorded draws instead.")] = None,
    figure: Annotated[bool, typer.Option("--figure/--no-figure", help="Also draw the pairs as pairs.png.")] = True,
) -> None:
    """Generate image and target pairs, a record of each draw, and a figure of them."""
    from synthseg.generation.write import generate_pairs, open_bank
    from synthseg.labels.protocol import load_protocol
    from synthseg.training.recipe import generation_config, load_recipe

    config = load_recipe(recipe).generation if recipe is not None else generation_config({"preset": preset})
    bank = open_bank(labels, load_protocol(protocol), on_map=lambda name: typer.echo(f"read {name}", err=True))
    pairs = []
    for pair in generate_pairs(bank, config, out, count=count, seed=seed, replay=replay or ()):
        typer.echo(f"{pair.image} (from {pair.map_name})")
        pairs.append(pair)
    if figure:
        from synthseg.report.pairs import write_pairs_figure

        typer.echo(write_pairs_figure(pairs, bank.protocol, out / "pairs.png"))
