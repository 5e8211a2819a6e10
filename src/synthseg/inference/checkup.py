"""Whether everything that segmenting needs is there and works on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from synthseg.engine.choose import Availability, available_backends
from synthseg.engine.machine import Machine, describe_machine
from synthseg.errors import SynthsegError, UsageError
from synthseg.inference.config import check_merge
from synthseg.inference.forecast import Forecast, Speed, forecast, measure_speed
from synthseg.inference.modes import mode_config
from synthseg.inference.predict import pick_device, ran_out
from synthseg.inference.segmenter import Segmenter
from synthseg.inference.want import Want
from synthseg.weights import list_weights, verify_weights


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How scans are to be segmented: the arguments of the same names of :class:`Segmenter`, and how to merge."""

    mode: str = "default"
    weights: str | list[str] | None = None
    merge: str | None = None  # of several weights; None: the mode's
    backend: str = "auto"
    precision: str | None = None
    memory: str | None = None
    device: str = "auto"
    threads: int | None = None
    parcels: bool = False
    quality: bool = False


@dataclass(frozen=True)
class WeightsState:
    """Weights that a name leads to; ``problem`` is why they are of no use, ``used`` whether such a run needs them."""

    name: str
    path: str
    used: bool
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found. ``why`` says which backend will be used, empty if none can; ``problems`` are what is broken."""

    machine: Machine
    device: str
    backends: tuple[Availability, ...]
    why: str
    weights: tuple[WeightsState, ...]
    scans: tuple[Forecast, ...]
    problems: tuple[str, ...]


def examine(wanted: Wanted, scans: Sequence[Path], want: Want | None = None) -> Report:
    """Look at the machine, load the networks, run them for a moment, and say what the scans will need.

    ``want`` is what the results are to hold.
    Raises: UsageError or ConfigError for what is wrong in ``wanted`` itself. Whatever is broken is in the report.
    """
    device = pick_device(wanted.device)
    problems: list[str] = []
    tried = _try(wanted, problems)
    forecasts = () if tried is None else _forecasts(*tried, scans, want, problems)
    weights = _weights(None if tried is None else tried[0], problems)
    return Report(
        machine=describe_machine(),
        device=str(device),
        backends=tuple(available_backends(device)),
        why="" if tried is None else tried[0].why,
        weights=weights,
        scans=forecasts,
        problems=tuple(problems),
    )


def _try(wanted: Wanted, problems: list[str]) -> tuple[Segmenter, Speed] | None:
    """The networks loaded, and run for a moment; None, and why, where that does not work."""
    config = mode_config(wanted.mode)
    if wanted.merge is not None:
        config = replace(config, merge=check_merge(wanted.merge))
    try:
        segmenter = Segmenter(
            wanted.weights,
            wanted.mode,
            config=config,
            backend=wanted.backend,
            precision=wanted.precision,
            memory=wanted.memory,
            device=wanted.device,
            threads=wanted.threads,
            parcels=wanted.parcels,
            quality=wanted.quality,
        )
        return segmenter, measure_speed(segmenter)
    except UsageError:
        raise
    except SynthsegError as error:
        problems.append(str(error))
    except Exception as error:  # whatever a backend raises on a machine that it does not like
        problems.append(f"trial run: found {type(error).__name__}: {error}. Fix: try --backend plain, and report this")
    return None


def _forecasts(
    segmenter: Segmenter, speed: Speed, scans: Sequence[Path], want: Want | None, problems: list[str]
) -> tuple[Forecast, ...]:
    found = []
    for path in scans:
        try:
            found.append(forecast(segmenter, path, speed, want))
        except SynthsegError as error:
            problems.append(str(error))
        except Exception as error:  # the networks look at the scan: they may run out of memory, or of luck
            if ran_out(error):
                what, fix = "more memory needed than there is", "close other programs, or crop the scan to the head"
            else:
                what, fix = f"{type(error).__name__}: {error}", "try --backend plain, and report this"
            problems.append(str(SynthsegError(path, found=what, fix=fix)))
    return tuple(found)


def _weights(segmenter: Segmenter | None, problems: list[str]) -> tuple[WeightsState, ...]:
    """Every known file of weights. One that is damaged is a problem only where it is needed, and told there."""
    used = [] if segmenter is None else [model.sha256 for model in segmenter.models.values()]
    states = []
    try:
        entries = list_weights()
    except SynthsegError as error:
        problems.append(str(error))
        entries = []
    for entry in entries:
        problem, sha256 = entry.problem, None if entry.card is None else entry.card["sha256"]
        try:
            if problem is None:
                sha256 = verify_weights(entry.path, entry.role).sha256
        except SynthsegError as error:
            problem = error.found
        states.append(WeightsState(entry.name, str(entry.path), sha256 in used, problem))
    return tuple(states)
