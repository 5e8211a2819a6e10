"""``synthseg demo``: the shipped weights on a template everybody has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthseg.cli.process import prepare_process

SHOWN = ("total intracranial", "left hippocampus", "right hippocampus", "left thalamus", "right thalamus", "brain-stem")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")] = Path("synthseg-demo"),
    weights: Annotated[str, typer.Option(help="Name (see synthseg weights list) or path.")] = "default",
    fast: Annotated[bool, typer.Option("--fast", help="No mirror averaging, no topology clean-up.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Segment the MNI152 T1 template that the nilearn package carries; nothing is downloaded."""
    prepare_process(threads, device)
    from synthseg.inference import Segmenter
    from synthseg.report.demo import load_template, run_demo

    template = load_template()  # first: without nilearn there is no need to load the weights
    segmenter = Segmenter(weights, "fast" if fast else "default", device=device, threads=threads)
    result = run_demo(segmenter, out, template)
    for path in result.files:
        typer.echo(path)
    for name in SHOWN:
        if name in result.volumes_mm3:
            typer.echo(f"{name}: {result.volumes_mm3[name] / 1000:.1f} ml")
