"""The command line: thin commands that parse, call one function and print.

Command modules import nothing heavier than typer at their top, so that ``synthseg --help`` never loads torch.
Exit codes: 0 done, 1 something failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from synthseg.cli.system import explained
from synthseg.errors import SynthsegError
from synthseg.inference.scan_warnings import RESEARCH_USE

DEBUG_FLAG = "--debug"
EPILOG = f"Any command takes --debug, which shows where an error came from. {RESEARCH_USE}"


def build_app() -> typer.Typer:
    """The application with all its commands."""
    from synthseg.cli import (
        bids,
        compare,
        demo,
        doctor,
        effect,
        evaluate,
        generate,
        report,
        sampler,
        segment,
        shapes,
        sublabels,
        train,
    )
    from synthseg.cli.cohort import cohort_app
    from synthseg.cli.fetal import fetal_app
    from synthseg.cli.labels import labels_app
    from synthseg.cli.priors import priors_app
    from synthseg.cli.weights import weights_app

    app = typer.Typer(
        name="synthseg",
        help="Contrast-agnostic segmentation of brain scans: any MRI contrast, CT, any resolution, without retraining.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: rich and its markdown would take half of the time of `--help`
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for module in (segment, report, demo, doctor, generate, train, evaluate):
        module.register(app)
    app.add_typer(cohort_app, name="cohort")
    bids.register(app)
    app.add_typer(labels_app, name="labels")
    app.add_typer(weights_app, name="weights")
    sublabels.register(app)
    sampler.register(app)
    shapes.register(app)
    compare.register(app)
    effect.register(app)
    app.add_typer(priors_app, name="priors")
    app.add_typer(fetal_app, name="fetal")
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line. A :class:`SynthsegError` becomes one line on stderr and its exit code, never a traceback."""
    if arguments is None:
        from synthseg.cli.process import trust_installed_code_only

        trust_installed_code_only()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG_FLAG in given
    try:
        build_app()([argument for argument in given if argument != DEBUG_FLAG], obj={"debug": debug})
    except SynthsegError as error:
        if debug:
            traceback.print_exception(error)
        typer.echo(f"synthseg: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("synthseg: interrupted", err=True)
        sys.exit(130)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        told = explained(error)
        if told is None or debug:
            raise
        typer.echo(f"synthseg: {told}", err=True)
        sys.exit(told.exit_code)


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=lambda v: _version(v))
    ] = False,
) -> None:
    """Options before any command."""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"synthseg {version('synthseg')}")
        typer.echo(RESEARCH_USE)
        raise typer.Exit
