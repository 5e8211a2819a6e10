"""``synthseg train`` and ``synthseg bank``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("train")(train)
    app.command("bank")(bank)


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe; see the folder recipes/.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder. Default: runs/RECIPE_NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Stop cleanly after so many minutes.")] = None,
    init: Annotated[str | None, typer.Option(help="Weights to start from: a name or a file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")] = None,
) -> None:
    """Train a network from label maps alone. Ctrl-C writes a checkpoint; --resume goes on.

    On a machine with torch, numpy and safetensors only: python -m synthseg.training RECIPE. Several GPUs:
    torchrun --nproc-per-node N -m synthseg.training RECIPE.
    """
    from synthseg.training import RunOptions, load_recipe
    from synthseg.training import train as run

    options = RunOptions(
        out=out or Path("runs") / recipe.stem,
        resume=resume,
        max_minutes=max_minutes,
        init=init,
        device=device,
        threads=threads,
    )
    result = run(load_recipe(recipe), options)
    typer.echo(f"step {result.step}, weights in {result.weights}")


def bank(
    labels: Annotated[Path, typer.Argument(help="Folder of label maps, or one file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The bank to write, e.g. bank.safetensors.")],
    protocol: Annotated[
        str, typer.Option(help="Label protocol of the maps: a name or a .tsv.")
    ] = "synthseg-generation",
    validation: Annotated[
        bool, typer.Option("--validation", help="Pack scans and their label maps for validation instead.")
    ] = False,
    spacing: Annotated[float, typer.Option(help="With --validation: the recipe's working spacing in mm.")] = 1.0,
) -> None:
    """Pack label maps into one file that training reads on any machine."""
    from synthseg.errors import UsageError
    from synthseg.generation.write import open_bank
    from synthseg.labels.protocol import load_protocol

    if out.suffix != ".safetensors":
        raise UsageError(out, found=f"the ending {out.suffix!r}", fix="name the bank something.safetensors")
    table = load_protocol(protocol)
    if validation:
        from synthseg.training.validation import pack_validation

        scans = pack_validation(labels, table, spacing)
        typer.echo(f"{scans.save(out)}: {len(scans.names)} scans at {spacing:g} mm")
        return
    packed = open_bank(labels, table, on_map=lambda name: typer.echo(f"read {name}", err=True))
    size = packed.save(out).stat().st_size / 1e6
    typer.echo(f"{out}: {len(packed)} maps, {size:.1f} MB, protocol {packed.protocol.name}")
