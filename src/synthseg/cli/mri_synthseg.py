"""``mri_synthseg``: SynthSeg's and FreeSurfer's command of that name, carried out by this package.

Every flag, and what differs from the original: ``docs/mri_synthseg.md``. Exit codes: 0 done, 1 something failed (or no
argument at all, as in the original), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from synthseg.cli.original.parser import PROGRAM, Options, build_parser, notes_on, parse
from synthseg.errors import OutputError, SynthsegError

if TYPE_CHECKING:
    from synthseg.cli.original.jobs import Plan

INTERRUPTED = 130
CITATION = (
    "Please cite: Billot et al., SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without "
    "retraining, Medical Image Analysis 2023."
)
CITATION_PLUS = (
    "For --robust, --parc and --qc also: Billot et al., Robust machine learning segmentation for large-scale analysis "
    "of heterogeneous clinical brain MRI datasets, PNAS 2023."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; always ends in SystemExit. Errors are one line on stderr, with ``--debug`` a traceback."""
    if arguments is None:
        from synthseg.cli.process import trust_installed_code_only

        trust_installed_code_only()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        build_parser().print_help()
        sys.exit(1)
    try:
        sys.exit(run(parse(given)))
    except SynthsegError as error:
        sys.exit(_told(error, error, given))
    except BrokenPipeError:
        with suppress(OSError):  # where it is no real file; otherwise the interpreter would complain as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{PROGRAM}: stopped: nothing reads its output any more", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a network's file without permission, a disk that has gone
        found = f"no way to use it ({error.strerror or error})"
        fix = "check its permissions, and the disk that it is on"
        sys.exit(_told(SynthsegError(error.filename or "a file", found=found, fix=fix), error, given))
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _told(message: SynthsegError, error: Exception, given: Sequence[str]) -> int:
    """Say what went wrong; the exit code."""
    if "--debug" in given:
        traceback.print_exception(error)
    print(f"{PROGRAM}: {' '.join(str(message).split())}", file=sys.stderr)
    return message.exit_code


def run(options: Options) -> int:
    """Do what was asked for; the exit code.

    Raises: UsageError, WeightsError or OutputError for what is wrong before the first scan.
    """
    from synthseg.cli.process import prepare_process

    prepare_process(options.threads, options.device)
    from synthseg.cli.original.jobs import plan

    found = plan(options)
    for note in (*notes_on(options), *found.notes):
        print(f"note: {note}", file=sys.stderr)
    from synthseg.cli.original.loop import Run, summarise
    from synthseg.cli.original.networks import load

    _require_places(found)
    loaded = load(options)
    _banner(options, loaded.sources)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    scans = Run(loaded.engine, loaded.structures, found, options)
    code = scans.all()
    summarise(scans)
    if scans.done:
        print(CITATION)
        if options.robust or options.parc or options.qc is not None:
            print(CITATION_PLUS)
    return code


def _require_places(found: Plan) -> None:
    """Try to write where results will go. Raises: OutputError naming the folder and the flag that it belongs to."""
    from synthseg.files import require_writable

    for folder, flags in found.places.items():
        try:
            require_writable(folder)
        except OutputError as error:
            fix = f"choose another place with {' and '.join(flags)}, or make it one to write to"
            raise OutputError(folder, found=error.found, fix=fix) from error


def _banner(options: Options, sources: Sequence[str]) -> None:
    from importlib.metadata import version

    from synthseg.cli.original.loop import say

    how = ", its steps one by one" if options.strict_original else ""
    say(f"{options.title}{how} (synthseg {version('synthseg')}; networks: {', '.join(sources)})")
