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
    recipe: Annotated[Path, typer.Argument(help="TOML recipe, or a chain of them; see the folder recipes/.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder. Default: runs/RECIPE_NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Stop cleanly after so many minutes.")] = None,
    init: Annotated[str | None, typer.Option(help="Weights to start from: a name or a file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")] = None,
) -> None:
    """Train a network from label maps alone. Ctrl-C writes a checkpoint; --resume goes on.

    Stopped by Ctrl-C or --max-minutes, a run writes its checkpoint and weights and ends with exit code 0.

    A file of [[stages]] (recipes/plus/chain.toml) trains several networks, each from the weights of those before it.

    On a machine with torch, numpy and safetensors only: python -m synthseg.training RECIPE. Several GPUs:
    torchrun --nproc-per-node N -m synthseg.training RECIPE.
    """
    from synthseg.allocator import keep_freed_memory

    keep_freed_memory()
    from synthseg.training import Chain, RunOptions, load_training, train_chain
    from synthseg.training import train as run

    options = RunOptions(
        out=out or Path("runs") / recipe.stem,
        resume=resume,
        max_minutes=max_minutes,
        init=init,
        device=device,
        threads=threads,
    )
    asked = load_training(recipe)
    if isinstance(asked, Chain):
        chain = train_chain(asked, options)
        reached = "finished" if chain.finished else f"stopped early in stage {chain.stage} (--resume goes on)"
        typer.echo("\n".join([f"{reached} at step {chain.step}", *(f"{k}: {v}" for k, v in chain.weights.items())]))
        return
    result = run(asked, options)
    state = "finished" if result.finished else "stopped early (--resume goes on)"
    typer.echo(f"{state} at step {result.step}, weights in {result.weights}")


def bank(
    labels: Annotated[Path, typer.Argument(help="Folder of label maps, or one file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The bank to write, e.g. bank.safetensors.")],
    protocol: Annotated[
        str,
        typer.Option(help="Label protocol of the maps: a name, a .tsv, or the original's lists (a folder or a .npy)."),
    ] = "synthseg-generation",
    validation: Annotated[
        bool, typer.Option("--validation", help="Pack scans and their label maps for validation instead.")
    ] = False,
    spacing: Annotated[
        float | None,
        typer.Option(min=0.1, max=10, help="With --validation: the recipe's working spacing in mm. Default: 1."),
    ] = None,
    conditions: Annotated[
        str | None,
        typer.Option(
            help="With --validation: versions of each scan, e.g. plain,axial-5mm,inverted,smooth-1. Default: plain."
        ),
    ] = None,
) -> None:
    """Pack label maps into one file that training reads on any machine."""
    from synthseg.errors import UsageError
    from synthseg.generation.write import open_bank
    from synthseg.labels.protocol import load_protocol

    if out.suffix != ".safetensors":
        raise UsageError(out, found=f"the ending {out.suffix!r}", fix="name the bank something.safetensors")
    if labels.suffix == ".safetensors":
        raise UsageError(labels, found="a file named like a packed bank", fix="give the label maps themselves")
    if spacing is not None and not validation:
        fix = (
            "leave it out: a bank keeps its maps' own voxel sizes, and the recipe's grid.spacing_mm is used in training"
        )
        raise UsageError("--spacing", found=f"{spacing:g} mm without --validation", fix=fix)
    if conditions is not None and not validation:
        fix = "leave it out: a bank holds label maps, which have no contrast"
        raise UsageError("--conditions", found=f"{conditions!r} without --validation", fix=fix)
    table = load_protocol(protocol)
    if validation:
        from synthseg.training.validation import PLAIN, pack_validation

        at = 1.0 if spacing is None else spacing
        wanted = tuple(dict.fromkeys(name.strip() for name in (conditions or PLAIN).split(",")))
        scans = pack_validation(labels, table, at, wanted)
        typer.echo(f"{scans.save(out)}: {len(scans.names)} scans at {at:g} mm")
        return
    packed = open_bank(labels, table, on_map=lambda name: typer.echo(f"read {name}", err=True))
    size = packed.save(out).stat().st_size / 1e6
    typer.echo(f"{out}: {len(packed)} maps, {size:.1f} MB, protocol {packed.protocol.name}")
